"""Native helpers of the backward pass.

All take float32 CPU tensors. A matrix may have any stride between its rows; inside a row its
elements must be neighbours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from ctypes import c_int64

import torch
from torch import Tensor

from .layer import Packed, ready
from .loader import Layer
from .tensors import loaded, new

_FEW = 512
"""At most one output in so many, and 64 more, may have clipped in some row blocks only."""
_PART, _MIXED = 1 << 14, 64
"""Elements that a thread takes at a time, and for how many it can list one: as in abi.h."""


class Parts:
    """Stretches of a row: where each is in the input, where in the result, and how long it is."""

    def __init__(self, stretches: Sequence[tuple[int, int, int]]) -> None:
        columns = list(zip(*stretches, strict=True)) or [(), (), ()]
        self.count = len(stretches)
        self.source, self.place, self.length = ((c_int64 * self.count)(*c) for c in columns)
        self.width = max((place + length for _, place, length in stretches), default=0)


class Bounds:
    """Stretches of a row that follow one another: ``bounds[s] <= column < bounds[s + 1]``."""

    def __init__(self, bounds: Sequence[int]) -> None:
        self.count = len(bounds) - 1
        self.places = (c_int64 * len(bounds))(*bounds)
        self.width = bounds[-1]


@functools.lru_cache(maxsize=4096)
def parts_of(bounds: tuple[int, ...]) -> tuple[Parts, Bounds]:
    """The stretches between ``bounds``, which begin with 0, in both forms."""
    stretches = zip(bounds, bounds[1:], strict=False)
    return Parts([(a, a, b - a) for a, b in stretches]), Bounds(bounds)


def _matrix(x: Tensor) -> tuple[int, int, int]:
    if x.dim() != 2 or (x.shape[1] > 1 and x.stride(1) != 1) or x.dtype != torch.float32:
        raise ValueError(f"needs a float32 matrix of dense rows, got {x.dtype} {x.stride()}")
    return x.shape[0], x.shape[1], x.stride(0)


def drive(x: Tensor, ranges: Tensor | None, levels: int, parts: Parts | None = None) -> Tensor:
    """What tiles are driven with, in units of the input: ``code * unit / levels``.

    Args:
        x: ``[rows, length]``.
        ranges: a number for each part; None for the abs-max of each row's part.
        levels: of the DAC; 0 without one.
        parts: of a row; None for one that is all of it.

    Returns:
        ``[rows, parts.width]``.
    """
    rows, length, stride = _matrix(x)
    parts = parts or parts_of((0, length))[0]
    if ranges is not None and ranges.numel() != parts.count:
        raise ValueError(f"{ranges.numel()} ranges for {parts.count} parts")
    out = new(rows, parts.width)
    loaded().drive(
        x.data_ptr(), rows, stride, parts.source, parts.place, parts.length, parts.count,
        None if ranges is None else ranges.data_ptr(), levels, out.data_ptr(), parts.width,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def mask_gradient(gradient: Tensor, mask: Tensor, out: Tensor | None = None) -> Tensor:
    """``gradient * mask``, in ``out`` if given; all dense in the same layout, mask bool."""
    if not _alike(gradient, mask):
        raise ValueError(f"gradient {gradient.stride()} and mask {mask.stride()} differ in layout")
    if out is None:
        out = torch.empty_like(gradient)
    loaded().mask_gradient(
        gradient.data_ptr(), mask.data_ptr(), gradient.numel(), out.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def prepare(
    gradient: Tensor,
    x: Tensor,
    packed: Packed,
    alpha: Tensor,
    mask: Tensor | None,
    input_range: Tensor | None,
    levels: int,
    need_input: bool,
    need_weight: bool,
    turned: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the products of a layer with one row block take, in one call.

    Args:
        gradient: dense ``[B, N, *out]``, no more than the kernels' layouts.
        x: dense ``[B, C, *size]``, in the same layout.
        packed: the weight.
        alpha: weight scale, ``[N]``.
        mask: bool, laid out as ``gradient``; None without an ADC.
        input_range: one number; None if dynamic or without a DAC.
        levels: of the DAC; 0 without one.
        need_input: want the gradient of the input, so a linear layer's weight.
        need_weight: want what the tiles are driven with.
        turned: 2-d maps are contiguous, and results channels last.

    Returns:
        ``gradient * mask``; ``drive(x)``, or ``x`` if it is not wanted; the scaled weight, of a
        linear layer ``[K, N]``, else ``[N, K]``, or None.
    """
    n, k = packed.shape
    linear = not packed.taps
    passed, driven, unpacked = gradient, x, None
    if turned:
        passed = _channels_last(gradient)
    elif mask is not None:
        passed = torch.empty_like(gradient)
    if need_weight and turned:
        driven = _channels_last(x)
    elif need_weight and levels:
        driven = torch.empty_like(x)
    if not linear:
        unpacked = new(n, k)
    elif need_input:
        unpacked = new(k, n)
    alpha = ready(alpha, n)
    batch, inputs = x.shape[:2]
    pixels, in_pixels = math.prod(gradient.shape[2:]), math.prod(x.shape[2:])
    status = loaded().prepare(
        packed.struct(), alpha.data_ptr(), linear, batch, pixels, inputs, in_pixels,
        gradient.data_ptr(), _pointer(mask), x.data_ptr(), _pointer(input_range), levels, turned,
        None if passed is gradient else passed.data_ptr(),
        None if driven is x else driven.data_ptr(), _pointer(unpacked), torch.get_num_threads(),
    )  # fmt: skip
    assert status == 0, "a layer with one row block"
    return passed, driven, unpacked


