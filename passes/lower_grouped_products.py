"""Turn a grouped product with stored matrices into a linear for each: the experts of a mixture.

``_grouped_mm(x [M, K], w [E, K, N], ends [E])`` multiplies rows ``ends[e-1]:ends[e]`` of ``x`` by
``w[e]``. Each matrix is an array of its own. How many rows go to each depends on values, so the
rows are cut by ``tensor_split`` and their number is a symbol. Rows after the last end give zeros.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from .base import Pass, PassContext, PassResult, finish
from .canonicalize import LINEAR, stored_on_the_right
from .emit import Emitter
from .macs import MACS, count_macs
from .products import is_grouped
from .select_analog import keep_digital, unfit
from .stationary import live_nodes, stationary_nodes

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class LowerGroupedProducts(Pass):
    """Rewrite every grouped product with stored matrices into ``linear``."""

    experts: int = 512
    """Most matrices that one stacked operand is split into."""
    name: ClassVar[str] = "lower-grouped-products"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        modified = False
        for node in list(module.graph.nodes):
            if is_grouped(node) and node in live:
                modified |= _lower(node, fixed, self.experts)
        return finish(module, modified)


def _lower(node: fx.Node, fixed: set[fx.Node], experts: int) -> bool:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    x, stack, ends = (given.pop(name, None) for name in (*names[:2], "offs"))
    assert isinstance(x, fx.Node) and isinstance(stack, fx.Node), "a product of tensors"
    if stack not in fixed or x in fixed:
        return False
    reason = unfit(stack)
    if reason is not None:
        keep_digital(node, reason, "rule")
        return False
    count = int(stack.meta["val"].shape[0])
    cut = isinstance(ends, fx.Node) and x.meta["val"].dim() == 2
    if (
        not cut
        or stack.meta["val"].dim() != 3
        or any(value is not None for value in given.values())
    ):
        keep_digital(
            node, "only [M, K] by [E, K, N] with the ends of the groups has an analog form"
        )
        return False
    if count > experts:
        keep_digital(
            node,
            f"its stored operand stacks {count} matrices, more than {experts}: "
            f"lower-grouped-products{{experts={count}}} in passes= makes a linear of each",
        )
        return False
    emit = Emitter(node, LowerGroupedProducts.name)
    where = emit.call(aten.to.device, ends, torch.device("cpu"), torch.int64)
    parts = _split(emit, x, where, count + 1)
    macs = count_macs(node) // count
    results = []
    for e in range(count):
        matrix = emit.call(aten.select.int, stack, 0, e)
        fixed.add(matrix)
        weight = stored_on_the_right(emit, matrix, fixed)
        y = emit.call(LINEAR, emit.call(operator.getitem, parts, e), weight)
        y.meta[MACS] = macs
        results.append(y)
    unused = emit.call(operator.getitem, parts, count)
    column = emit.call(aten.zeros_like.default, emit.call(aten.select.int, unused, 1, 0))
    width = int(stack.meta["val"].shape[2])
    zeros = emit.call(
        aten.expand.default, emit.call(aten.unsqueeze.default, column, 1), [-1, width]
    )
    whole = emit.call(aten.cat.default, [*results, zeros])
    whole.meta["val"] = node.meta["val"]  # the groups together are all rows
    emit.replace(whole)
    return True


def _split(emit: Emitter, x: fx.Node, where: fx.Node, count: int) -> fx.Node:
    value, env = x.meta["val"], emit.mode.shape_env
    assert env is not None, "torch.export has symbols"
    with emit.mode:
        parts: list[Any] = [
            value.new_empty([env.create_unbacked_symint(), *value.shape[1:]]) for _ in range(count)
        ]
    graph = emit.anchor.graph
    with graph.inserting_before(emit.anchor):
        split = aten.tensor_split.tensor_indices_or_sections
        node = graph.call_function(split, (x, where, 0))
    node.meta["val"] = parts
    return emit.named(node)
