"""Native helpers on tensors: what the backward pass needs, noise, and content hashes.

All take float32 CPU tensors. A matrix may have any stride between its rows; inside a row its
elements must be neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_uint64, c_void_p

import torch
from torch import Tensor

from .loader import Library, library


def loaded() -> Library:
    """The library; RuntimeError if it is not there."""
    found = library()
    if found is None:
        raise RuntimeError("the native library is not there: ask loader.library() first")
    return found


def new(*shape: int) -> Tensor:
    """Memory for a kernel's results, whatever torch's default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _matrix(x: Tensor) -> tuple[int, int, int]:
    if x.dim() != 2 or (x.shape[1] > 1 and x.stride(1) != 1) or x.dtype != torch.float32:
        raise ValueError(f"needs a float32 matrix of dense rows, got {x.dtype} {x.stride()}")
    return x.shape[0], x.shape[1], x.stride(0)


def drive(x: Tensor, input_range: Tensor | None, levels: int) -> Tensor:
    """What tiles are driven with, in units of the input: ``code * unit / levels``.

    Args:
        x: part of the inputs that a row block takes, ``[rows, length]``.
        input_range: one number; None for the abs-max of each row.
        levels: of the DAC; 0 without one.
    """
    out = new(*x.shape)
    rows, length, stride = _matrix(x)
    pointer = None if input_range is None else input_range.data_ptr()
    loaded().drive(
        x.data_ptr(), rows, length, stride, pointer, levels, out.data_ptr(), length,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def mask_gradient(gradient: Tensor, mask: Tensor) -> Tensor:
    """``gradient * mask`` in a new tensor; both contiguous in the same layout, mask bool."""
    if gradient.shape != mask.shape or gradient.stride() != mask.stride():
        raise ValueError(f"gradient {gradient.stride()} and mask {mask.stride()} differ in layout")
    out = torch.empty_like(gradient)
    loaded().mask_gradient(
        gradient.data_ptr(), mask.data_ptr(), gradient.numel(), out.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def clip_gradient(gradient: Tensor, x: Tensor, input_range: Tensor, out: Tensor) -> Tensor:
    """``gradient * (|x| <= input_range)`` in ``out``, which may be ``gradient``.

    Zero where the DAC clipped.
    """
    rows, length, stride = _matrix(gradient)
    if x.shape != gradient.shape or out.shape != gradient.shape:
        raise ValueError(
            f"gradient {list(gradient.shape)} of an input {list(x.shape)} in {list(out.shape)}"
        )
    loaded().clip_gradient(
        gradient.data_ptr(), rows, length, stride, x.data_ptr(), _matrix(x)[2],
        input_range.data_ptr(), out.data_ptr(), _matrix(out)[2], torch.get_num_threads(),
    )  # fmt: skip
    return out


def mask_turned(gradient: Tensor, mask: Tensor | None) -> Tensor:
    """``gradient * mask`` of contiguous maps ``[B, N, H, W]``, in channels-last memory."""
    if mask is not None and mask.shape != gradient.shape:
        raise ValueError(f"gradient {list(gradient.shape)} and mask {list(mask.shape)}")
    batch, channels, pixels = _planes(gradient, 0, gradient.shape[1])
    out = _channels_last(gradient, channels)
    if mask is not None and not mask.is_contiguous():
        raise ValueError("gradient and mask differ in layout")
    loaded().mask_turned(
        gradient.data_ptr(), None if mask is None else mask.data_ptr(), batch, channels, pixels,
        out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out


def drive_turned(
    x: Tensor, first: int, last: int, input_range: Tensor | None, levels: int
) -> Tensor:
    """``drive`` of channels ``first..last`` of contiguous maps, in channels-last memory.

    Args:
        x: ``[B, C, H, W]``.
        first: channel.
        last: one after the last channel.
        input_range: one number; None without a DAC.
        levels: of the DAC; 0 without one.
    """
    batch, channels, pixels = _planes(x, first, last)
    out = _channels_last(x, channels)
    loaded().drive_turned(
        x.data_ptr() + 4 * first * pixels, batch, channels, x.shape[1], pixels,
        None if input_range is None else input_range.data_ptr(), levels, out.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def clip_turned(
    gradient: Tensor, x: Tensor, first: int, last: int, input_range: Tensor, out: Tensor
) -> None:
    """``clip_gradient`` from channels-last memory into channels ``first..last`` of ``out``.

    Args:
        gradient: ``[B, last - first, H, W]``, channels last.
        x: contiguous ``[B, C, H, W]``.
        first: channel.
        last: one after the last channel.
        input_range: one number.
        out: as ``x``.
    """
    batch, channels, pixels = _planes(x, first, last)
    if out.shape != x.shape or not out.is_contiguous():
        raise ValueError(f"{list(out.shape)} cannot hold the gradient of {list(x.shape)}")
    if gradient.shape != (batch, channels, *x.shape[2:]) or not gradient.is_contiguous(
        memory_format=torch.channels_last
    ):
        raise ValueError(f"gradient {list(gradient.shape)} is not of channels {first} to {last}")
    start = 4 * first * pixels
    loaded().clip_turned(
        gradient.data_ptr(), x.data_ptr() + start, batch, channels, x.shape[1], pixels,
        input_range.data_ptr(), out.data_ptr() + start, torch.get_num_threads(),
    )  # fmt: skip


def _planes(x: Tensor, first: int, last: int) -> tuple[int, int, int]:
    if x.dim() != 4 or not x.is_contiguous() or x.dtype != torch.float32:
        raise ValueError(f"needs contiguous float32 maps, got {x.dtype} {x.stride()}")
    if not 0 <= first <= last <= x.shape[1]:
        raise ValueError(f"{x.shape[1]} channels, not {first} to {last}")
    return x.shape[0], last - first, x.shape[2] * x.shape[3]


def _channels_last(x: Tensor, channels: int) -> Tensor:
    return new(x.shape[0], x.shape[2], x.shape[3], channels).permute(0, 3, 1, 2)


def normals(rows: int, columns: int, key: int, block: int = 0, call: int = 0) -> Tensor:
    """Standard normal noise of row block ``block``, ``[rows, columns]``."""
    out = new(rows, columns)
    loaded().normals(
        out.data_ptr(), rows, columns, key, block, call & 0xFFFFFFFF, torch.get_num_threads()
    )
    return out


def content_hash(tensors: Sequence[Tensor]) -> list[int]:
    """64-bit hash of the bytes of each contiguous CPU tensor; the same for equal bytes.

    One changed word always changes it, more than one with a chance of 1 - 2^-64.
    """
    for tensor in tensors:
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError("only contiguous CPU tensors can be hashed")
    n = len(tensors)
    pointers = (c_void_p * n)(*(tensor.data_ptr() for tensor in tensors))
    sizes = (c_uint64 * n)(*(tensor.nbytes for tensor in tensors))
    out = (c_uint64 * n)()
    loaded().hash_many(pointers, sizes, out, n, torch.get_num_threads())
    return list(out)
