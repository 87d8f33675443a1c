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
from .digital import PICKED, SPARSE, is_sparse, picked, unreal, why_unsupported
from .macs import RECURRENT, count_macs
from .products import READERS, is_grouped
from .stationary import expression_key, is_zero, leaves, live_nodes, stationary_nodes
from .subgraphs import subgraph

aten = torch.ops.aten

_CHANGES = "its weight changes within a forward"

PRODUCTS = {
    aten.mm.default, aten.mv.default, aten.dot.default, aten.addmm.default, aten.bilinear.default,
    aten.scaled_dot_product_attention.default,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    aten.convolution.default, *RECURRENT, *READERS,
}  # fmt: skip
"""Multiply-accumulate work besides linear, conv and grouped products."""

ZERO = "its weight is zeros that the graph makes: nothing to store"

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
            if node.op == "call_function":
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
    if node in fixed:
        return Digital("rule", "of parameters alone: no activation", macs, path)
    if not is_layer and not _is_product(node):
        reason = why_unsupported(node, fixed, live)
        if reason is not None:
            return Digital("unsupported", reason, macs, path)
        return Digital("rule", "no multiply with a weight", 0, path)
    if node not in live:
        return Digital("rule", "computes a weight, no activation", 0, path)
    if not is_layer:
        factors = _factors(node)
        if not any(arg in fixed for arg in factors):
            if any(picked(arg, fixed) for arg in factors):
                return Digital("unsupported", PICKED, macs, path)
            if any(arg not in live and leaves(arg) for arg in factors):
                return Digital("rule", _CHANGES, macs, path)
            return Digital("rule", "activation x activation: nothing to store", macs, path)
        if all(is_zero(arg) for arg in factors if arg in fixed):
            return Digital("rule", ZERO, macs, path)
        what = str(node.target).removesuffix(".default")
        return Digital("unsupported", f"{what} has no analog form yet", macs, path)
    weight = node.args[1]
    assert isinstance(weight, fx.Node), "a layer has a tensor weight"
    if weight not in fixed:
        what = _CHANGES
        if picked(weight, fixed):
            return Digital("unsupported", PICKED, macs, path)
        if weight in live:
            what = "activation x activation: nothing to store"
        return Digital("rule", what, macs, path)
    bad = unfit(weight) or (("rule", ZERO) if is_zero(weight) else None)
    if bad is not None:
        return Digital(*bad, macs, path)
    info = _info(node, weight, names, path, macs)
    if ctx.select is not None and not ctx.select(info):
        return Digital("choice", "kept digital by select=", macs, path)
    return Analog(info, names.array(weight, info.groups))


def _is_product(node: fx.Node) -> bool:
    return node.target in PRODUCTS or is_grouped(node)


def _factors(node: fx.Node) -> list[fx.Node]:
    """What a product multiplies: neither what it adds, nor the mask of an attention."""
    reader = READERS.get(node.target)
    if reader is not None:
        return [operand.node for operand in reader(node).operands]
    first, last = _FACTORS.get(node.target, (0, 2 if is_grouped(node) else len(node.args)))
    found: list[fx.Node] = []
    fx.node.map_arg(node.args[first:last], found.append)
    return found


def keep_digital(node: fx.Node, reason: str, rule: str = "unsupported") -> None:
    """Record why a pass before select-analog leaves a product with a stored operand as it is."""
    node.meta[META] = Digital(rule, reason, count_macs(node), module_path(node))


def unfit(weight: fx.Node, real: bool = True) -> tuple[str, str] | None:
    """Rule and reason of a weight that tiles cannot hold; None: they can.

    ``real``: False where complex numbers are left to lower-complex.
    """
    if is_sparse(weight):
        return "unsupported", SPARSE
    reason = unreal(weight)
    if reason is not None and (real or not weight.meta["val"].is_complex()):
        return "unsupported", reason
    empty = any(isinstance(size, int) and size == 0 for size in weight.meta["val"].shape)
    return ("rule", "its weight is empty") if empty else None


def kept_for(node: fx.Node, *weights: fx.Node, real: bool = True) -> bool:
    """Keep ``node`` digital if tiles cannot hold one of ``weights``; True if so."""
    bad = next(filter(None, (unfit(weight, real) for weight in weights)), None)
    if bad is not None:
        keep_digital(node, bad[1], bad[0])
    return bad is not None


def too_many(node: fx.Node, count: int, most: int, by: str) -> bool:
    """Keep ``node`` digital if its stored operand stacks more matrices than pass ``by`` splits."""
    if count > most:
        keep_digital(
            node,
            f"its stored operand stacks {count} matrices, more than {most}: "
            f"{by}{{experts={count}}} in passes= makes a linear of each",
        )
    return count > most


def _hidden(node: fx.Node, live: set[fx.Node], ctx: PassContext) -> Digital | None:
    """Record of a higher-order operator (autocast region, cond, ...) with products inside."""
    if not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    inside = [
        inner
        for arg in node.all_input_nodes
        if (region := subgraph(arg, ctx.root)) is not None
        for inner in region.graph.nodes
        if inner.target is LINEAR or inner.target in CONVS or _is_product(inner)
    ]
    if not inside:
        return Digital("rule", "a region without a multiply by a weight", 0, module_path(node))
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

    def array(self, weight: fx.Node, groups: int) -> str:
        """Name of the tile array of ``weight``, the same in every graph of a model.

        Convolutions of other groups lay the same weight on tiles in another way.
        """
        key = f"{expression_key(weight, self.known)} in {groups}"
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
