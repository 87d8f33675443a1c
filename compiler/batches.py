"""Calibration data as calls of the model."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

Call = tuple[tuple[Any, ...], dict[str, Any]]


def as_call(item: Any) -> Call:
    """A calibration item as positional and keyword inputs."""
    if isinstance(item, dict):
        return (), item
    if isinstance(item, list | tuple):
        return tuple(item), {}
    return (item,), {}


def cloned(call: Call) -> Call:
    """The same call on copies: a model may write its inputs, and examples are used again."""
    copied: Call = pytree.tree_map_only(Tensor, Tensor.clone, call)
    return copied


class Mapped:
    """``map`` over data that keeps its length, for progress bars."""

    def __init__(self, items: Iterable[Any], fn: Callable[[Any], Any]) -> None:
        self.items = items
        self.fn = fn

    def __iter__(self) -> Iterator[Any]:
        return map(self.fn, self.items)

    def __length_hint__(self) -> int:
        return operator.length_hint(self.items)
