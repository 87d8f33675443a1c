"""Where a model's tensors live: a graph is captured for one device and one dtype.

Export writes both into the graph (``arange(device=...)``, ``.to(x.dtype)``, ``finfo(dtype).min``),
so a model that moves is captured again, with example inputs that moved along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True, slots=True)
class Home:
    """Device and dtype of a model, read off its first floating parameter."""

    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} on {self.device}"


Place = tuple[Mapping[str, Any], str, Home]


def place_of(model: nn.Module) -> Place | None:
    """The first floating parameter of ``model``: its table, its name there, and its home."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None and value.is_floating_point():
                return module._parameters, name, Home(value.device, value.dtype)
    return None


def home_of(model: nn.Module) -> Home | None:
    """Where ``model`` lives; None if it has no floating parameter."""
    place = place_of(model)
    return None if place is None else place[2]


def on_meta(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that have no memory yet."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, value in tensors if value.is_meta]


def is_real(inputs: Any) -> bool:
    """Whether every tensor of ``inputs`` has memory."""
    leaves = pytree.tree_leaves(inputs)
    return not any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves)


def moved(inputs: Any, old: Home | None, new: Home | None) -> Any:
    """``inputs`` that fitted a model at ``old``, for the same model at ``new``.

    Inputs without memory become zeros where the model has memory: good for a capture only.
    """
    if old is None or new is None:
        return inputs

    def move(value: Tensor) -> Tensor:
        if value.is_floating_point() and value.dtype == old.dtype != new.dtype:
            value = value.to(new.dtype)
        if value.device == new.device:
            return value
        if value.is_meta:
            return torch.zeros_like(value, device=new.device)
        if new.device.type == "meta" or value.device == old.device:
            return value.to(new.device)
        return value

    return pytree.tree_map_only(Tensor, move, inputs)
