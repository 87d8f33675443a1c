"""Decide what goes to the tiles, and record why the rest stays digital.

Analog is every linear and conv whose weight is a pure function of parameters, unless the user says
no. Every other compute node gets a Digital record with its reason; nothing is skipped silently.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..runtime.mapping import Digital
from .base import META, Pass, PassContext, PassResult, module_path
from .canonicalize import CONVS, LINEAR
from .macs import RECURRENT, count_macs
from .products import READERS, is_grouped
from .stationary import expression_key, leaves, live_nodes, stationary_nodes
from .subgraphs import subgraph

aten = torch.ops.aten

PRODUCTS = {
    aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default,
    aten.addmm.default, aten.baddbmm.default, aten.addbmm.default, aten.einsum.default,
    aten.tensordot.default, aten.inner.default, aten.bilinear.default,
    aten.scaled_dot_product_attention.default,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    aten.convolution.default, *RECURRENT,
}  # fmt: skip
"""Multiply-accumulate work besides linear and conv."""

_FACTORS: dict[Any, tuple[int, int]] = {
    aten.addmm.default: (1, 3),
    aten.bilinear.default: (0, 3),
    aten.scaled_dot_product_attention.default: (0, 3),
    aten.conv_transpose1d.default: (0, 2),
    aten.conv_transpose2d.input: (0, 2),
    aten.conv_transpose3d.input: (0, 2),
    aten.convolution.default: (0, 2),
}
"""Where the arguments of a product are that it multiplies; if not here, all are."""

_OWN = ("aten", "prims", "prim", "analogc")
_VIEWS = {
    aten.transpose.int, aten.permute.default, aten.mT.default, aten.to.dtype, aten.view.default,
    aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim, aten.contiguous.default,
    aten.clone.default,
}  # fmt: skip
_PICKS = {
    aten.index.Tensor, aten.index_select.default, aten.gather.default, aten.embedding.default,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """What a user's predicate sees of a layer that could go to the tiles."""

    name: str
    """Name of the layer, from its weight's parameter."""
    op: str
    """``linear``, ``conv1d``, ``conv2d`` or ``conv3d``."""
    module: str
    """Path of the module whose forward makes the call."""
    module_type: str
    """Class name of that module."""
    weight_shape: tuple[int, ...]
    groups: int
    macs: int
    """Multiply-accumulates of one call at the example shape."""


@dataclass(frozen=True, slots=True)
class Analog:
    """Record of a node that was selected and not mapped yet."""

    info: LayerInfo
    array: str
    """Name of its weight; equal for all uses of one weight."""


