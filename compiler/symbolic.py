"""Capture by torch.fx symbolic tracing, for models that torch.export alone does not take."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..runtime.errors import InputError


@dataclass(frozen=True, slots=True)
class SymbolicTrace:
    """``capture=`` for ``analogc.compile``: torch.fx traces the model, then torch.export.

    What is left whole is traced by torch.export, so its layers go analog, too.

    Args:
        leaf_modules: modules that fx shall not look into: classes, or paths and globs of paths.
        autowrap_functions: functions that fx shall not look into.
    """

    leaf_modules: Iterable[type[nn.Module] | str] = ()
    autowrap_functions: Iterable[Callable[..., Any]] = ()

    def __post_init__(self) -> None:
        for name in ("leaf_modules", "autowrap_functions"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise InputError(f"SymbolicTrace: {name} must be a sequence, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        for leaf in self.leaf_modules:
            if not isinstance(leaf, str) and not (
                inspect.isclass(leaf) and issubclass(leaf, nn.Module)
            ):
                raise InputError(
                    f"SymbolicTrace: a leaf is a subclass of nn.Module or a path, got {leaf!r}"
                )
        for function in self.autowrap_functions:
            if not callable(function):
                raise InputError(f"SymbolicTrace: {function!r} is no function")

    def trace(self, model: nn.Module) -> fx.GraphModule:
        """The model as a GraphModule on its own submodules."""
        tracer = _Tracer(self)
        graph = tracer.trace(model)
        return fx.GraphModule(tracer.root, graph, type(model).__name__)


class _Tracer(fx.Tracer):
    def __init__(self, how: SymbolicTrace) -> None:
        super().__init__(autowrap_functions=tuple(how.autowrap_functions))
        self._classes = tuple(leaf for leaf in how.leaf_modules if not isinstance(leaf, str))
        self._paths = [leaf for leaf in how.leaf_modules if isinstance(leaf, str)]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether fx leaves ``m`` whole: torch's own modules, and those that the user named."""
        return (
            isinstance(m, self._classes)
            or any(fnmatch.fnmatchcase(module_qualified_name, path) for path in self._paths)
            or super().is_leaf_module(m, module_qualified_name)
        )
