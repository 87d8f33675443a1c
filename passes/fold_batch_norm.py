"""Fold a batch norm in eval mode into the linear, conv or transposed conv before it.

The folded weight is an expression of the live parameters and statistics, not a copy:

    W' = W · s      b' = (b - mean) · s + beta      s = gamma / sqrt(var + eps)

It is written as graph nodes, in float64 so that folding costs one rounding, and ``derive-weights``
makes it a weight that is evaluated only when one of its sources changed. Ideal targets keep their
batch norms: their layers are the digital ones, and a folded weight would be a second copy of each.
Runs after canonicalize, and before transposed convs are lowered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import fx

from .base import FROM, Pass, PassContext, PassResult, finish
from .canonicalize import CONVS, LINEAR
from .emit import Emitter, take_place
from .lower_transposed_conv import is_transposed, transposed_groups
from .stationary import is_pure, stationary_nodes

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class FoldBatchNorm(Pass):
    """Fold ``batch_norm(layer(x))`` of eval graphs."""

    name: ClassVar[str] = "fold-batch-norm"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        if ctx.target.is_ideal:
            return finish(module, False)
        fixed = stationary_nodes(module.graph)
        modified = False
        for node in list(module.graph.nodes):
            if node.op == "call_function" and node.target is aten.batch_norm.default:
                modified |= _fold(node, fixed)
        return finish(module, modified)


def _fold(norm: fx.Node, fixed: set[fx.Node]) -> bool:
    before, gamma, beta, mean, var, training = norm.args[:6]
    eps = norm.args[7]
    if training or not isinstance(before, fx.Node) or len(before.users) != 1:
        return False
    statistics = [arg for arg in (gamma, beta, mean, var) if arg is not None]
    if mean is None or var is None or not all(arg in fixed for arg in statistics):
        return False
    if before.target is LINEAR:
        if before.meta["val"].dim() != 2:
            return False
    elif before.target in CONVS:
        if before.meta["val"].dim() != CONVS[before.target] + 2:
            return False
    elif not is_transposed(before) or before.meta["val"].dim() == 1 + _spatial(before):
        return False
    weight = before.args[1]
    bias = before.args[2] if len(before.args) > 2 else None
    if weight not in fixed or not (bias is None or bias in fixed):
        return False
    assert isinstance(weight, fx.Node), "a layer has a tensor weight"

    if _writes_between(before, norm):
        return False  # the folded layer runs where the norm did, and must see the same input

    emit = Emitter(norm, FoldBatchNorm.name)

    wide = partial(_wide, emit)

    scale = emit.call(aten.rsqrt.default, emit.call(aten.add.Scalar, wide(var), eps))
    if gamma is not None:
        scale = emit.call(aten.mul.Tensor, scale, wide(gamma))
    new_weight = _scaled(emit, before, weight, scale)
    shift = emit.call(aten.neg.default, wide(mean))
    if bias is not None:
        shift = emit.call(aten.add.Tensor, shift, wide(bias))
    new_bias = emit.call(aten.mul.Tensor, shift, scale)
    if beta is not None:
        new_bias = emit.call(aten.add.Tensor, new_bias, wide(beta))
    args = list(before.args) + [None] * (3 - len(before.args))
    # Not a fixed dtype: the model may be moved to another one.
    args[1] = emit.call(aten.type_as.default, new_weight, weight)
    args[2] = emit.call(aten.type_as.default, new_bias, weight)
    assert not isinstance(before.target, str), "a layer is an operator"
    folded = emit.call(before.target, *args)
    # The layer keeps its own name and place in the model; the batch norm only lent it its scale.
    for key in ("nn_module_stack", "stack_trace"):
        if key in before.meta:
            folded.meta[key] = before.meta[key]
    folded.meta[FROM] = (*before.meta.get(FROM, ()), (FoldBatchNorm.name, before.name))
    emit.replace(folded)
    take_place(folded, before)
    return True


def _writes_between(first: fx.Node, last: fx.Node) -> bool:
    node = first.next
    while node is not last:
        if node.op == "call_function" and not is_pure(node.target):
            return True
        node = node.next
    return False


def _wide(emit: Emitter, value: object) -> fx.Node:
    return emit.call(aten.to.dtype, value, torch.float64)


def _spatial(conv: fx.Node) -> int:
    weight = conv.args[1]
    assert isinstance(weight, fx.Node), "a layer has a tensor weight"
    return int(weight.meta["val"].dim()) - 2


def _scaled(emit: Emitter, layer: fx.Node, weight: fx.Node, scale: fx.Node) -> fx.Node:
    """``weight`` of ``layer`` with each output channel times its ``scale``, in float64."""
    dims = weight.meta["val"].dim()
    if not is_transposed(layer):
        column = emit.call(aten.view.default, scale, [-1] + [1] * (dims - 1))
        return emit.call(aten.mul.Tensor, _wide(emit, weight), column)
    # [C_in, C_out / g, *kernel]: the outputs of one group after those of another.
    groups = transposed_groups(layer)
    rows = emit.call(aten.unflatten.int, _wide(emit, weight), 0, [groups, -1])
    column = emit.call(aten.view.default, scale, [groups, 1, -1] + [1] * (dims - 2))
    return emit.call(aten.flatten.using_ints, emit.call(aten.mul.Tensor, rows, column), 0, 1)
