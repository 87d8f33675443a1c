"""What the arguments of a module's function stand for, and their values in the live model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from ...passes.derive_weights import HOME
from ...runtime.errors import AccessError, InputError
from ...runtime.mapping import TileMapping
from ...runtime.reference import flat_weight
from ..inspected import Inspected
from ..signature import static_size

Kind = Literal["input", "parameter", "buffer", "derived", "range", "tiles", "scale"]


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of the function."""

    name: str
    """Of the input, parameter or buffer; ``derived.NAME`` for a computed weight (a folded batch
    norm, say), ``ranges.NAME`` for converter ranges, ``tiles.NAME`` and ``scale.NAME`` for what the
    tiles of an array hold."""
    kind: Kind
    shape: tuple[int | None, ...]
    """Sizes; None where any goes."""
    dtype: torch.dtype
    path: str
    """Where the compiled model has it; the number of the flat input."""
    sources: tuple[str, ...] = ()
    """What a derived weight is computed from."""

    def value(self, model: Inspected) -> Tensor:
        """The live tensor, or what the live tensors give now; not of an input.

        Raises:
            InputError: it is on the meta device.
            AccessError: the weights are sealed.
        """
        if model.weight_access == "sealed" and self.kind != "range":
            raise AccessError(f"{self.name}: the weights of the model are sealed")
        return self.live(model)

    def live(self, model: Inspected) -> Tensor:
        """As ``value``, of sealed weights, too: for who computes with it and shows it nobody."""
        if self.kind in ("tiles", "scale"):
            value = _held(model, self.path, self.kind)
        else:
            value = _value(model, self.path, self.kind)
        if value.is_meta:
            raise InputError(
                f"{self.name} is on the meta device: it has no values",
                fix='load the weights, or emit with weights="args"',
            )
        return value.detach()


def input_of(name: str, node: fx.Node, position: int) -> Argument:
    """Argument of an input of the graph."""
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return Argument(name, "input", (), torch.int64, str(position))
    shape = tuple(map(static_size, value.shape))
    return Argument(name, "input", shape, value.dtype, str(position))


def argument_of(model: Inspected, node: fx.Node) -> tuple[Argument, object]:
    """Argument of a weight's node, and what is equal for all nodes of that weight."""
    value, path = node.meta["val"], str(node.target)
    shape = tuple(map(int, value.shape))
    if node.op == "call_module":
        name = "derived." + path.removeprefix(f"{HOME}.derived.")
        sources = tuple(str(arg.target) for arg in node.args if isinstance(arg, fx.Node))
        return Argument(name, "derived", shape, value.dtype, path, sources), path
    tensor = _at(model, path)
    kind: Kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
    if path.startswith(f"{HOME}.ranges."):
        kind = "range"
    name = path.removeprefix(f"{HOME}.")
    return Argument(name, kind, shape, value.dtype, path), id(tensor)


def held_of(node: fx.Node, mapping: TileMapping) -> tuple[Argument, Argument]:
    """Arguments of what the tiles of a layer hold: the normalised weight, and its scale."""
    weight = node.args[1]
    assert isinstance(weight, fx.Node), "a layer has a weight"
    dtype = torch.promote_types(weight.meta["val"].dtype, torch.float32)
    shape, array = mapping.weight_shape, mapping.array
    return (
        Argument(f"tiles.{array}", "tiles", shape, dtype, array),
        Argument(f"scale.{array}", "scale", shape[:1], dtype, array),
    )


def _at(model: Inspected, path: str) -> Any:
    at: Any = model._root
    for part in path.split("."):
        at = getattr(at, part)
    return at


def _value(model: Inspected, path: str, kind: Kind) -> Tensor:
    at = _at(model, path)
    if kind != "derived":
        value: Tensor = at
        return value
    node = model.graph.find_nodes(op="call_module", target=path)[0]
    with torch.no_grad():
        return model._value(node)


def _held(model: Inspected, name: str, kind: Kind) -> Tensor:
    for node, mapping in model._analog_nodes():
        if mapping.array == name:
            weight = model._value(node.args[1], operand=True).detach()
            array = model._ctx.arrays[name]
            held = array.current(weight)
            if kind == "scale":
                return held.scale
            return flat_weight(held, weight.shape, array.spec).view(mapping.weight_shape)
    raise InputError(f"no tile array named {name!r}")
