"""From a model to an fx graph of ATen operators on the model's own tensors, with fake shapes."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim, ExportedProgram
from torch.nn.utils import prune
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from ..passes.derive_weights import add_constant
from ..passes.emit import fake_mode
from ..passes.inline_regions import writes
from ..runtime.errors import InputError, UnsupportedError
from . import checkpointing, standins
from .holder import Holder, modules_of
from .home import Home, home_of, moved
from .lowerings import Lowerings
from .objects import is_registered, objects_in, register_objects, with_places
from .signature import (
    ConstantLeaf,
    Leaf,
    NumberLeaf,
    Signature,
    TensorLeaf,
    register_dataclasses,
    static_size,
)
from .symbolic import SymbolicTrace

Method = Literal["auto", "export", "symbolic_trace", "dynamo"] | SymbolicTrace
_METHODS = ("auto", "export", "symbolic_trace", "dynamo")
_TALKERS = (
    "torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes",
    "torch._export.non_strict_utils",
)  # fmt: skip
_FLAT_WEIGHTS = (
    r"The tensor attributes? (self[\w.]*\._flat_weights\[\d+\](, )?)+ (was|were) assigned"
)
_OF_MEMORY = re.compile(r"\.(stride|storage_offset)\(\)")
_ASSERTION = torch.ops.aten._assert_tensor_metadata.default
_STDLIB = str(Path(inspect.__file__).parent)


BY_DYNAMO = ", or let dynamo cut the model there: compile(..., capture='dynamo')"


class ExportError(UnsupportedError):
    """torch.export cannot capture the model; dynamo, which may cut it into graphs, might."""


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


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph with flat inputs and outputs, and how to call it."""

    module: fx.GraphModule
    signature: Signature
    guards: str | None = None
    """What the graph relies on of the sizes of its inputs, as torch's ShapeEnv writes it."""


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


def capture(source: Source, root: Holder) -> Captured:
    """Capture ``source`` in the mode that ``root`` is in.

    The graph's ``get_attr`` nodes refer to ``root``. Dead code is gone.

    Raises:
        UnsupportedError: the model cannot be captured; says where and what to do.
    """
    model = source.model
    if isinstance(model, ExportedProgram):
        exported = model
    else:
        with in_mode_of(model, root), source.lowerings.applied(model):
            exported = _export(model, source)
    try:
        module = exported.module(check_guards=False)
    except (RuntimeError, SyntaxError) as err:
        # torch cannot hold a submodule whose name is one of GraphModule's own attributes, or a
        # keyword.
        raise UnsupportedError(
            f"torch.export cannot hold this model's names: {err}",
            fix="rename the submodule: it cannot have a keyword's name, nor be called graph or "
            "code, which a GraphModule has itself",
        ) from err
    assert isinstance(module, fx.GraphModule), "export makes a GraphModule"
    info = module.graph._codegen.pytree_info  # type: ignore[attr-defined]
    in_spec, out_spec = info.in_spec, info.out_spec
    module._forward_pre_hooks.clear()
    checkpointing.mark(module)
    _drop_assertions(module)
    # A no_grad block that only writes has no users.
    module.graph.eliminate_dead_code(lambda node: node.is_impure() or writes(node, module))
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    _attach(module, root)
    _complete_fake_tensors(module, root)
    signature = _signature(module.graph, in_spec, out_spec, source)
    module.recompile()
    return Captured(module, signature, _guards(module.graph))


def _drop_assertions(module: nn.Module) -> None:
    """Let values have another dtype than in the trace: under autocast, and after ``.to(dtype)``."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.find_nodes(op="call_function", target=_ASSERTION):
                part.graph.erase_node(node)


@contextlib.contextmanager
def in_mode_of(model: nn.Module, root: Holder) -> Iterator[None]:
    """Put ``model`` in the mode of its holders, for the time of the capture."""
    modules, wanted = modules_of(model), modules_of(root)
    before = [module.training for module in modules]
    try:
        for module, holder in zip(modules, wanted, strict=True):
            module.training = holder.training
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


def _export(model: nn.Module, source: Source) -> ExportedProgram:
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
        raise _explain(err, model) from err
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


def _explain(err: Exception, model: nn.Module) -> Exception:
    """An error of analogc's own for an error inside torch.export."""
    if isinstance(err, InputError | UnsupportedError):
        return err
    where = user_line(err)
    text = str(err).strip()
    first = text.splitlines()[0] if text else type(err).__name__
    low = text.lower()
    if _has_packed_sequence(err):
        return UnsupportedError(
            "a recurrent layer gets a packed sequence, whose batch sizes a graph cannot hold",
            where=where,
            fix="give it the padded tensor, without pack_padded_sequence, and mask what it returns "
            "after the end of each sequence",
        )
    if "constraints violated" in low:
        marked = next((t for t in text.splitlines() if "You marked" in t), first)
        return UnsupportedError(
            f"the model fixes a size that dynamic_shapes= leaves open: {marked.strip(' -')}",
            where=where,
            fix="leave that dim out of dynamic_shapes=, or use Dim.AUTO; a recurrent layer has a "
            "fixed number of time steps",
        )
    if "data-dependent" in low or "datadependent" in type(err).__name__.lower():
        return ExportError(
            f"a Python branch depends on tensor values, which a graph cannot hold: {first}",
            where=where,
            fix=f"use torch.where or torch.cond in place of the Python `if`{BY_DYNAMO}",
        )
    if "scriptmodule" in low.replace(" ", "") or "torchscript" in low:
        return UnsupportedError(
            f"part of the model is a TorchScript module: {first}",
            where=where,
            fix="replace it by the nn.Module that it was made from",
        )
    if isinstance(err, fx.proxy.TraceError):
        return UnsupportedError(
            f"torch.fx could not trace {type(model).__name__}: {first}",
            where=where,
            fix="leave the module or function that does it whole: "
            "capture=SymbolicTrace(leaf_modules=..., autowrap_functions=...)",
        )
    return ExportError(
        f"torch.export could not capture {type(model).__name__}: {type(err).__name__}: {first}",
        where=where,
        fix="check that model(*example_inputs) runs; torch.export.export(model, example_inputs) "
        "shows the full error",
    )


