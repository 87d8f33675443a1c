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


def clip_gradient_(gradient: Tensor, x: Tensor, input_range: Tensor) -> Tensor:
    """``gradient *= |x| <= input_range`` in place: zero where the DAC clipped."""
    rows, length, stride = _matrix(gradient)
    if x.shape != gradient.shape:
        raise ValueError(f"gradient {list(gradient.shape)} of an input {list(x.shape)}")
    loaded().clip_gradient(
        gradient.data_ptr(), rows, length, stride, x.data_ptr(), _matrix(x)[2],
        input_range.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return gradient


def normals(rows: int, columns: int, key: int, block: int = 0, call: int = 0) -> Tensor:
    """Standard normal noise of row block ``block``, ``[rows, columns]``."""
    out = new(rows, columns)
    loaded().normals(out.data_ptr(), rows, columns, key, block, call & 0xFFFFFFFF)
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
