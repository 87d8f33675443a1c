"""From a graph that dynamo captured to ATen operators on the tensors of a model.

Dynamo gives parameters and buffers as inputs of its graph, and uses one graph for several modules
with the same code. So a Template leaves open whose tensors they are; ``bind`` puts names in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import CompileContext, TracingContext
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.fx.traceback import preserve_node_meta
from torch.utils import _pytree as pytree

from ..passes.base import source_line
from ..passes.derive_weights import add_constant
from ..runtime.errors import UnsupportedError
from ..runtime.regions import kept_modes
from .export_errors import first_line, user_line
from .holder import Holder
from .signature import ConstantLeaf, Leaf, Signature, TensorLeaf, static_size

_AUTOCAST = torch.amp.autocast_mode._enter_autocast
_CHECKPOINT = torch.ops.higher_order.tag_activation_checkpoint
_VARIABLE = re.compile(r"^[LG]\['(\w+)'\]$")
_STEP = re.compile(r"_(?:modules|parameters|buffers)\['([^']+)'\]")


@dataclass(frozen=True, slots=True)
class Template:
    """A graph of ATen operators whose weights are inputs."""

    graph: fx.Graph
    module: fx.GraphModule
    """What ``get_attr`` nodes refer to: constants and the graphs of regions."""
    weights: tuple[int, ...]
    """Positions of the inputs that are parameters, or buffers of modules."""
    names: tuple[str, ...]
    """Name of each weight, as seen from the frame that was captured."""
    inputs: tuple[int, ...]
    """Positions of the other inputs."""
    frame: int
    """Number of the code that was captured; the same for another capture of it."""
    label: str
    """``frame/capture``, as in torch's own logs."""


def trace(captured: fx.GraphModule, examples: Sequence[Any]) -> Template:
    """Trace what dynamo captured, in the fake mode of the compilation that is under way.

    Args:
        captured: dynamo's graph.
        examples: its inputs; what they are specialised on becomes guards of dynamo's.

    Raises:
        UnsupportedError: it holds what cannot be traced with its gradients.
    """
    placeholders = captured.graph.find_nodes(op="placeholder")
    sources = [_source(node) for node in placeholders]
    weights = tuple(
        i
        for i, (value, source) in enumerate(zip(examples, sources, strict=True))
        if isinstance(value, nn.Parameter)
        or (isinstance(value, Tensor) and re.search(r"_buffers\['[^']+'\]$", source))
    )
    _refuse_lost_gradients(captured)
    fakes = [_fake(value) for value in examples]
    mode = TracingContext.get().fake_mode
    real = patch.object(mode, "allow_non_fake_inputs", True) if mode else nullcontext()
    # torch.func transforms act below the level of the other operators, so that is where they are
    # traced.
    above = not any(map(_is_functorch, captured.graph.nodes))
    try:
        with real, mode or nullcontext(), preserve_node_meta(), enable_python_dispatcher():
            module = make_fx(_Inlined(captured).run, pre_dispatch=above)(*fakes)
            if mode is not None and module.graph.find_nodes(op="call_function", target=_AUTOCAST):
                # Above autograd the tracer does not see what autocast makes of dtypes.
                with kept_modes():
                    FakeTensorProp(module, mode).propagate_dont_convert_inputs(*fakes)
    except Exception as err:
        raise UnsupportedError(
            f"a graph of dynamo's cannot be traced: {type(err).__name__}: {first_line(err)}",
            where=user_line(err),
            fix="put torch.compiler.disable on the function concerned: it then runs in Python",
        ) from err
    graph = module.graph
    graph.eliminate_dead_code()
    number = CompileContext.current_compile_id()
    return Template(
        graph,
        module,
        weights,
        tuple(_name(sources[i], placeholders[i].name) for i in weights),
        tuple(i for i in range(len(examples)) if i not in weights),
        -1 if number is None or number.frame_id is None else number.frame_id,
        str(number),
    )


