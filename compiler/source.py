"""What a model is compiled from: the model, its example inputs and how they are captured."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from ..runtime.errors import InputError, UnsupportedError
from .home import Home, home_of, moved
from .lowerings import Lowerings
from .symbolic import SymbolicTrace

Method = Literal["auto", "export", "symbolic_trace", "dynamo"] | SymbolicTrace
_METHODS = ("auto", "export", "symbolic_trace", "dynamo")


@dataclass(slots=True)
class Source:
    """What graphs are captured from; kept, so that the other mode can be captured on demand."""

    model: nn.Module | ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any = None
    method: Method = "auto"
    lowerings: Lowerings = field(default_factory=Lowerings)
    home: Home | None = None
    """Where the model lived when it was compiled, and its inputs with it."""

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example inputs, where the model lives now."""
        if self.home is None or not isinstance(self.model, nn.Module):
            return self.args, self.kwargs
        args, kwargs = moved((self.args, self.kwargs), self.home, home_of(self.model))
        return args, kwargs

    @property
    def fixed(self) -> bool:
        """True if the mode is frozen: an ExportedProgram has one graph only."""
        return isinstance(self.model, ExportedProgram)


def module_of(source: Source) -> nn.Module:
    """The module whose tensors the graphs use."""
    if not isinstance(source.model, ExportedProgram):
        return source.model
    module = source.model.module(check_guards=False)
    # Export forgets the mode that it froze; its operators know it.
    training = any(map(_is_training, source.model.graph.nodes))
    for part in module.modules():
        part.training = training
    return module


def _is_training(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    flags = [i for i, arg in enumerate(node.target._schema.arguments)
             if arg.name in ("train", "training")]  # fmt: skip
    return any(i < len(node.args) and node.args[i] is True for i in flags)


def check_source(source: Source) -> None:
    """Raise for what can be seen without tracing: wrong types, ScriptModules."""
    model = source.model
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedError(
            f"{type(model).__name__} is a TorchScript module, which torch.export cannot capture",
            fix="pass the nn.Module that it was made from; for a file saved by torch.jit, define "
            "the module in Python and load the state_dict of the scripted one",
        )
    if not isinstance(model, nn.Module | ExportedProgram):
        raise InputError(
            f"model must be an nn.Module, GraphModule or ExportedProgram, got "
            f"{type(model).__name__}",
            fix="call it in the forward of an nn.Module that holds the parameters; a function goes "
            "as it is with torch.compile(function, backend='analogc')"
            if callable(model)
            else None,
        )
    for path, part in [] if isinstance(model, ExportedProgram) else model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise UnsupportedError(
                f"submodule {path!r} is a TorchScript module, which torch.export cannot capture",
                where=f"module {path}",
                fix="replace it by the nn.Module that it was made from",
            )
        if _is_distributed(part):
            raise UnsupportedError(
                f"{f'submodule {path!r}' if path else 'the model'} is wrapped by "
                f"{type(part).__name__}, which owns its parameters and its forward",
                where=f"module {path}" if path else None,
                fix="compile the module inside, model.module of a DistributedDataParallel, and "
                "wrap the compiled model",
            )
    _check_devices(model)
    if not isinstance(source.args, tuple):
        raise InputError(
            f"example_inputs must be a tuple of inputs, got {type(source.args).__name__}",
            fix="compile(model, (x,))",
        )
    if not isinstance(source.method, SymbolicTrace) and source.method not in _METHODS:
        known = ", ".join(map(repr, _METHODS))
        raise InputError(f"capture must be {known} or a SymbolicTrace, got {source.method!r}")
    if source.method not in ("auto", "export") and source.fixed:
        raise InputError(f"capture={source.method!r} needs a module, not an ExportedProgram")


def _is_distributed(module: nn.Module) -> bool:
    return isinstance(module, nn.DataParallel) or any(
        kind.__module__.startswith(("torch.distributed.fsdp", "torch.nn.parallel.distributed"))
        for kind in type(module).__mro__
    )


def _check_devices(model: nn.Module | ExportedProgram) -> None:
    found: dict[bool, str] = {}
    for name, value in model.named_parameters():
        found.setdefault(value.is_meta, name)
    if len(found) > 1:
        raise UnsupportedError(
            f"parameter {found[True]!r} is on the meta device, {found[False]!r} is not",
            fix="load all weights, or move the whole model: model.to('meta')",
        )


def warn_of_backward_hooks(model: nn.Module | ExportedProgram) -> None:
    """Warn of hooks that a graph does not call: they could change gradients."""
    parts = [] if isinstance(model, ExportedProgram) else model.named_modules()
    named = [path or "the model" for path, m in parts if m._backward_hooks or m._backward_pre_hooks]
    if named:
        warnings.warn(
            f"backward hooks of modules are not called in a compiled model: {', '.join(named)}. "
            "Use hooks of tensors (parameter.register_hook), or compile(..., capture='dynamo')",
            stacklevel=3,
        )
