"""A user's own lowerings: of module classes, operators and functions, to torch operations.

Operators are replaced in the captured graph (passes/apply_lowerings.py), whatever called them.
Modules and functions have no node of their own there: they are replaced while the model is traced.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils import _pytree as pytree

from ..passes.apply_lowerings import Lowering, Operator, check_arity, differs
from ..runtime.errors import InputError


@dataclass(slots=True)
class Lowerings:
    """The argument ``lowerings=`` of compile, checked and sorted by kind."""

    operators: dict[Operator, Lowering] = field(default_factory=dict)
    classes: dict[type[nn.Module], Lowering] = field(default_factory=dict)
    functions: dict[Any, Lowering] = field(default_factory=dict)
    """Python functions and autograd.Function classes."""
    asked: dict[Any, str] = field(default_factory=dict)
    """What the user called each key, for messages; an operator's overloads are one key."""
    met: set[Any] = field(default_factory=set)
    """Keys that some capture met."""

    @classmethod
    def of(cls, given: Mapping[Any, Any] | None) -> Lowerings:
        """Check what a user gave; InputError names the key that is wrong."""
        new = cls()
        if given is None:
            return new
        if not isinstance(given, Mapping):
            raise InputError(
                f"lowerings= takes a dict, got {type(given).__name__}",
                fix="lowerings={MyLayer: function} or {torch.ops.my.op.default: function}",
            )
        for key, function in given.items():
            name = key_name(key)
            if not callable(function):
                raise InputError(
                    f"lowerings=: {name} must be lowered by a function, got "
                    f"{type(function).__name__}"
                )
            new._add(key, name, function)
        return new

    def _add(self, key: Any, name: str, function: Lowering) -> None:
        operators = _overloads(key)
        for op in operators:
            self.operators[op] = function
            self.asked[op] = name
        if operators:
            return
        if isinstance(key, type) and issubclass(key, nn.Module):
            if key is nn.Module:
                raise InputError("lowerings=: nn.Module is the class of every module")
            self.classes[key] = function
        elif isinstance(key, types.FunctionType) or _is_autograd(key):
            if key.__module__.partition(".")[0] == "torch":
                raise InputError(
                    f"lowerings=: {name} is a function of torch's own",
                    fix="name the operator that it calls, torch.ops.aten.<name>.default: "
                    "compiled.coverage tells which",
                )
            self.functions[key] = function
        else:
            raise InputError(
                f"lowerings=: {name} cannot be lowered",
                fix="a key is a module class, an operator (torch.ops.my.op.default, or what "
                "torch.library.custom_op returned), or a Python function",
            )
        self.asked[key] = name

    @property
    def traced(self) -> bool:
        """Whether some are of modules or functions, which are replaced while a model is traced."""
        return bool(self.classes or self.functions)

    def check(self, lowered: Iterable[Operator] = ()) -> None:
        """Raise if the model never met a key; ``lowered``: the operators that it met."""
        self.met |= set(lowered)
        missing = {name: None for name in self.asked.values()}
        for key in self.met:
            missing.pop(self.asked.get(key, ""), None)
        if missing:
            raise InputError(
                f"lowerings=: the model never calls {', '.join(missing)}",
                fix="a module class counts for its instances and for subclasses that keep its "
                "forward, in modules, not in an ExportedProgram; compiled.coverage lists operators",
            )

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Replace modules and functions of ``model`` while it is traced."""
        with contextlib.ExitStack() as stack:
            for path, module in model.named_modules() if self.classes else ():
                key = self._class_of(module)
                if key is not None:
                    stack.enter_context(self._forward(path, module, key))
            for key in self.functions:
                stack.enter_context(self._function(key, model))
            yield

    def _class_of(self, module: nn.Module) -> type[nn.Module] | None:
        """The key for ``module``: its nearest class that is one and whose forward it has."""
        kind = type(module)
        return next(
            (k for k in kind.__mro__ if k in self.classes and k.forward is kind.forward), None
        )

    @contextlib.contextmanager
    def _forward(self, path: str, module: nn.Module, key: type[nn.Module]) -> Iterator[None]:
        original = module.forward
        lowering = functools.partial(self.classes[key], module)
        what = f"the lowering of {self.asked[key]}"
        own = module.__dict__.get("forward")
        module.__dict__["forward"] = self._guarded(key, original, lowering, what, path or None)
        try:
            yield
        finally:
            if own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = own

    @contextlib.contextmanager
    def _function(self, key: Any, model: nn.Module) -> Iterator[None]:
        what = f"the lowering of {self.asked[key]}"
        lowering = self.functions[key]
        if _is_autograd(key):
            own = "apply" in key.__dict__
            original = key.apply
            key.apply = staticmethod(self._guarded(key, original, lowering, what, None))
            try:
                yield
            finally:
                if own:
                    key.apply = original
                else:
                    del key.apply
            return
        new = self._guarded(key, key, lowering, what, None)
        changed: list[tuple[dict[str, Any], str]] = []
        for table in _namespaces(model):
            changed += [(table, name) for name, value in list(table.items()) if value is key]
        try:
            for table, name in changed:
                table[name] = new
            yield
        finally:
            for table, name in changed:
                table[name] = key

    def _guarded(
        self,
        key: Any,
        original: Callable[..., Any],
        lowering: Lowering,
        what: str,
        path: str | None,
    ) -> Callable[..., Any]:
        """``lowering`` in place of ``original``, which it may itself call."""
        inside = False

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return original(*args, **kwargs)
            self.met.add(key)
            check_arity(lowering, args, kwargs, what, path)
            inside = True
            try:
                result = lowering(*args, **kwargs)
                difference = _compared(result, original, args, kwargs)
            finally:
                inside = False
            if difference is not None:
                raise InputError(
                    f"lowerings=: {what} returns {difference}",
                    where=path,
                    fix="return what the original returns: same structure, shapes and dtypes",
                )
            return result

        return call


def _compared(
    result: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """How ``result`` differs from what ``original`` returns, if that can be traced at all."""
    mode = detect_fake_mode([*pytree.tree_leaves((args, kwargs)), *pytree.tree_leaves(result)])
    if mode is None:
        return None
    guards = (
        contextlib.nullcontext() if mode.shape_env is None else mode.shape_env.suppress_guards()
    )
    try:
        with disable_proxy_modes_tracing(), guards, torch.no_grad():
            wanted = original(*args, **kwargs)
    except Exception:
        # A body that cannot be traced may be the very reason for the lowering.
        return None
    return differs(result, wanted)


def key_name(key: Any) -> str:
    """How messages call a key of ``lowerings=``."""
    name = getattr(key, "__qualname__", None)
    if isinstance(key, torch._ops.OpOverload | torch._ops.OpOverloadPacket) or name is None:
        return str(getattr(key, "_qualname", None) or key)
    return str(name)


def _overloads(key: Any) -> list[Operator]:
    """The operators that a key stands for: an overload, all of a packet, or a custom_op's."""
    if isinstance(key, torch._ops.OpOverloadPacket):
        return [getattr(key, name) for name in key.overloads()]
    found = getattr(key, "_opoverload", key)
    return [found] if isinstance(found, torch._ops.OpOverload) else []


def _is_autograd(key: Any) -> bool:
    return isinstance(key, type) and issubclass(key, torch.autograd.Function)


def _namespaces(model: nn.Module) -> list[dict[str, Any]]:
    """Where a model's code may look a function up: modules, and the globals of its forwards."""
    loaded = [m for m in list(sys.modules.values()) if isinstance(m, types.ModuleType)]
    tables = {id(m.__dict__): m.__dict__ for m in loaded if not m.__name__.startswith("torch.")}
    for module in model.modules():
        for function in (type(module).forward, module.__dict__.get("forward")):
            table = getattr(_undecorated(function), "__globals__", None)
            if table is not None:
                tables[id(table)] = table
        tables[id(module.__dict__)] = module.__dict__
    return list(tables.values())


def _undecorated(function: Any) -> Any:
    """The function below its decorators."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