@dataclass(frozen=True, slots=True)
class SelectAnalog(Pass):
    """Annotate every compute node with an Analog or a Digital record."""

    name: ClassVar[str] = "select-analog"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Annotate ``module``; the graph itself is left as it is."""
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        names = _Names(ctx)
        for node in module.graph.nodes:
            if node.op == "call_function" and node not in fixed:
                record = _record(node, fixed, live, names, ctx) or _hidden(node, live, ctx)
                if record is not None:
                    node.meta[META] = record
        return PassResult(module, False)


def _record(
    node: fx.Node,
    fixed: set[fx.Node],
    live: set[fx.Node],
    names: _Names,
    ctx: PassContext,
) -> Analog | Digital | None:
    path = module_path(node)
    found = node.meta.get(META)
    if isinstance(found, Digital):
        return found
    if not is_compute(node):
        return None
    is_layer = node.target is LINEAR or node.target in CONVS
    macs = count_macs(node)
    if not is_layer and node.target not in PRODUCTS and not is_grouped(node):
        if node in live and _is_foreign(node) and any(map(_is_matrix, _stored(node, fixed))):
            reason = f"{node.target} is no operator of torch: what it does with what it has stored "
            return Digital("unsupported", reason + "is not known", 0, path)
        return Digital("rule", "no multiply with a weight", 0, path)
    if node not in live:
        return Digital("rule", "computes a weight, no activation", 0, path)
    factors = _factors(node)
    operands = [arg for arg in factors if arg in fixed]
    if not is_layer:
        if not operands and any(_is_picked(arg, fixed) for arg in factors):
            reason = (
                "an activation picks its matrices from a stored stack: sort the rows by matrix "
            )
            return Digital("unsupported", reason + "and use a grouped product", macs, path)
        if not operands:
            return Digital("rule", "activation x activation: nothing to store", macs, path)
        what = str(node.target).removesuffix(".default")
        return Digital("unsupported", f"{what} has no analog form yet", macs, path)
    weight = node.args[1]
    assert isinstance(weight, fx.Node), "a layer has a tensor weight"
    if weight not in fixed:
        what = "its weight changes within a forward"
        if weight in live:
            what = "activation x activation: nothing to store"
        return Digital("rule", what, macs, path)
    misfit = unfit(weight)
    if misfit is not None:
        return Digital("rule", misfit, macs, path)
    info = _info(node, weight, names, path, macs)
    if ctx.select is not None and not ctx.select(info):
        return Digital("choice", "kept digital by select=", macs, path)
    return Analog(info, names.array(weight))


def _stored(node: fx.Node, fixed: set[fx.Node]) -> list[fx.Node]:
    return [arg for arg in node.all_input_nodes if arg in fixed]


def _is_matrix(node: fx.Node) -> bool:
    value = node.meta["val"]
    return isinstance(value, torch.Tensor) and value.dim() >= 2 and value.is_floating_point()


def _is_foreign(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target.namespace not in _OWN


def _is_picked(node: fx.Node, fixed: set[fx.Node]) -> bool:
    """True for matrices that an index, which is no stored one, picks from a stored stack."""
    while node.op == "call_function" and node.target in _VIEWS:
        node = node.all_input_nodes[0]
    if node.op != "call_function" or node.target not in _PICKS or node in fixed:
        return False
    stack = node.args[0]
    return isinstance(stack, fx.Node) and stack in fixed and stack.meta["val"].dim() >= 3


def _factors(node: fx.Node) -> list[fx.Node]:
    """What a product multiplies: neither what it adds, nor the mask of an attention."""
    reader = READERS.get(node.target)
    if reader is not None:
        return [operand.node for operand in reader(node).operands]
    first, last = _FACTORS.get(node.target, (0, len(node.args)))
    found: list[fx.Node] = []
    fx.node.map_arg(node.args[first:last], found.append)
    return found


def keep_digital(node: fx.Node, reason: str, rule: str = "unsupported") -> None:
    """Record why a pass before select-analog leaves a product with a stored operand as it is."""
    node.meta[META] = Digital(rule, reason, count_macs(node), module_path(node))


def unfit(weight: fx.Node) -> str | None:
    """Why tiles cannot hold a weight, if they cannot."""
    value = weight.meta["val"]
    if not value.dtype.is_floating_point:
        return f"its weight is {str(value.dtype).removeprefix('torch.')}: tiles hold real numbers"
    return "its weight is empty" if value.numel() == 0 else None


def _hidden(node: fx.Node, live: set[fx.Node], ctx: PassContext) -> Digital | None:
    """Record of a higher-order operator (autocast region, cond, ...) with products inside."""
    if not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    inside = [
        inner
        for arg in node.all_input_nodes
        if (region := subgraph(arg, ctx.root)) is not None
        for inner in region.graph.nodes
        if inner.target is LINEAR or inner.target in CONVS or inner.target in PRODUCTS
    ]
    if not inside:
        return None
    if node not in live:
        return Digital("rule", "computes a weight, no activation", 0, module_path(node))
    reason = f"{len(inside)} products inside a {node.target.__name__} region"
    return Digital("unsupported", reason, sum(map(count_macs, inside)), module_path(node))


def is_compute(node: fx.Node) -> bool:
    """True for nodes that compute something, as against views, sizes and bookkeeping."""
    if node.target is operator.getitem or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if not isinstance(node.meta.get("val"), torch.Tensor | tuple | list):
        return False
    returns = node.target._schema.returns
    return not (returns and all(r.alias_info is not None for r in returns)) and (
        node.target.namespace != "aten" or node.target._schema.name not in _BOOKKEEPING
    )


_BOOKKEEPING = {
    "aten::reshape", "aten::contiguous", "aten::flatten", "aten::to", "aten::dropout",
    "aten::clone", "aten::lift_fresh_copy", "aten::_assert_tensor_metadata", "aten::sym_size",
}  # fmt: skip


def _info(node: fx.Node, weight: fx.Node, names: _Names, path: str, macs: int) -> LayerInfo:
    stack = node.meta.get("nn_module_stack") or {}
    kind = next(reversed(stack.values()))[1] if stack else ""
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    op = "linear" if node.target is LINEAR else f"conv{CONVS[node.target]}d"  # type: ignore[index]
    groups = 1 if op == "linear" else node.args[6]
    assert isinstance(groups, int), "groups is a number"
    return LayerInfo(
        names.use(weight),
        op,
        path,
        kind.rpartition(".")[2],
        tuple(int(size) for size in weight.meta["val"].shape),
        groups,
        macs,
    )


class _Names:
    """Names of weights and of their uses.

    A weight is named after its largest parameter; another weight of the same parameter gets
    ``~2``, a second use of the same weight ``@2``.
    """

    def __init__(self, ctx: PassContext) -> None:
        self.known: dict[fx.Node, str] = {}
        self.parameters = {name for name, _ in ctx.root.named_parameters(remove_duplicate=False)}
        self.ctx = ctx
        self.uses: Counter[str] = Counter()
        self.layers: dict[str, str] = {}
        self.bases: Counter[str] = Counter()

    def array(self, weight: fx.Node) -> str:
        """Name of the tile array of ``weight``, the same in every graph of a model."""
        key = expression_key(weight, self.known)
        names = self.ctx.array_names
        if key not in names:
            base, taken = base_name(weight, self.parameters), set(names.values())
            number = next(i for i in range(1, len(taken) + 2) if _numbered(base, i) not in taken)
            names[key] = _numbered(base, number)
        return names[key]

    def use(self, weight: fx.Node) -> str:
        """Name of one more use of ``weight`` in this graph."""
        key = expression_key(weight, self.known)
        if key not in self.layers:
            base = base_name(weight, self.parameters)
            self.bases[base] += 1
            self.layers[key] = _numbered(base, self.bases[base])
        self.uses[key] += 1
        name = self.layers[key]
        return name if self.uses[key] == 1 else f"{name}@{self.uses[key]}"


def _numbered(base: str, number: int) -> str:
    return base if number == 1 else f"{base}~{number}"


def base_name(weight: fx.Node, parameters: Container[str] = ()) -> str:
    """Name of what a weight is, or is mostly, made of: of ``parameters`` if any is among it."""
    sources = leaves(weight)
    if not sources:
        return "constant"
    largest = max(sources, key=lambda n: (n.target in parameters, int(n.meta["val"].numel())))
    name = re.sub(r"\.parametrizations\.(\w+)\.original\d*$", r".\1", str(largest.target))
    name = re.sub(r"\.weight_([gv]|orig)$", ".weight", name)
    return name.removesuffix(".weight") or name