def _has_packed_sequence(err: BaseException) -> bool:
    frames = traceback.walk_tb(err.__traceback__)
    return any(isinstance(v, PackedSequence) for f, _ in frames for v in f.f_locals.values())


def user_line(err: BaseException) -> str | None:
    """``file:line: code`` of the user's code that raised ``err``, if it did."""
    frames = [f for f in traceback.extract_tb(err.__traceback__) if is_user_file(f.filename)]
    if not frames:
        return None
    last = frames[-1]
    return f"{last.filename}:{last.lineno}" + (f": {last.line}" if last.line else "")


def is_user_file(name: str) -> bool:
    """Whether a source file is neither torch's, nor Python's, nor analogc's."""
    if name.startswith("<") or (name.startswith(_STDLIB) and "/site-packages/" not in name):
        return False
    home = str(Path(__file__).resolve().parent)
    return not name.startswith(home) and not any(p in name for p in ("/torch/", "/analogc/"))


def _attach(module: fx.GraphModule, root: Holder) -> None:
    """Point get_attr nodes at ``root``; what it does not hold becomes a constant of it."""
    moved: dict[int, str] = {}
    # A tied tensor goes by its first name, as in named_parameters().
    first = {id(value): name for name, value in _tensors(root)}
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        value = _resolve(module, node.target)
        if id(value) in first:
            node.target = first[id(value)]
            continue
        if id(value) not in moved:
            moved[id(value)] = add_constant(root, node.target, value)
        node.target = moved[id(value)]
    module.graph.owning_module = root  # type: ignore[assignment]
    module._modules = root._modules
    module._parameters = root._parameters
    module._buffers = root._buffers


def _tensors(root: Holder) -> Iterator[tuple[str, Tensor]]:
    yield from root.named_parameters()
    yield from root.named_buffers()


def _resolve(module: nn.Module, path: str) -> Any:
    at: Any = module
    for part in path.split("."):
        at = getattr(at, part, None)
    return at


def _complete_fake_tensors(module: fx.GraphModule, root: Holder) -> None:
    mode = fake_mode(module.graph)
    known: dict[int, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and "val" not in node.meta:
            value = _resolve(root, node.target)
            if isinstance(value, Tensor):
                if id(value) not in known:
                    known[id(value)] = mode.from_tensor(value, static_shapes=True)
                value = known[id(value)]
            node.meta["val"] = value


def _is_number(value: Any) -> bool:
    """True for a whole number that may vary."""
    return isinstance(value, torch.SymInt) and static_size(value) is None


def _guards(graph: fx.Graph) -> str | None:
    values = (node.meta.get("val") for node in graph.nodes if node.op == "placeholder")
    inputs = [v for v in values if isinstance(v, FakeTensor) or _is_number(v)]
    env = fake_mode(graph).shape_env
    if env is None:
        return None
    text: str | None = env.produce_guards_expression(inputs, ignore_static=True)
    # Operators do not mind how an input lies in memory, and caches come as views.
    parts = [part for part in (text or "").split(" and ") if not _OF_MEMORY.search(part)]
    return " and ".join(parts) or None


def _signature(
    graph: fx.Graph, in_spec: pytree.TreeSpec, out_spec: pytree.TreeSpec, source: Source
) -> Signature:
    leaves: list[Leaf] = []
    names: list[str] = []
    examples = pytree.tree_leaves((source.args, source.kwargs))
    for i, node in enumerate(n for n in graph.nodes if n.op == "placeholder"):
        value = node.meta.get("val")
        names.append(str(node.target))
        if _is_number(value):
            leaves.append(NumberLeaf())
            continue
        if isinstance(value, Tensor):
            shape = tuple(map(static_size, value.shape))
            leaves.append(TensorLeaf(shape, value.dtype))
        else:
            leaves.append(ConstantLeaf(examples[i] if i < len(examples) else value))
    parameters = None
    if isinstance(source.model, nn.Module) and not isinstance(source.model, fx.GraphModule):
        parameters = inspect.signature(source.model.forward)
    given = pytree.tree_unflatten(examples, in_spec) if len(examples) == len(leaves) else ()
    writes = isinstance(source.model, nn.Module) and bool(objects_in(given))
    return Signature.make(in_spec, out_spec, tuple(leaves), tuple(names), parameters, writes)