def mask_blocks(gradient: Tensor, masks: Tensor) -> tuple[Tensor, Tensor] | None:
    """``gradient * masks.all(0)``, and the elements at which the blocks' masks differ.

    Args:
        gradient: dense.
        masks: bool ``[R, *gradient.shape]``, dense, each block laid out as ``gradient``.

    Returns:
        The product, and mixed elements as int64 offsets in memory, ascending. None where they are
        too many to be worth a list, or have a gradient that is not finite.
    """
    if not _alike(gradient, masks[0]) or not _alike(gradient, masks[-1]):
        raise ValueError(f"gradient {gradient.stride()} and masks {masks.stride()} do not fit")
    n, out = gradient.numel(), torch.empty_like(gradient)
    mixed = torch.empty(-(-n // _PART) * _PART // _MIXED, dtype=torch.int64, device="cpu")
    count = loaded().mask_blocks(
        gradient.data_ptr(), masks.data_ptr(), masks.shape[0], n, out.data_ptr(), mixed.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return None if count < 0 or count * _FEW > n + 64 * _FEW else (out, mixed[:count])


def clip_gradient(
    gradient: Tensor, x: Tensor, ranges: Tensor, out: Tensor, bounds: Bounds | None = None
) -> Tensor:
    """``gradient * (|x| <= range)`` in ``out``, which may be ``gradient``.

    Zero where the DAC clipped. ``ranges`` has a number for each of ``bounds``, one without.
    """
    rows, length, stride = _matrix(gradient)
    if x.shape != gradient.shape or out.shape != gradient.shape:
        raise ValueError(
            f"gradient {list(gradient.shape)} of an input {list(x.shape)} in {list(out.shape)}"
        )
    bounds = bounds or parts_of((0, length))[1]
    if ranges.numel() != bounds.count or bounds.width != length:
        raise ValueError(f"{ranges.numel()} ranges for {bounds.count} parts of {length} columns")
    loaded().clip_gradient(
        gradient.data_ptr(), rows, stride, x.data_ptr(), _matrix(x)[2], bounds.places, bounds.count,
        ranges.data_ptr(), out.data_ptr(), _matrix(out)[2], torch.get_num_threads(),
    )  # fmt: skip
    return out


def add_mixed(
    layer: Layer,
    x: Tensor,
    ranges: Tensor | None,
    masks: Tensor,
    gradient: Tensor,
    mixed: Tensor,
    weight: Tensor | None,
    grad_x: Tensor | None,
    grad_w: Tensor | None,
) -> None:
    """Add what the outputs that clipped in some row blocks only pass to the other blocks' rows.

    Args:
        layer: sizes and layouts; one group.
        x: input, laid out as ``layer`` says.
        ranges: ``[R]``; None if dynamic or without a DAC.
        masks: ``[R, *gradient.shape]``.
        gradient: of the output, as it was before ``mask_blocks``.
        mixed: from ``mask_blocks``.
        weight: ``[N, K]`` times the weight scale; wanted for ``grad_x``.
        grad_x: laid out as ``x``, before it is clipped; None if not wanted.
        grad_w: contiguous ``[N, K]``; None if not wanted.
    """
    status = loaded().add_mixed(
        layer, x.data_ptr(), _pointer(ranges), masks.data_ptr(), gradient.data_ptr(),
        mixed.data_ptr(), mixed.numel(), _pointer(weight), _pointer(grad_x), _pointer(grad_w),
        torch.get_num_threads(),
    )  # fmt: skip
    if status == 1:
        raise MemoryError("native kernel: no memory for its scratch")
    assert status == 0, "a layer with ranges, and a weight for the input's gradient"


def shared_channels(
    layer: Layer,
    x: Tensor,
    ranges: Tensor,
    masks: Tensor | None,
    gradient: Tensor,
    weight: Tensor,
    grad_x: Tensor,
) -> None:
    """Set the clipped gradient of channels with rows in two blocks where one of them clips.

    Operands are those of ``add_mixed``.
    """
    status = loaded().shared_channels(
        layer, x.data_ptr(), ranges.data_ptr(), _pointer(masks), gradient.data_ptr(),
        weight.data_ptr(), grad_x.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    assert status == 0, "a layer of one group"


def _alike(a: Tensor, b: Tensor) -> bool:
    # Not by strides: that of a size of 1 may be any.
    if a.shape != b.shape:
        return False
    last = torch.channels_last
    return (a.is_contiguous() and b.is_contiguous()) or (
        a.dim() == 4 and a.is_contiguous(memory_format=last) and b.is_contiguous(memory_format=last)
    )


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def clip_turned(gradient: Tensor, x: Tensor, input_range: Tensor) -> Tensor:
    """``clip_gradient`` from channels-last memory into contiguous maps.

    Args:
        gradient: ``[B, C, H, W]``, channels last.
        x: contiguous, of the same shape.
        input_range: one number.
    """
    batch, channels, pixels = _planes(x)
    if gradient.shape != x.shape or not gradient.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"gradient {list(gradient.shape)} {gradient.stride()} of {list(x.shape)}")
    out = torch.empty_like(x)
    loaded().clip_turned(
        gradient.data_ptr(), x.data_ptr(), batch, channels, pixels, input_range.data_ptr(),
        out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _planes(x: Tensor) -> tuple[int, int, int]:
    if x.dim() != 4 or not x.is_contiguous() or x.dtype != torch.float32:
        raise ValueError(f"needs contiguous float32 maps, got {x.dtype} {x.stride()}")
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def _channels_last(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return new(batch, height, width, channels).permute(0, 3, 1, 2)
