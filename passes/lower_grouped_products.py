"""Turn a grouped product with stored matrices into a linear for each: the experts of a mixture.

``_grouped_mm(x [M, K], w [E, K, N], ends [E])`` multiplies rows ``ends[e-1]:ends[e]`` of ``x`` by
``w[e]``. Rows after the last end give zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from .base import Pass, PassContext, PassResult, finish
from .emit import Emitter
from .products import is_grouped
from .routed import routed
from .select_analog import keep_digital, kept_for, too_many
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
        nodes = [node for node in module.graph.nodes if is_grouped(node)]
        if not nodes:
            return PassResult(module, False)
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        modified = False
        for node in nodes:
            if node in live:
                modified |= _lower(node, fixed, self.experts)
        return finish(module, modified)


def _lower(node: fx.Node, fixed: set[fx.Node], experts: int) -> bool:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    x, stack, ends = (given.pop(name, None) for name in (*names[:2], "offs"))
    assert isinstance(x, fx.Node) and isinstance(stack, fx.Node), "a product of tensors"
    if stack not in fixed or x in fixed or kept_for(node, stack):
        return False
    dtype = given.pop("out_dtype", None)
    whole = x.meta["val"].dim() == 2 and stack.meta["val"].dim() == 3
    others = any(value is not None for value in given.values())
    if not isinstance(ends, fx.Node) or not whole or others:
        keep_digital(
            node, "only [M, K] by [E, K, N] with the ends of the groups has an analog form"
        )
        return False
    if too_many(node, int(stack.meta["val"].shape[0]), experts, LowerGroupedProducts.name):
        return False
    emit = Emitter(node, LowerGroupedProducts.name)
    y = routed(emit, x, stack, ends, fixed)
    if dtype not in (None, y.meta["val"].dtype):
        y = emit.call(aten.to.dtype, y, dtype)
    emit.replace(y)
    return True
