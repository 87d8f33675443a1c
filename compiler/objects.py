"""Objects that hold tensors, such as key/value caches, as inputs and outputs of a graph.

Pytree knows containers and what was registered with it. Any other object is taken as the tensors
and whole numbers in its attributes, in whatever lists, dicts and objects these are; the rest of
its state is part of the structure. A model may change an object that it is given: the graph returns
the state that it left it in, and a call of the compiled model writes that into the caller's own.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.dynamic_shapes import _IntWrapper  # what export has for an int meanwhile
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

Plan = tuple[Any, ...]

_LEAF: Plan = ("leaf",)
_NO_STATE = (
    type, nn.Module, enum.Enum, torch.Generator, torch.ScriptObject, types.FunctionType,
    types.BuiltinFunctionType, types.MethodType, types.ModuleType,
)  # fmt: skip
_registered: set[type] = set()


class Given:
    """In an output, the place of an object that was an input."""

    def __init__(self, index: int) -> None:
        self.index = index


pytree.register_pytree_node(
    Given, lambda given: ([], given.index), lambda _, index: Given(index),
    serialized_type_name="analogc.Given", flatten_with_keys_fn=lambda given: ([], given.index),
)  # fmt: skip


def register_objects(value: Any) -> None:
    """Make the classes of the objects inside ``value`` known to pytree."""
    for leaf in pytree.tree_leaves(value):
        if _is_object(leaf):
            _register(type(leaf))


def objects_in(value: Any) -> list[Any]:
    """The objects inside ``value`` whose classes were registered here, in order."""
    return [o for o in pytree.tree_leaves(value, is_leaf=is_registered) if is_registered(o)]


def is_registered(value: Any) -> bool:
    """True for an object whose class was registered here."""
    return type(value) in _registered


def with_places(value: Any, objects: list[Any]) -> Any:
    """``value`` with a Given in place of each of ``objects``."""
    places = {id(o): i for i, o in enumerate(objects)}
    return pytree.tree_map(
        lambda o: Given(places[id(o)]) if id(o) in places else o,
        value,
        is_leaf=lambda o: id(o) in places,
    )


def with_objects(value: Any, objects: list[Any]) -> Any:
    """``value`` with ``objects`` back in their places."""
    return pytree.tree_map(
        lambda o: objects[o.index] if isinstance(o, Given) else o,
        value,
        is_leaf=lambda o: isinstance(o, Given),
    )


def overwrite(old: Any, new: Any) -> Any:
    """Give ``old``, and the objects and containers in it, the state of ``new``; returns the result.

    What is of another kind than before is replaced.
    """
    if type(old) is not type(new):
        return new
    if isinstance(old, list):
        old[:] = [overwrite(a, b) for a, b in zip(old, new, strict=False)] + new[len(old) :]
        return old
    if isinstance(old, dict):
        state = {k: overwrite(old[k], v) if k in old else v for k, v in new.items()}
        old.clear()
        old.update(state)
        return old
    if is_registered(old) or _is_object(old):
        old.__dict__ = overwrite(vars(old), vars(new))
        return old
    return new


def _is_object(value: Any) -> bool:
    kind = type(value)
    return (
        hasattr(value, "__dict__")
        and kind not in pytree.SUPPORTED_NODES
        and not isinstance(value, (Tensor, *_NO_STATE))
        and kind.__module__.partition(".")[0] not in ("builtins", "torch")
    )


def _register(kind: type) -> None:
    pytree.register_pytree_node(
        kind, _flatten, _unflatten,
        serialized_type_name=f"analogc.{kind.__module__}.{kind.__qualname__}",
        flatten_with_keys_fn=_flatten_with_keys,
    )  # fmt: skip
    fx_pytree.register_pytree_flatten_spec(kind, _flatten_as)
    _registered.add(kind)


def _flatten(value: Any) -> tuple[list[Any], Plan]:
    leaves: list[Any] = []
    return leaves, (type(value), _plan(vars(value), leaves, ()))


def _flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], Plan]:
    leaves, plan = _flatten(value)
    return [(pytree.SequenceKey(i), leaf) for i, leaf in enumerate(leaves)], plan


def _flatten_as(value: Any, spec: pytree.TreeSpec) -> list[Any]:
    leaves, plan = _flatten(value)
    if plan != spec.context:
        raise ValueError(f"the state of a {type(value).__name__} is another one")
    return leaves


def _plan(value: Any, leaves: list[Any], inside: tuple[int, ...]) -> Plan:
    """How ``value`` is put together; its tensors and whole numbers are appended to ``leaves``."""
    kind = type(value)
    if isinstance(value, Tensor | torch.SymInt | _IntWrapper) or kind is int:
        leaves.append(value)
        return _LEAF
    if id(value) in inside:
        return ("constant", value)
    inside = (*inside, id(value))
    if kind in (list, tuple):
        return (kind, tuple(_plan(item, leaves, inside) for item in value))
    if isinstance(value, dict):
        items = tuple(_plan(item, leaves, inside) for item in value.values())
        return (dict, kind, tuple(value), items)
    if is_registered(value) or _is_object(value):
        return ("object", kind, _plan(vars(value), leaves, inside))
    if kind in pytree.SUPPORTED_NODES:
        flat, spec = pytree.tree_flatten(value)
        return ("tree", spec, tuple(_plan(item, leaves, inside) for item in flat))
    return ("constant", value)


def _unflatten(leaves: Any, plan: Plan) -> Any:
    kind, state = plan
    return _object(kind, _build(state, iter(leaves)))


def _object(kind: type, state: dict[str, Any]) -> Any:
    value: Any = object.__new__(kind)
    value.__dict__.update(state)
    return value


def _build(plan: Plan, leaves: Iterator[Any]) -> Any:
    match plan:
        case ("leaf",):
            return next(leaves)
        case ("constant", value):
            return value
        case ("object", kind, state):
            return _object(kind, _build(state, leaves))
        case ("tree", spec, items):
            return pytree.tree_unflatten([_build(item, leaves) for item in items], spec)
        case (_, kind, keys, items):
            values = [_build(item, leaves) for item in items]
            made: dict[Any, Any] = kind()
            made.update(zip(keys, values, strict=True))
            return made
        case (kind, items):
            return kind(_build(item, leaves) for item in items)
    raise AssertionError(f"not a plan: {plan}")
