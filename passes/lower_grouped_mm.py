"""Turn ``grouped_mm`` over stored experts into one linear for each expert.

    y[i] = x[i] W[e]        for the rows offs[e-1] <= i < offs[e]

Which rows an expert gets depends on the input, and the shapes of a graph do not. So every expert's
tiles are driven with all rows, those of other experts being zeros, and the result is picked row by
row: E times the vectors of the digital operator. Rows behind the last offset are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from .base import Pass, PassContext, PassResult, finish
from .canonicalize import LINEAR
from .emit import Emitter
from .select_analog import keep_digital, kept_for
from .stationary import live_nodes, stationary_nodes

aten = torch.ops.aten
GROUPED = ("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")
"""Operators (x [T, K], weight [E, K, N], offs [E]) -> [T, N]; by name, the second is not torch's."""


@dataclass(frozen=True, slots=True)
class LowerGroupedMm(Pass):
    """Rewrite ``grouped_mm`` with stored weights into ``linear`` and ``where``."""

    experts: int = 64
    """Most experts that a layer is split into."""
    name: ClassVar[str] = "lower-grouped-mm"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        nodes = [n for n in module.graph.nodes if str(n.target) in GROUPED]
        if not nodes:
            return PassResult(module, False)
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        modified = False
        for node in nodes:
            if node in live and node.args[1] in fixed:
                modified |= self._lower(node, fixed)
        return finish(module, modified)

    def _lower(self, node: fx.Node, fixed: set[fx.Node]) -> bool:
        x, weight, offsets, bias, dtype = (*node.args, None, None, None)[:5]
        offsets = node.kwargs.get("offs", offsets)
        bias, dtype = node.kwargs.get("bias", bias), node.kwargs.get("out_dtype", dtype)
        assert isinstance(x, fx.Node) and isinstance(weight, fx.Node), "a product of tensors"
        if kept_for(node, weight):
            return False
        plain = x.meta["val"].dim() == 2 and weight.meta["val"].dim() == 3 and bias is None
        if not plain or not isinstance(offsets, fx.Node):
            keep_digital(node, "grouped_mm goes analog as [T, K] x [E, K, N] without a bias only")
            return False
        count = int(weight.meta["val"].shape[0])
        if count > self.experts:
            keep_digital(
                node,
                f"{count} experts, more than {self.experts}: "
                f"lower-grouped-mm{{experts={count}}} in passes= makes a linear of each",
            )
            return False
        emit = Emitter(node, LowerGroupedMm.name)
        home = owners(emit, x, offsets)
        result: fx.Node | None = None
        for i in range(count):
            mine = emit.call(aten.eq.Scalar, home, i)
            given = emit.call(aten.where.ScalarOther, mine, x, 0)
            matrix = emit.call(aten.t.default, emit.call(aten.select.int, weight, 0, i))
            y = emit.call(LINEAR, given, matrix)
            rest: Any = 0 if result is None else result
            pick = aten.where.ScalarOther if result is None else aten.where.self
            result = emit.call(pick, mine, y, rest)
        assert result is not None, "a stack of at least one matrix"
        if isinstance(dtype, torch.dtype):
            result = emit.call(aten.to.dtype, result, dtype)
        emit.replace(result)
        return True


def owners(emit: Emitter, x: fx.Node, offsets: fx.Node) -> fx.Node:
    """Number of the expert of each row of ``x``, [T, 1]; E for rows behind the last offset."""
    rows = x.meta["val"].shape[0]
    size = rows if isinstance(rows, int) else emit.call(aten.sym_size.int, x, 0)
    places = emit.call(aten.new_ones.default, offsets, [size])
    places = emit.call(aten.sub.Tensor, emit.call(aten.cumsum.default, places, 0), 1)
    places = emit.call(aten.unsqueeze.default, emit.call(aten.type_as.default, places, offsets), -1)
    passed = emit.call(aten.ge.Tensor, places, offsets)
    return emit.call(aten.sum.dim_IntList, passed, [-1], True)
