"""Decompositions beside torch-mlir's own: into what torch-mlir takes, and machine code computes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import is_contiguous_or_false, make_contiguous_strides_for
from torch.fx.experimental.symbolic_shapes import statically_known_true

aten = torch.ops.aten


def as_strided(x: Tensor, size: Sequence[Any], stride: Sequence[Any], offset: Any = None) -> Any:
    """A view of whole memory in its order is a reshape; a tensor in MLIR has no memory to address.

    Decompositions of torch give other sizes to a result in this way.
    """
    whole = is_contiguous_or_false(x) and _equal([x.numel()], [math.prod(size)])
    start = offset is None or _equal([offset], [x.storage_offset()])
    if whole and start and _equal(stride, make_contiguous_strides_for(tuple(size))):
        return aten.view.default(x, size)
    return NotImplemented


def as_strided_(x: Tensor, size: Sequence[Any], stride: Sequence[Any], offset: Any = None) -> Any:
    """Average pooling lays its result out anew; that is no other value."""
    plain = offset is None and len(size) == x.dim() and all(map(operator.eq, size, x.shape))
    steps = zip(x.shape, x.stride(), stride, strict=True) if plain else ()
    return x if plain and all(n == 1 or a == b for n, a, b in steps) else NotImplemented


def constant_pad_nd(x: Tensor, pad: Sequence[Any], value: Any = 0) -> Any:
    """Padding by a number below zero cuts; ``tensor.pad`` that does so has no form in memory."""
    if not any(isinstance(n, int) and n < 0 for n in pad):
        return NotImplemented
    cuts = [min(n, 0) if isinstance(n, int) else 0 for n in pad]
    for i in range(0, len(pad), 2):
        low, high = -cuts[i], -cuts[i + 1]
        if low or high:
            dim = x.dim() - 1 - i // 2
            x = aten.slice.Tensor(x, dim, low, x.shape[dim] - high)
    rest = [n - cut for n, cut in zip(pad, cuts, strict=True)]
    if all(isinstance(n, int) and n == 0 for n in rest):
        return aten.clone.default(x)
    return aten.constant_pad_nd.default(x, rest, value)


def _equal(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return len(left) == len(right) and all(
        statically_known_true(a == b) for a, b in zip(left, right, strict=True)
    )


TABLE: dict[Any, Callable[..., Any]] = {
    aten.as_strided.default: as_strided,
    aten.as_strided_.default: as_strided_,
    aten.constant_pad_nd.default: constant_pad_nd,
}
"""By operator; NotImplemented leaves it as it is."""
