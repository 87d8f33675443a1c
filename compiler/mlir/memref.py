"""Memref descriptors: how code that the execution engine made takes and gives tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...runtime.errors import UnsupportedError

_DTYPES = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8,
    "i1": torch.bool,
}  # fmt: skip


def dtype_of(tensor_type: Any) -> torch.dtype:
    """Torch's dtype of the elements of an MLIR tensor type."""
    name = str(tensor_type.element_type)
    if name not in _DTYPES:
        raise UnsupportedError(f"tensors of {name} have no way into the execution engine")
    return _DTYPES[name]


@functools.cache
def descriptor(rank: int) -> type[Any]:
    """The C structure of a memref of this rank."""
    fields: list[tuple[str, Any]] = [
        ("allocated", ctypes.c_void_p),
        ("aligned", ctypes.c_void_p),
        ("offset", ctypes.c_int64),
    ]
    if rank:
        fields += [("sizes", ctypes.c_int64 * rank), ("strides", ctypes.c_int64 * rank)]
    return type(f"MemRef{rank}", (ctypes.Structure,), {"_fields_": fields})


def of_tensor(tensor: Tensor) -> Any:
    """Descriptor of a CPU tensor's own memory, which the caller keeps alive."""
    found = descriptor(tensor.dim())()
    found.allocated = found.aligned = tensor.data_ptr()
    found.offset = 0
    if tensor.dim():
        found.sizes[:] = tensor.shape
        found.strides[:] = tensor.stride()
    return found


def shape_of(found: Any) -> tuple[int, ...]:
    """Sizes of a descriptor."""
    return tuple(found.sizes) if hasattr(found, "sizes") else ()


def view(found: Any, dtype: torch.dtype) -> Tensor:
    """A tensor on the memory of a descriptor; valid as long as that is."""
    shape = shape_of(found)
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    strides = tuple(found.strides) if shape else ()
    reach = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    start = found.aligned + found.offset * dtype.itemsize
    memory = (ctypes.c_char * (reach * dtype.itemsize)).from_address(start)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)


def free(found: Sequence[Any], kept: Iterable[Tensor]) -> None:
    """Free the memory of results, which is the caller's; two of them may be one.

    Args:
        found: descriptors of the results.
        kept: tensors whose memory stays, though a result may be in it.
    """
    for address in {at.allocated for at in found} - {value.data_ptr() for value in kept}:
        _FREE(address)


_FREE = ctypes.CDLL(None).free
_FREE.argtypes = [ctypes.c_void_p]
_FREE.restype = None
