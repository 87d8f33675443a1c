"""Turn ``bilinear`` into a linear and a sum of products.

    y[.., o] = sum_ij x1[.., i] W[o, i, j] x2[.., j] + b[o]

A crossbar multiplies one live vector by what it stores, so the stored operand meets one input on
the tiles, ``z[.., o, i] = sum_j W[o, i, j] x2[.., j]``, and the other one digitally,
``y = sum_i x1 z``. The tiles take the wider input (on a tie the second, for which [O·I, J] is a
view of the weight): fewer columns to convert, and fewer digital products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from .base import Pass, PassContext, PassResult, finish
from .canonicalize import LINEAR
from .emit import Emitter
from .select_analog import kept_for
from .stationary import live_nodes, stationary_nodes

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class LowerBilinear(Pass):
    """Rewrite ``bilinear`` with a stored weight into ``linear``, ``mul`` and ``sum``."""

    name: ClassVar[str] = "lower-bilinear"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        nodes = module.graph.find_nodes(op="call_function", target=aten.bilinear.default)
        if not nodes:
            return PassResult(module, False)
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        modified = False
        for node in nodes:
            if node in live and node.args[2] in fixed:
                modified |= _lower(node, live)
        return finish(module, modified)


def _lower(node: fx.Node, live: set[fx.Node]) -> bool:
    first, second, weight = node.args[:3]
    assert isinstance(first, fx.Node) and isinstance(second, fx.Node), "bilinear of tensors"
    assert isinstance(weight, fx.Node), "bilinear has a tensor weight"
    if kept_for(node, weight):
        return False
    emit = Emitter(node, LowerBilinear.name)
    outputs, i, j = (int(size) for size in weight.meta["val"].shape)
    tiled, other, rest = second, first, i
    if second not in live or (first in live and i > j):
        tiled, other, rest = first, second, j
        weight = emit.call(aten.transpose.int, weight, 1, 2)
    weight = emit.call(aten.flatten.using_ints, weight, 0, 1)
    z = emit.call(LINEAR, tiled, weight)
    z = emit.call(aten.unflatten.int, z, -1, [outputs, rest])
    y = emit.call(aten.mul.Tensor, z, emit.call(aten.unsqueeze.default, other, -2))
    y = emit.call(aten.sum.dim_IntList, y, [-1])
    bias = node.args[3] if len(node.args) > 3 else None
    if bias is not None:
        y = emit.call(aten.add.Tensor, y, bias)
    emit.replace(y)
    return True
