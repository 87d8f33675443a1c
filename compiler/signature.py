"""How a compiled model is called: as the model was, checked against what it was captured with."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from ..runtime.errors import InputError
from .objects import objects_in, overwrite, with_objects


@dataclass(frozen=True, slots=True)
class TensorLeaf:
    """What a tensor input must look like."""

    shape: tuple[int | None, ...]
    """Sizes; None where any size goes."""
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class ConstantLeaf:
    """An input that is no tensor; the graph was captured for this value."""

    value: Any


@dataclass(frozen=True, slots=True)
class NumberLeaf:
    """A whole number; the graph takes any."""


Leaf = TensorLeaf | ConstantLeaf | NumberLeaf


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of a captured graph."""

    in_spec: pytree.TreeSpec
    """Of ``(args, kwargs)``."""
    out_spec: pytree.TreeSpec
    leaves: tuple[Leaf, ...]
    names: tuple[str, ...]
    """Of the leaves, for messages."""
    simple: bool
    """True if the inputs are plain positional tensors."""
    single: bool
    """True if the output is one tensor."""
    parameters: inspect.Signature | None = None
    """Of the model's own forward, if it had one."""
    writes_objects: bool = False
    """True if the output is a pair: the model's own, and the state that it left the objects among
    its inputs in."""

    @classmethod
    def make(
        cls,
        in_spec: pytree.TreeSpec,
        out_spec: pytree.TreeSpec,
        leaves: tuple[Leaf, ...],
        names: tuple[str, ...],
        parameters: inspect.Signature | None = None,
        writes_objects: bool = False,
    ) -> Signature:
        """Signature with the derived fields filled in."""
        args, kwargs = in_spec.children()
        simple = (
            kwargs.num_leaves == 0
            and all(child.is_leaf() for child in args.children())
            and all(isinstance(leaf, TensorLeaf) for leaf in leaves)
        )
        single = out_spec.is_leaf()
        return cls(in_spec, out_spec, leaves, names, simple, single, parameters, writes_objects)

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """Flat inputs of the graph.

        Raises:
            InputError: they do not fit what the model was compiled for.
        """
        if self.simple and not kwargs and len(args) == len(self.leaves):
            flat: Sequence[Any] = args
        else:
            flat = self._spread(args, kwargs)
        for i, leaf in enumerate(self.leaves):
            if not _fits(flat[i], leaf):
                raise self._misfit(i, flat[i], leaf)
        return flat

    def unflatten(self, flat: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Outputs in the model's own structure; objects among the inputs get their state."""
        if self.single:
            return flat[0]
        result = pytree.tree_unflatten(list(flat), self.out_spec)
        if not self.writes_objects:
            return result
        result, states = result
        given = objects_in(self._bound(args, kwargs))
        for old, new in zip(given, states, strict=True):
            overwrite(old, new)
        return with_objects(result, given)

    def _bound(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as they were given when the graph was captured: by place or by name."""
        want_args, want_kwargs = self.in_spec.children()
        names = list(want_kwargs.context or ())
        if len(args) != want_args.num_children or set(kwargs) != set(names):
            args, kwargs = self._rebind(args, kwargs, want_args.num_children, names)
        return args, {name: kwargs[name] for name in names}

    def _spread(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        args, kwargs = self._bound(args, kwargs)
        wrong = "inputs are not structured as at compile time"
        fix = f"it was compiled for {self.in_spec}"
        try:
            flat = list(fx_pytree.tree_flatten_spec((args, kwargs), self.in_spec))
        except Exception as err:
            raise InputError(f"{wrong}: {err}", fix=fix) from None
        # The flattening above passes over keys that it does not know.
        given = len(pytree.tree_leaves((args, kwargs)))
        if given != len(flat):
            raise InputError(f"{wrong}: {given} values in place of {len(flat)}", fix=fix)
        return flat

    def _rebind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], positional: int, names: list[str]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def wrong() -> InputError:
            return InputError(
                f"called with {len(args)} positional arguments and keywords {sorted(kwargs)}",
                fix=f"it was compiled for {positional} positional arguments and keywords {names}",
            )

        if self.parameters is None:
            raise wrong()
        try:
            bound = self.parameters.bind(*args, **kwargs)
        except TypeError as err:
            raise InputError(
                f"wrong arguments: {err}", fix=f"the model takes {self.parameters}"
            ) from None
        given = dict(bound.arguments)
        order = list(self.parameters.parameters.values())
        if any(p.kind is p.VAR_POSITIONAL for p in order):
            raise wrong()
        for p in order:
            if p.kind is p.VAR_KEYWORD:
                given.update(given.pop(p.name, {}))
        wanted = [p.name for p in order[:positional]] + names
        for name in wanted:
            if name not in given:
                default = self.parameters.parameters.get(name)
                if default is None or default.default is inspect.Parameter.empty:
                    raise wrong()
                given[name] = default.default
        for name in list(given):
            if name not in wanted:
                value, unused = given.pop(name), self.parameters.parameters.get(name)
                if unused is None or not _same(value, unused.default):
                    raise InputError(
                        f"argument {name!r} was not given when the model was compiled",
                        fix=f"compile with it: compile(model, ..., kwargs={{{name!r}: ...}})",
                    )
        return (
            tuple(given[p.name] for p in order[:positional]),
            {name: given[name] for name in names},
        )

    def _misfit(self, i: int, value: Any, leaf: Leaf) -> InputError:
        name = self.names[i]
        if isinstance(leaf, ConstantLeaf):
            return InputError(
                f"input {name!r} is {value!r}, but the graph was captured for {leaf.value!r}",
                fix="compile once more with this value",
            )
        if isinstance(leaf, NumberLeaf):
            return InputError(f"input {name!r} must be a whole number, got {value!r}")
        if not isinstance(value, Tensor):
            return InputError(f"input {name!r} must be a tensor, got {type(value).__name__}")
        if value.dtype.is_floating_point != leaf.dtype.is_floating_point:
            return InputError(
                f"input {name!r} has dtype {value.dtype}, but the graph was captured for "
                f"{leaf.dtype}",
                fix=f"convert it with .to({leaf.dtype}), or compile with such an input",
            )
        shape = ", ".join("any" if size is None else str(size) for size in leaf.shape)
        fix = "compile with an input of this shape"
        if len(value.shape) == len(leaf.shape) and leaf.shape and leaf.shape[0] is not None:
            fix = "compile with dynamic_shapes='batch' (or with an input of this shape)"
        return InputError(
            f"input {name!r} has shape {list(value.shape)}, but the graph was captured for "
            f"[{shape}]",
            fix=fix,
        )


def static_size(size: int | torch.SymInt) -> int | None:
    """The number that a size is, or None where any goes; export may write a number as a symbol."""
    return size if isinstance(size, int) else size.node.maybe_as_int()


def _fits(value: Any, leaf: Leaf) -> bool:
    if isinstance(leaf, ConstantLeaf):
        return _same(value, leaf.value)
    if isinstance(leaf, NumberLeaf):
        return isinstance(value, int | torch.SymInt)
    if not isinstance(value, Tensor) or value.dim() != len(leaf.shape):
        return False
    for have, want in zip(value.shape, leaf.shape, strict=True):
        if want is not None and have != want:
            return False
    # The dtype of floating inputs may follow the model (.double(), .to(bfloat16)); torch's own
    # operators check it against the weights.
    return value.dtype.is_floating_point == leaf.dtype.is_floating_point


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b))


def register_dataclasses(value: Any) -> None:
    """Make the dataclasses inside ``value`` known to pytree, so that they survive a capture."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        if kind not in pytree.SUPPORTED_NODES:
            torch.export.register_dataclass(kind)
        for f in dataclasses.fields(value):
            register_dataclasses(getattr(value, f.name))
    elif isinstance(value, dict):
        for item in value.values():
            register_dataclasses(item)
    elif isinstance(value, list | tuple):
        for item in value:
            register_dataclasses(item)
