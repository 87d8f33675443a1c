"""From a model to an fx graph of ATen operators on the model's own tensors, with fake shapes."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..passes.derive_weights import add_constant
from ..passes.emit import fake_mode
from ..passes.inline_regions import writes
from ..runtime.errors import UnsupportedError
from . import checkpointing
from .export import export
from .holder import Holder, modules_of
from .objects import objects_in
from .signature import ConstantLeaf, Leaf, NumberLeaf, Signature, TensorLeaf, static_size
from .source import Source

_OF_MEMORY = re.compile(r"\.(stride|storage_offset)\(\)")
_ASSERTION = torch.ops.aten._assert_tensor_metadata.default


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph with flat inputs and outputs, and how to call it."""

    module: fx.GraphModule
    signature: Signature
    guards: str | None = None
    """What the graph relies on of the sizes of its inputs, as torch's ShapeEnv writes it."""


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
            exported = export(model, source)
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