class _Inlined(fx.Interpreter):
    """Runs a graph of dynamo's with checkpointed regions in line."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is _CHECKPOINT:
            return _Inlined(args[0]).run(*args[1:])
        return super().call_function(target, args, kwargs)


def _fake(value: Any) -> Any:
    """``value`` as the tracer sees it: with the symbols that dynamo gave to its sizes."""
    context = TracingContext.get()
    if not isinstance(value, Tensor) or context.fake_mode is None:
        return value
    sizes = context.tensor_to_context.get(value)
    source = None if sizes is None else sizes.tensor_source
    return context.fake_mode.from_tensor(value, symbolic_context=sizes, source=source)


def _source(node: fx.Node) -> str:
    argument = node.meta.get("grapharg")
    return str(argument.source.name) if argument is not None else ""


def _name(source: str, otherwise: str) -> str:
    return ".".join(_STEP.findall(source) or _VARIABLE.findall(source)) or otherwise


def _is_functorch(node: fx.Node) -> bool:
    home = str(getattr(node.target, "__module__", "") or "")
    return node.op == "call_function" and "functorch" in home


def _refuse_lost_gradients(captured: fx.GraphModule) -> None:
    """Raise if a trace would give other gradients than the graph."""
    if not torch.is_grad_enabled():
        return
    below = any(map(_is_functorch, captured.graph.nodes))
    for node in captured.graph.nodes:
        name = getattr(node.target, "__name__", "")
        if name == "autograd_function_apply":
            what = "a torch.autograd.Function, whose own backward a graph of operators cannot hold"
        elif below and name == "_set_grad_enabled":
            what = "a torch.func transform beside a change of grad mode"
        else:
            continue
        raise UnsupportedError(
            f"the graph holds {what}",
            where=source_line(node) or next(filter(None, map(source_line, node.users)), None),
            fix="run it under torch.no_grad(), or put torch.compiler.disable on the function that "
            "calls it: it then runs in Python, between two graphs",
        )


def bind(template: Template, root: Holder, names: Sequence[str]) -> fx.GraphModule:
    """The graph on the tensors of ``root``.

    Args:
        template: the graph.
        root: tree of the model's tensors; constants of the graph are added to it.
        names: of the weights, in ``root``.
    """
    weights = dict(zip(template.weights, names, strict=True))
    prefix = home_of(template, names) or ""
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    known: dict[str, fx.Node] = {}
    for i, node in enumerate(template.graph.find_nodes(op="placeholder")):
        if i not in weights:
            copies[node] = graph.node_copy(node)
    for i, node in enumerate(template.graph.find_nodes(op="placeholder")):
        if i in weights and node.users:
            if weights[i] not in known:
                known[weights[i]] = graph.get_attr(weights[i])
                known[weights[i]].meta["val"] = node.meta["val"]
            copies[node] = known[weights[i]]
    for node in template.graph.nodes:
        if node.op == "placeholder":
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.op == "get_attr":
            value = template.module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            copies[node].target = add_constant(root, str(node.target), value)
            if "val" not in copies[node].meta:
                copies[node].meta["val"] = _fake_like(template, value)
        _name_modules(copies[node], prefix)
    module = fx.GraphModule(nn.Module(), fx.Graph())
    module._modules, module._parameters = root._modules, root._parameters
    module._buffers = root._buffers
    module.graph = graph
    return module


def home_of(template: Template, names: Sequence[str]) -> str | None:
    """What the names of a frame's tensors lack in the whole model, with a dot; None: unclear."""
    found = {
        full.removesuffix(own)
        for full, own in zip(names, template.names, strict=True)
        if full.endswith(own)
    }
    return found.pop() if len(found) == 1 else None


def _fake_like(template: Template, value: Any) -> Any:
    for node in template.graph.nodes:
        if isinstance(value, Tensor) and isinstance(node.meta.get("val"), FakeTensor):
            return node.meta["val"].fake_mode.from_tensor(value, static_shapes=True)
    return value


def _name_modules(node: fx.Node, home: str) -> None:
    """Let the node's modules have the paths that they have in the whole model."""
    stack = {} if not home else {"frame": (home.removesuffix("."), "")}
    for key, (path, kind) in (node.meta.get("nn_module_stack") or {}).items():
        full = home + re.sub(r"^[LG]\['\w+'\]\.?", "", path)
        stack[key] = (full.removesuffix("."), kind)
    if stack and node.op not in ("get_attr", "output"):
        node.meta["nn_module_stack"] = stack


def signature_of(module: fx.GraphModule) -> Signature:
    """Flat inputs and outputs of a bound graph."""
    leaves: list[Leaf] = []
    for node in module.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            leaves.append(TensorLeaf(tuple(map(static_size, value.shape)), value.dtype))
        else:
            leaves.append(ConstantLeaf(value))
    (output,) = module.graph.find_nodes(op="output")
    results = list(pytree.tree_leaves(output.args[0]))
    names = tuple(str(n.target) for n in module.graph.find_nodes(op="placeholder"))
    return Signature.make(
        pytree.tree_structure((tuple(names), {})),
        pytree.tree_structure(results),
        tuple(leaves),
        names,
    )
