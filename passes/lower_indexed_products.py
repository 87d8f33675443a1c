"""Turn batched products with matrices that an index picks into a linear for each stored matrix.

    bmm(x, W[index])      y[i] = x[i] W[e],    e = index[i]
    bmm(W[index], x)      y[i] = W[e] x[i]

``x`` is sorted by its matrix, multiplied group by group, and put back in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from .base import Pass, PassContext, PassResult, finish
from .emit import Emitter
from .routed import routed
from .select_analog import kept_for, too_many
from .stationary import live_nodes, stationary_nodes, without_matrix_transpose

aten = torch.ops.aten
_BATCHED = (aten.bmm.default, aten.matmul.default)


@dataclass(frozen=True, slots=True)
class LowerIndexedProducts(Pass):
    """Rewrite ``bmm`` with stored matrices that an activation indexes into ``linear``."""

    experts: int = 512
    """Most matrices that one stacked operand is split into."""
    name: ClassVar[str] = "lower-indexed-products"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        nodes = [node for node in module.graph.nodes if node.target in _BATCHED]
        if not nodes:
            return PassResult(module, False)
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        modified = False
        for node in nodes:
            if node in live:
                modified |= self._lower(node, fixed, live)
        return finish(module, modified)

    def _lower(self, node: fx.Node, fixed: set[fx.Node], live: set[fx.Node]) -> bool:
        left, right = node.args
        if any(o.meta["val"].dim() != 3 for o in node.all_input_nodes):
            return False
        for x, picked, on_the_right in ((left, right, True), (right, left, False)):
            assert isinstance(x, fx.Node) and isinstance(picked, fx.Node), "a product of tensors"
            base = without_matrix_transpose(picked)
            found = _stack_and_index(base or picked, fixed)
            sizes = (x.meta["val"].shape[0], picked.meta["val"].shape[0])
            if found is None or x not in live or str(sizes[0]) != str(sizes[1]):
                continue
            stack, index = found
            count = int(stack.meta["val"].shape[0])
            if kept_for(node, stack) or too_many(node, count, self.experts, self.name):
                return False
            emit = Emitter(node, self.name)
            if on_the_right == (base is not None):  # matrices as [N, K]
                stack = emit.call(aten.transpose.int, stack, 1, 2)
                fixed.add(stack)
            if not on_the_right:
                x = emit.call(aten.transpose.int, x, 1, 2)
            y = _sorted_and_back(emit, x, stack, index, fixed)
            if not on_the_right:
                y = emit.call(aten.transpose.int, y, 1, 2)
            emit.replace(y)
            return True
        return False


def _stack_and_index(node: fx.Node, fixed: set[fx.Node]) -> tuple[fx.Node, fx.Node] | None:
    """Stored matrices W [E, ., .] and the 1-D index of ``W[index]``."""
    if node.target is aten.index.Tensor:
        given = node.args[1]
        assert isinstance(given, list | tuple), "a list of indices"
        index = given[0] if len(given) == 1 else None
    elif node.target is aten.index_select.default and node.args[1] == 0:
        index = node.args[2]
    else:
        return None
    stack = node.args[0]
    if not isinstance(index, fx.Node) or not isinstance(stack, fx.Node) or stack not in fixed:
        return None
    value = index.meta["val"]
    numbers = value.dim() == 1 and value.dtype not in (torch.bool, torch.uint8)  # those are masks
    return (stack, index) if numbers and stack.meta["val"].dim() == 3 else None


def _sorted_and_back(
    emit: Emitter, x: fx.Node, stack: fx.Node, index: fx.Node, fixed: set[fx.Node]
) -> fx.Node:
    count = int(stack.meta["val"].shape[0])
    # An index of -1 is that of the last matrix.
    from_end = emit.call(aten.add.Scalar, index, count)
    index = emit.call(aten.where.self, emit.call(aten.lt.Scalar, index, 0), from_end, index)
    numbers = emit.call(aten.cumsum.default, emit.call(aten.new_ones.default, index, [count]), 0)
    before = emit.call(aten.lt.Tensor, emit.call(aten.unsqueeze.default, index, -1), numbers)
    ends = emit.call(aten.sum.dim_IntList, before, [0])
    order = emit.call(aten.argsort.default, index)
    y = routed(emit, emit.call(aten.index_select.default, x, 0, order), stack, ends, fixed)
    return emit.call(aten.index_select.default, y, 0, emit.call(aten.argsort.default, order))
