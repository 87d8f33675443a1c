"""Native helpers on tensors: memory, noise, and content hashes."""

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
