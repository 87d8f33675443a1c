"""Operands without memory: what stands for a computed weight that the tiles already hold.

A stand-in has a weight's shape, dtype and device and the memory of one element. Whoever needs the
numbers asks ``resolve``, which computes them anew; a layer whose tiles are current never does. So
a folded weight exists once, in the tiles.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor


class StandIn:
    """Stands for one state of a computed weight. ``tensor`` is the operand.

    Args:
        like: gives shape, dtype and device.
        compute: gives the numbers.
        first: the numbers, where they are at hand; let go of when they were asked for once.
        channels_last: whether the weight's memory would be laid out so.
    """

    def __init__(
        self,
        like: Tensor,
        compute: Callable[[], Tensor],
        first: Tensor | None = None,
        channels_last: bool = False,
    ) -> None:
        # NaN, so that use as an ordinary tensor shows.
        one = torch.full((1,), torch.nan, dtype=like.dtype, device=like.device)
        self.tensor = one.as_strided(like.shape, [0] * like.dim())
        self.channels_last = channels_last
        self._compute = compute
        self._first = first
        _ALIVE[self.tensor.data_ptr()] = self

    def value(self) -> Tensor:
        """The numbers."""
        first, self._first = self._first, None
        return self._compute() if first is None else first


_ALIVE: weakref.WeakValueDictionary[int, StandIn] = weakref.WeakValueDictionary()


def find(tensor: Tensor) -> StandIn | None:
    """The stand-in whose operand ``tensor`` is or aliases; None for an ordinary tensor."""
    if tensor.dim() == 0 or any(tensor.stride()):
        return None
    try:
        address = tensor.data_ptr()
    except RuntimeError:  # a fake tensor has no memory
        return None
    return _ALIVE.get(address)


def resolve(tensor: Tensor) -> Tensor:
    """What ``tensor`` stands for; itself if it is an ordinary tensor."""
    found = find(tensor)
    return tensor if found is None else found.value()
