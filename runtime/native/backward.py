"""The gradient of a layer whose weight is packed: torch's products, native passes between them.

``kernels.backward`` defines what is computed. Here the weight scale is folded into the weight and
the DAC's unit into its codes, so that each product has nothing around it but the masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..spec import LayerSpec
from .layer import Packed
from .tensors import (
    clip_gradient,
    clip_turned,
    drive,
    drive_turned,
    mask_gradient,
    mask_turned,
    new,
)

Found = tuple[Tensor | None, Tensor | None]

_UNPACKED = 1 << 19
"""Weights that are unpacked at a time: what they are multiplied from fits a second-level cache."""
_COLUMNS = 1024
"""Columns of a weight whose gradient is computed at a time; more of them miss the TLB."""
_TURNED = 128
"""Most channels of a convolution whose gradient is computed channels last in any case."""


def serves(packed: Packed, spec: LayerSpec) -> bool:
    """Whether the gradient is computed here: not for a range per patch, nor for split groups."""
    return not packed.taps or not (spec.dynamic or (packed.groups > 1 and len(spec.blocks) > 1))


def backward(
    grad: Tensor,
    x: Tensor,
    packed: Packed,
    alpha: Tensor,
    mask: Tensor | None,
    input_range: Tensor | None,
    spec: LayerSpec,
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
    need_input: bool,
    need_weight: bool,
) -> Found:
    """Gradients of input and weight.

    Args:
        grad: of the output, ``[..., N]`` or ``[B, N, *out]``, float32.
        x: input, ``[..., K]`` or ``[B, C, *size]``, float32.
        packed: the programmed weight.
        alpha: weight scale of each column, ``[N]``.
        mask: ``[R, *output]`` where the ADCs did not clip; None without an ADC.
        input_range: ``[R]``; None if dynamic or without a DAC.
        spec: settings.
        geometry: stride, padding and dilation of a convolution.
        need_input: want the gradient of the input.
        need_weight: want the gradient of the weight, ``[N, K]`` or ``[N, C / groups, *kernel]``.
    """
    layer = _Layer(packed, alpha, mask, input_range, spec, need_input, need_weight)
    return layer.conv(grad, x, geometry) if packed.taps else layer.linear(grad, x)


class _Layer:
    """What all row blocks of one gradient share."""

    def __init__(
        self,
        packed: Packed,
        alpha: Tensor,
        mask: Tensor | None,
        input_range: Tensor | None,
        spec: LayerSpec,
        need_input: bool,
        need_weight: bool,
    ) -> None:
        self.packed, self.alpha, self.mask = packed, alpha, mask
        self.levels = spec.dac.levels if spec.dac else 0
        self.range = None if input_range is None else input_range.float().contiguous()
        self.spec, self.need_input, self.need_weight = spec, need_input, need_weight

    def linear(self, grad: Tensor, x: Tensor) -> Found:
        """GEMMs over all vectors."""
        n, k = self.packed.shape
        flat, out = x.reshape(-1, k).contiguous(), grad.reshape(-1, n).contiguous()
        masks = None if self.mask is None else self.mask.view(-1, *out.shape)
        memory = new(self._rows_at_once(), n) if self.need_input else None
        grad_x = torch.empty_like(flat) if self.need_input else None
        grad_w = new(n, k) if self.need_weight else None
        for r, (a, b) in enumerate(self.spec.blocks):
            passed = out if masks is None else mask_gradient(out, masks[r])
            if grad_x is not None and memory is not None:
                for first in range(a, b, len(memory)):
                    rows = self.packed.rows_scaled(self.alpha, r, first - a, memory)
                    part = grad_x[:, first : first + len(rows)]
                    torch.mm(passed, rows.mT, out=part)
                if self.range is not None:
                    part = grad_x[:, a:b]
                    clip_gradient(part, flat[:, a:b], self.range[r], out=part)
            if grad_w is not None:
                driven = self._drive(flat[:, a:b], r)
                for first in range(0, n, _COLUMNS):
                    some = slice(first, first + _COLUMNS)
                    torch.mm(passed[:, some].mT, driven, out=grad_w[some, a:b])
        return None if grad_x is None else grad_x.view(x.shape), grad_w

    def _rows_at_once(self) -> int:
        # Rows of the weight are unpacked into the same memory again and again: what they are
        # multiplied from stays in cache, and fresh pages would cost more than it.
        most = max(b - a for a, b in self.spec.blocks)
        fit = max(_UNPACKED // self.packed.shape[0], 64) // 2 * 2
        return min(most, fit)

    def _drive(self, part: Tensor, block: int) -> Tensor:
        if self.levels == 0:
            return part
        return drive(part, None if self.range is None else self.range[block], self.levels)

    def conv(
        self, grad: Tensor, x: Tensor, geometry: tuple[Sequence[int], Sequence[int], Sequence[int]]
    ) -> Found:
        """One convolution's gradient for each row block, over the channels that it touches."""
        n, k = self.packed.shape
        taps = self.packed.taps
        volume = math.prod(taps)
        weight = self.packed.unpack_scaled(self.alpha).view(n, k // volume, *taps)
        x, grad = _dense(x), _dense(grad)
        grad_x = torch.empty_like(x) if self.need_input else None
        single = len(self.spec.blocks) == 1
        grad_w = torch.zeros_like(weight) if self.need_weight and not single else None
        turned = self._turns(x)
        done = 0  # channels that have a gradient: blocks may share one
        for r, (start, stop) in enumerate(self.spec.blocks):
            first, last = start // volume, -(-stop // volume)
            block = weight
            if not single:
                block = weight[:, first:last].contiguous()
                rows = block.view(n, -1)
                rows[:, : start - first * volume] = 0
                rows[:, stop - first * volume :] = 0
            # Groups keep all channels of x in their one row block.
            channels = slice(first, last) if self.packed.groups == 1 else slice(None)
            found = torch.ops.aten.convolution_backward(
                self._masked_map(grad, r, turned), self._driven_map(x, channels, r, turned), block,
                None, *geometry, False, [0] * len(taps), self.packed.groups,
                [self.need_input, self.need_weight, False],
            )  # fmt: skip
            if grad_x is not None:
                if first < done:
                    kept = grad_x[:, first].clone()
                    self._place(found[0], x, channels, r, grad_x)
                    grad_x[:, first] += kept
                else:
                    self._place(found[0], x, channels, r, grad_x)
                done = last
            if single:
                grad_w = found[1]
            elif grad_w is not None:
                skip = first * volume
                flat = found[1].reshape(n, -1)
                grad_w.view(n, -1)[:, start:stop] = flat[:, start - skip : stop - skip]
        return grad_x, grad_w

    def _turns(self, x: Tensor) -> bool:
        # oneDNN's gradients of few channels take 0.55 to 1 times as long channels last, and the
        # passes around them can turn the maps on their way.
        return (
            x.dim() == 4
            and x.is_contiguous()
            and self.packed.groups == 1
            and max(x.shape[1], self.packed.shape[0]) <= _TURNED
            and not (self.levels and self.range is None)
        )

    def _masked_map(self, grad: Tensor, block: int, turned: bool) -> Tensor:
        mask = None if self.mask is None else self.mask[block]
        if turned and (mask is None or mask.is_contiguous()):
            return mask_turned(grad.contiguous(), mask)
        return grad if mask is None else _masked(grad, mask)

    def _driven_map(self, x: Tensor, channels: slice, block: int, turned: bool) -> Tensor:
        if turned and self.need_weight:
            full = None if self.range is None else self.range[block]
            first, last, _ = channels.indices(x.shape[1])
            return drive_turned(x, first, last, full, self.levels)
        part = x[:, channels]
        if self.levels == 0 or not self.need_weight:
            return part
        return _unrows(self._drive(_rows(part), block), part)

    def _place(self, grad: Tensor, x: Tensor, channels: slice, block: int, out: Tensor) -> None:
        """The gradient of a row block's channels, clipped, into its place in ``out``."""
        turned = _is_last(grad) and grad.is_contiguous(memory_format=torch.channels_last)
        if self.range is not None and turned and not _is_last(x) and x.is_contiguous():
            first, last, _ = channels.indices(x.shape[1])
            clip_turned(grad, x, first, last, self.range[block], out)
            return
        part, to = x[:, channels], out[:, channels]
        if self.range is None:
            to.copy_(grad)
        elif _is_last(grad) == _is_last(part):
            clip_gradient(_rows(grad), _rows(part), self.range[block], _rows(to))
        else:
            torch.mul(grad, part.abs() <= self.range[block], out=to)


def _is_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.shape[1] > 1 and x.stride(1) == 1


def _dense(x: Tensor) -> Tensor:
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _rows(part: Tensor) -> Tensor:
    """A slice of channels of a dense map as a matrix of dense rows."""
    if _is_last(part):
        batch, channels, height, width = part.shape
        return part.permute(0, 2, 3, 1).view(batch * height * width, channels)
    return part.flatten(1)


def _unrows(rows: Tensor, part: Tensor) -> Tensor:
    if _is_last(part):
        batch, channels, height, width = part.shape
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return rows.view(part.shape)


def _masked(grad: Tensor, mask: Tensor) -> Tensor:
    if grad.stride() == mask.stride():
        return mask_gradient(grad, mask)
    return grad * mask
