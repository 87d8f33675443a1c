"""Turn products with experts that the input chooses into one linear for each expert.

    grouped_mm      y[i] = x[i] W[e]      for the rows offs[e-1] <= i < offs[e]
    bmm, indexed    y[i] = x[i] W[e]      e = index[i]

Which rows an expert gets depends on the input, and the shapes of a graph do not. So every expert's
tiles are driven with all rows, those of other experts being zeros, and the result is picked row by
row: E times the vectors of the digital operator. Rows of no expert are zeros.
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
from .stationary import live_nodes, stationary_nodes, without_matrix_transpose

aten = torch.ops.aten
GROUPED = ("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")
"""(x [T, K], weight [E, K, N], offs [E]) -> [T, N]; by name, since the second is not torch's."""
_BATCHED = (aten.bmm.default, aten.matmul.default)


@dataclass(frozen=True, slots=True)
class LowerExperts(Pass):
    """Rewrite ``grouped_mm``, and ``bmm`` with indexed weights, into ``linear`` and ``where``."""

    experts: int = 64
    """Most experts that a layer is split into."""
    name: ClassVar[str] = "lower-experts"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        nodes = [n for n in module.graph.nodes
                 if n.target in _BATCHED or str(n.target) in GROUPED]  # fmt: skip
        if not nodes:
            return PassResult(module, False)
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        modified = False
        for node in nodes:
            if node not in live:
                continue
            if node.target in _BATCHED:
                modified |= self._lower_indexed(node, fixed, live)
            elif node.args[1] in fixed:
                modified |= self._lower_grouped(node)
        return finish(module, modified)

    def _fits(self, node: fx.Node, weight: fx.Node) -> bool:
        if kept_for(node, weight):
            return False
        count = int(weight.meta["val"].shape[0])
        if count > self.experts:
            keep_digital(
                node,
                f"{count} experts, more than {self.experts}: "
                f"lower-experts{{experts={count}}} in passes= makes a linear of each",
            )
        return count <= self.experts

    def _lower_grouped(self, node: fx.Node) -> bool:
        x, weight, offsets, bias, dtype = (*node.args, None, None, None)[:5]
        offsets = node.kwargs.get("offs", offsets)
        bias, dtype = node.kwargs.get("bias", bias), node.kwargs.get("out_dtype", dtype)
        assert isinstance(x, fx.Node) and isinstance(weight, fx.Node), "a product of tensors"
        plain = x.meta["val"].dim() == 2 and weight.meta["val"].dim() == 3 and bias is None
        if not plain or not isinstance(offsets, fx.Node):
            keep_digital(node, "grouped_mm goes analog as [T, K] x [E, K, N] without a bias only")
            return False
        if not self._fits(node, weight):
            return False
        emit = Emitter(node, LowerExperts.name)
        result = _each(emit, x, weight, True, _owners(emit, x, offsets))
        if isinstance(dtype, torch.dtype):
            result = emit.call(aten.to.dtype, result, dtype)
        emit.replace(result)
        return True

    def _lower_indexed(self, node: fx.Node, fixed: set[fx.Node], live: set[fx.Node]) -> bool:
        """``bmm(x, W[index])`` and ``bmm(W[index], x)``, also with ``W[index]`` transposed."""
        left, right = node.args
        if any(o.meta["val"].dim() != 3 for o in node.all_input_nodes):
            return False
        for x, given, on_the_right in ((left, right, True), (right, left, False)):
            assert isinstance(x, fx.Node) and isinstance(given, fx.Node), "a product of tensors"
            base = without_matrix_transpose(given)
            home = _index_of(base or given, fixed)
            sizes = (x.meta["val"].shape[0], given.meta["val"].shape[0])
            if home is None or x not in live or str(sizes[0]) != str(sizes[1]):
                continue
            weight = (base or given).args[0]
            assert isinstance(weight, fx.Node), "what is indexed is a tensor"
            if not self._fits(node, weight):
                return False
            emit = Emitter(node, LowerExperts.name)
            for _ in range(2):
                home = emit.call(aten.unsqueeze.default, home, -1)
            if not on_the_right:
                x = emit.call(aten.transpose.int, x, 1, 2)
            # [K, N] has to be turned for a linear: so it lies if it is right, or left and turned.
            result = _each(emit, x, weight, on_the_right == (base is None), home)
            if not on_the_right:
                result = emit.call(aten.transpose.int, result, 1, 2)
            emit.replace(result)
            return True
        return False


def _each(emit: Emitter, x: fx.Node, weight: fx.Node, turn: bool, home: fx.Node) -> fx.Node:
    """Every row of ``x`` times its matrix; ``home`` has the number of that, and broadcasts."""
    result: fx.Node | None = None
    for i in range(int(weight.meta["val"].shape[0])):
        mine = emit.call(aten.eq.Scalar, home, i)
        matrix = emit.call(aten.select.int, weight, 0, i)
        if turn:
            matrix = emit.call(aten.t.default, matrix)
        y = emit.call(LINEAR, emit.call(aten.where.ScalarOther, mine, x, 0), matrix)
        rest: Any = 0 if result is None else result
        pick = aten.where.ScalarOther if result is None else aten.where.self
        result = emit.call(pick, mine, y, rest)
    assert result is not None, "a stack of at least one matrix"
    return result


def _index_of(node: fx.Node, fixed: set[fx.Node]) -> fx.Node | None:
    """The 1-D index of ``W[index]`` with stored matrices W [E, ., .]."""
    if node.target is aten.index.Tensor:
        given = node.args[1]
        assert isinstance(given, list | tuple), "a list of indices"
        index = given[0] if len(given) == 1 else None
    elif node.target is aten.index_select.default and node.args[1] == 0:
        index = node.args[2]
    else:
        return None
    weight = node.args[0]
    if not isinstance(index, fx.Node) or not isinstance(weight, fx.Node) or weight not in fixed:
        return None
    value = index.meta["val"]
    plain = value.dim() == 1 and value.dtype != torch.bool and weight.meta["val"].dim() == 3
    return index if plain else None


def _owners(emit: Emitter, x: fx.Node, offsets: fx.Node) -> fx.Node:
    """Number of the expert of each row of ``x``, [T, 1]; E for rows behind the last offset."""
    rows = x.meta["val"].shape[0]
    size = rows if isinstance(rows, int) else emit.call(aten.sym_size.int, x, 0)
    places = emit.call(aten.new_ones.default, offsets, [size])
    places = emit.call(aten.sub.Tensor, emit.call(aten.cumsum.default, places, 0), 1)
    places = emit.call(aten.unsqueeze.default, emit.call(aten.type_as.default, places, offsets), -1)
    passed = emit.call(aten.ge.Tensor, places, offsets)
    return emit.call(aten.sum.dim_IntList, passed, [-1], True)
