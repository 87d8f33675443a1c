"""torch.export of a model, with the dynamic shapes, modes and patches that it needs."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils import prune
from torch.utils import _pytree as pytree

from ..runtime.errors import InputError, UnsupportedError
from . import checkpointing, standins
from .export_errors import explain
from .objects import is_registered, objects_in, register_objects, with_places
from .signature import register_dataclasses, static_size
from .source import Source
from .symbolic import SymbolicTrace

_TALKERS = (
    "torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes",
    "torch._export.non_strict_utils",
)  # fmt: skip
_FLAT_WEIGHTS = (
    r"The tensor attributes? (self[\w.]*\._flat_weights\[\d+\](, )?)+ (was|were) assigned"
)


def export(model: nn.Module, source: Source) -> ExportedProgram:
    """``model``, which is the module of ``source``, as torch.export captures it.

    Raises:
        ExportError: it cannot; dynamo might.
        UnsupportedError: nor could dynamo.
    """
    args, kwargs = source.inputs()
    _register((args, kwargs))
    bound = _bind(model, args, kwargs)
    shapes = source.dynamic_shapes
    if shapes == "batch":
        args, kwargs = pytree.tree_map(_at_least_two, (args, kwargs))
        shapes = {name: _shapes(value, _first_dim) for name, value in bound.items()}
    elif shapes == "auto":
        shapes = {name: _shapes(value, _every_dim) for name, value in bound.items()}
    elif isinstance(shapes, str):
        raise InputError(
            f"dynamic_shapes must be 'batch', 'auto' or as for torch.export, got {shapes!r}"
        )
    hook = model.register_forward_hook(_with_objects, with_kwargs=True)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    # The fused encoder layer hides its linears from the graph.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        traced = model
        if source.method == "symbolic_trace":
            traced = SymbolicTrace().trace(model)
        elif isinstance(source.method, SymbolicTrace):
            traced = source.method.trace(model)
        with (
            quiet(model), _without_partial_graph(), _all_named(traced, bound),
            checkpointing.in_sight(), standins.in_place(model),
        ):  # fmt: skip
            exported = torch.export.export(
                traced, args, kwargs, dynamic_shapes=shapes, strict=False
            )
    except Exception as err:
        raise explain(err, model) from err
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        hook.remove()
    if source.dynamic_shapes == "batch" and not _has_dynamic_input(exported):
        raise UnsupportedError(
            "dynamic_shapes='batch': the model fixes the size of its first dim",
            fix="remove the fixed size from the model (for example view(-1, ...) in place of "
            "view(8, ...)), or compile without dynamic_shapes",
        )
    return exported


def _register(value: Any) -> None:
    register_dataclasses(value)
    register_objects(value)


def _with_objects(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
) -> tuple[Any, list[Any]] | None:
    """What the graph returns: the output, and the objects among the inputs as the model left them.

    None if it is the output itself.
    """
    _register(out)
    objects = objects_in((args, kwargs))
    return (with_places(out, objects), objects) if objects else None


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Keep torch from logging what is raised as an error anyway; TORCH_LOGS still works."""
    loggers = [logging.getLogger(name) for name in _TALKERS]
    for logger in loggers:
        logger.addFilter(_is_no_complaint)
    try:
        with warnings.catch_warnings():
            # Export takes the list in which torch's own LSTM and GRU keep their parameters for
            # tensors that the model forgot to register.
            warnings.filterwarnings("ignore", _FLAT_WEIGHTS, UserWarning)
            # It looks at the gradients of inputs that another computation made, such as a cache.
            warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor", UserWarning)
            # What torch's own control flow does when it is traced.
            warnings.filterwarnings("ignore", ".torch.jit", DeprecationWarning)
            if prune.is_pruned(model):
                # Its hooks assign the masked weight; the graph holds the product.
                warnings.filterwarnings("ignore", "The tensor attribute", UserWarning)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_no_complaint)


@contextlib.contextmanager
def _without_partial_graph() -> Iterator[None]:
    """Keep torch.export from printing the graph that it has when it fails."""
    said, graph = io.StringIO(), None
    try:
        with contextlib.redirect_stderr(said):
            yield
    except Exception as err:
        graph = getattr(err, "partial_fx_graph", None)
        raise
    finally:
        sys.stderr.write(said.getvalue().replace(f"{graph}\n", ""))


def _is_no_complaint(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING


@contextlib.contextmanager
def _all_named(model: nn.Module, given: dict[str, Any]) -> Iterator[None]:
    """Let the model's signature name what its ``**kwargs`` are ``given``.

    Export counts dynamic shapes once with these in a dict of their own, and once without.
    """
    signature = inspect.signature(model.forward)
    rest = _keyword_rest(signature)
    extra = [name for name in given if name not in signature.parameters]
    if rest is None or not extra:
        yield
        return
    own, before = model.forward, vars(model).get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in extra]
    kept = [p for p in signature.parameters.values() if p is not rest]
    flat = signature.replace(parameters=[*kept, *named])
    forward.__signature__ = flat  # type: ignore[attr-defined]
    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if before is not None:
            model.forward = before


def _keyword_rest(signature: inspect.Signature) -> inspect.Parameter | None:
    kinds = signature.parameters.values()
    return next((p for p in kinds if p.kind is inspect.Parameter.VAR_KEYWORD), None)


def _at_least_two(value: Any) -> Any:
    # Export takes a dim of size 1 for a constant.
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1:
        return torch.cat([value, value])
    return value


def _bind(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the model's forward, those of its ``**kwargs`` among them."""
    try:
        signature = inspect.signature(model.forward)
        bound = dict(signature.bind(*args, **kwargs).arguments)
    except (TypeError, ValueError) as err:
        raise InputError(f"example inputs do not fit the model's forward: {err}") from None
    rest = _keyword_rest(signature)
    bound.update(bound.pop(rest.name, {}) if rest is not None else {})
    return bound


def _shapes(value: Any, of_leaf: Callable[[Any], Any]) -> Any:
    """``of_leaf`` of each leaf, in the structure that torch.export wants dynamic shapes in."""
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_shapes(item, of_leaf) for item in value)
    if type(value) is dict:
        return {name: _shapes(item, of_leaf) for name, item in value.items()}
    node = pytree.SUPPORTED_NODES.get(type(value))
    if node is not None:
        if is_registered(value) and of_leaf is _every_dim:
            of_leaf = _every_size
        return [_shapes(item, of_leaf) for item in node.flatten_fn(value)[0]]
    return of_leaf(value)


def _first_dim(value: Any) -> Any:
    return {0: Dim.AUTO} if isinstance(value, Tensor) and value.dim() else None


def _every_dim(value: Any) -> Any:
    return dict.fromkeys(range(value.dim()), Dim.AUTO) if isinstance(value, Tensor) else None


def _every_size(value: Any) -> Any:
    """Of a leaf of an object: how often a cache was written may vary, too."""
    return Dim.AUTO if type(value) is int else _every_dim(value)


def _has_dynamic_input(exported: ExportedProgram) -> bool:
    return any(
        static_size(size) is None
        for node in exported.graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)
        for size in node.meta["val"].shape
    )
