"""The graph of a compiled model as a pure function of its inputs and weights.

MLIR has no modules and no memory of weights: parameters, buffers, computed weights and converter
ranges become inputs; writes become values; composite operators become those that torch-mlir lowers.
Shapes, symbolic ones too, are the fake tensors' own, so nothing is captured anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta

from ...passes.base import META, module_path, source_line
from ...passes.emit import fake_mode
from ...passes.verify import OPS
from ...runtime.errors import AnalogcError, UnsupportedError
from ...runtime.extras import require
from ...runtime.mapping import TileMapping
from ...runtime.regions import join, kept_modes
from ...runtime.spec import parse
from ..export_errors import first_line
from ..inspected import Inspected
from ..signature import ConstantLeaf
from .arguments import Argument, argument_of, held_of, input_of
from .operators import TABLE

_CHECKS = (
    "_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range",
    "sym_constrain_range_for_size",
)  # fmt: skip
_BUILTINS: dict[Any, Any] = {torch.sym_max: max, torch.sym_min: min}
_MARK = "analogc"
SOURCE = "analogc_source"
"""Key of a node with the node of the compiled graph that it was made from."""
HELD = "analogc_held"
"""Key of a layer with the inputs that give what its tiles hold, and the scale of that."""


@dataclass(frozen=True, slots=True)
class Flat:
    """A pure graph of ATen and analogc operators; its inputs are ``arguments``, in order."""

    module: fx.GraphModule
    arguments: tuple[Argument, ...]
    results: tuple[Any, ...]
    """Of the model's flat outputs: the index of the function's result, in a one-tuple if it is a
    whole number held in a tensor; or a constant, in a Constant."""
    chooses: bool
    """True if both branches of a torch.cond run, and one is chosen."""

    @property
    def layers(self) -> tuple[tuple[fx.Node, TileMapping], ...]:
        """Analog operators in order, with how their weight lies on tiles."""
        return tuple((node, node.meta[META]) for node in self.module.graph.nodes
                     if node.target in OPS)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Constant:
    """An output that is the same for all inputs."""

    value: Any


def decompose(model: Inspected) -> Flat:
    """The current graph of ``model`` as a pure function.

    Raises:
        UnsupportedError: it is of training mode, writes what it was given, or holds an operator
            that cannot be traced.
    """
    if model._root.training:
        raise UnsupportedError(
            "MLIR is made of eval graphs only: a training graph writes statistics",
            fix="call compiled.eval() first",
        )
    graph, arguments, results = _stateless(model)
    values = [node.meta["val"] for node in graph.find_nodes(op="placeholder")]
    mode = fake_mode(model.graph)
    runner = _Runner(fx.GraphModule(nn.Module(), graph))
    table = {**require("torch_mlir.extras.fx_decomp_util", "mlir").get_decomposition_table()}
    table.update({op: _normalised(op) for op in OPS})
    table.update(TABLE)
    free = _free_sizes(values)
    try:
        with contextlib.ExitStack() as stack:
            for context in (kept_modes(), mode, preserve_node_meta(), torch.no_grad()):
                stack.enter_context(context)
            if mode.shape_env is not None:
                stack.enter_context(enable_python_dispatcher())
                # Symbols that passes made and bound; the trace wants those that it makes alone.
                mode.shape_env.pending_fresh_unbacked_symbols.clear()
            # Mutations only: views of values that nobody writes are values.
            pure = torch.func.functionalize(runner.run, remove="mutations")
            module = make_fx(pure, decomposition_table=table)(*values)
            if _writes_values(module.graph):
                # Decompositions, of which functionalize sees nothing, may write what they made.
                again = torch.func.functionalize(fx.Interpreter(module).run, remove="mutations")
                module = make_fx(again, decomposition_table=table)(*values)
    except AnalogcError:
        raise
    except Exception as err:
        node = runner.at
        what = "the graph" if node is None else f"%{node.name} ({node.target})"
        raise UnsupportedError(
            f"{what} has no form for MLIR: {type(err).__name__}: {first_line(err)}",
            where=None if node is None else source_line(node) or module_path(node) or None,
        ) from err
    for size in free - _free_sizes(values):
        raise UnsupportedError(
            f"size {size} of the inputs may vary in this model, but an operator of it has a form "
            "for MLIR at one size only",
            fix="compile with static shapes for it",
        )
    _finish(module, model, arguments)
    chooses = any(node.target is join for node in graph.nodes)
    return Flat(module, arguments, results, chooses)


def with_tiles(flat: Flat, model: Inspected) -> Flat:
    """``flat`` with what the tiles hold in place of weights, in layers that are not ideal."""
    graph = flat.module.graph
    arguments = list(flat.arguments)
    made: dict[str, tuple[fx.Node, fx.Node]] = {}
    mode = fake_mode(model.graph)
    last = graph.find_nodes(op="placeholder")[-1]
    for node, mapping in flat.layers:
        if parse(str(node.args[-2])).is_ideal:
            continue
        if mapping.array not in made:
            pair = held_of(node, mapping)
            found = []
            for argument in pair:
                with graph.inserting_after(last):
                    last = graph.placeholder(argument.name.replace(".", "_"))
                sizes = [size or 0 for size in argument.shape]
                with mode:
                    last.meta["val"] = torch.empty(sizes, dtype=argument.dtype)
                found.append(last)
            arguments += pair
            made[mapping.array] = (found[0], found[1])
        node.meta[HELD] = made[mapping.array]
    return Flat(flat.module, tuple(arguments), flat.results, flat.chooses)


def _stateless(model: Inspected) -> tuple[fx.Graph, tuple[Argument, ...], tuple[Any, ...]]:
    """A copy of the graph whose weights are inputs, behind its own."""
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    arguments: list[Argument] = []
    signature = model.signature
    inputs = model.graph.find_nodes(op="placeholder")
    for i, (node, leaf) in enumerate(zip(inputs, signature.leaves, strict=True)):
        if isinstance(leaf, ConstantLeaf):
            copies[node] = leaf.value
            continue
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
        arguments.append(input_of(signature.names[i], node, i))
    known: dict[Any, fx.Node] = {}
    for node in model.graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        if all(user.op == "call_module" for user in node.users):
            continue
        argument, identity = argument_of(model, node)
        if identity not in known:
            known[identity] = graph.placeholder(node.name)
            known[identity].meta = {**node.meta, "val": _of_fixed_size(node.meta["val"])}
            arguments.append(argument)
        copies[node] = known[identity]
    for node in model.graph.nodes:
        if node.op == "call_function" and not _is_check(node):
            new = copies[node] = graph.node_copy(node, copies.__getitem__)
            new.meta = {**node.meta, "custom": {_MARK: node.name}}
            if new.target is torch.ops.aten.view.default:
                # A view wants strides that an operator made of others may not give.
                new.target = torch.ops.aten.reshape.default
    (output,) = model.graph.find_nodes(op="output")
    returned, results = _outputs(graph, fx.node.map_arg(output.args[0], copies.__getitem__))
    graph.output(tuple(returned))
    return graph, tuple(arguments), results


def _of_fixed_size(value: Tensor) -> Tensor:
    """Fake tensor of a weight; a mode that makes symbols of sizes may have done so here, too."""
    if not any(isinstance(size, torch.SymInt) for size in value.shape):
        return value
    with value.fake_mode:  # type: ignore[attr-defined]
        return torch.empty([int(n) for n in value.shape], dtype=value.dtype, device=value.device)


def _free_sizes(values: list[Any]) -> set[Any]:
    """Symbols that sizes of ``values`` depend on, less those of which the size is known."""
    sizes = [size for value in values if isinstance(value, Tensor) for size in value.shape]
    numbers = [n for n in (*sizes, *values) if isinstance(n, torch.SymInt)]
    return {symbol for n in numbers for symbol in n.node.expr.free_symbols}


def _is_check(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._opname in _CHECKS


def _outputs(graph: fx.Graph, outputs: Any) -> tuple[list[fx.Node], tuple[Any, ...]]:
    returned: list[fx.Node] = []
    results: list[Any] = []
    for value in outputs if isinstance(outputs, list | tuple) else [outputs]:
        if not isinstance(value, fx.Node):
            results.append(Constant(value))
            continue
        if isinstance(value.meta.get("val"), Tensor):
            results.append(len(returned))
        else:
            results.append((len(returned),))
            value = graph.call_function(
                torch.ops.aten.scalar_tensor.default, (value,), {"dtype": torch.int64}
            )
        returned.append(value)
    return returned, tuple(results)


class _Runner(fx.Interpreter):
    """Runs the copy, and knows where it is."""

    at: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.at = n
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in OPS and parse(args[-2]).is_ideal:
            return _ideal(target, args)
        if target is not join:
            return super().call_function(target, args, kwargs)
        # Both branches were run; values have no branches.
        condition, yes, no = args[:3]
        if not isinstance(condition, Tensor):
            return yes if condition else no
        return tuple(
            torch.where(condition, a, b) if isinstance(a, Tensor) else a
            for a, b in zip(yes, no, strict=True)
        )


def _ideal(op: Any, args: tuple[Any, ...]) -> Any:
    """An ideal layer as one operator: by itself it turns into the digital one."""
    device = args[0].device.type
    if torch.is_autocast_enabled(device):
        # As the digital operator does.
        dtype = torch.get_autocast_dtype(device)
        args = (*(_cast(arg, dtype) for arg in args[:3]), *args[3:])
    with torch.autocast(device, enabled=False), torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    plain = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if plain and value.dtype is not torch.float64 else value


def _normalised(op: Any) -> Callable[..., Any]:
    """Decomposition of a layer into itself on plain operands, and what brings them there.

    Then the input of a layer has its weight's dtype and a batch, and the bias is ``[N]``.
    """

    def layer(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
        given = (x, weight, bias, *rest)
        single = weight.dim() > 2 and x.dim() == weight.dim() - 1
        after = bias is not None and bias.shape != weight.shape[:1]
        dtype = weight.dtype
        if not parse(rest[-2]).is_ideal:
            dtype = torch.promote_types(dtype, torch.float32)
        tensors = [value for value in (*given[:3], *rest[:2]) if isinstance(value, Tensor)]
        if not single and not after and all(value.dtype is dtype for value in tensors):
            return NotImplemented
        wide = x.unsqueeze(0) if single else x
        operands = [
            value.to(dtype) if isinstance(value, Tensor) else value
            for value in (wide, weight, None if after else bias, *rest[:2])
        ]
        y = op(*operands, *rest[2:])
        y = y.squeeze(0) if single else y
        return (y + bias if after else y).to(x.dtype)

    return layer


def _writes_values(graph: fx.Graph) -> bool:
    """Whether an operator of ``graph`` writes what is no input of it."""
    written = (
        node.args[0] for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    )  # fmt: skip
    return any(isinstance(value, fx.Node) and value.op != "placeholder" for value in written)


def _written(model: Inspected, argument: Argument) -> UnsupportedError:
    writers = (n for n in model.graph.nodes if getattr(n.target, "_schema", None) is not None)
    lines = (source_line(node) for node in writers if node.target._schema.is_mutable)
    return UnsupportedError(
        f"the model writes its {argument.kind} {argument.name!r}, and a function in MLIR is pure",
        where=next((line for line in lines if line is not None), None),
        fix="return the value, and store it outside of the model",
    )


def _finish(module: fx.GraphModule, model: Inspected, arguments: tuple[Argument, ...]) -> None:
    """Put the records back on the layers; refuse what writes its inputs."""
    original = {node.name: node for node in model.graph.nodes}
    graph = module.graph
    for node in list(graph.nodes):
        source = original.get((node.meta.get("custom") or {}).get(_MARK, ""))
        if node.target is torch.ops.aten.copy_.default:
            raise _written(model, arguments[list(graph.nodes).index(node.args[0])])
        # torch-mlir imports builtin functions of numbers.
        node.target = _BUILTINS.get(node.target, node.target)
        if source is not None:
            node.meta[SOURCE] = source
            if node.target in OPS:
                node.meta[META] = source.meta[META]
                # The key is of this process; the layer's name is the same in all.
                node.args = (*node.args[:-1], source.meta[META].layer)
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
