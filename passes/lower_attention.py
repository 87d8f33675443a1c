"""Turn attention with a stored query, key or value into products and a softmax.

Learned queries (attention pooling, object queries, latents) and learned memories make one or two of
the three products of ``scaled_dot_product_attention`` weight-stationary:

    y = softmax(scale · Q Kᵀ + mask) V

Written out, ``Q Kᵀ`` and ``P V`` are products that lower-products knows. An attention whose three
operands are activations stays the fused operator; a stored mask is added, not multiplied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from .base import Pass, PassContext, PassResult, finish
from .copies import Copies
from .emit import Emitter
from .select_analog import kept_for
from .stationary import live_nodes, stationary_nodes

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default


@dataclass(frozen=True, slots=True)
class LowerAttention(Pass):
    """Rewrite attention with a stored query, key or value into ``matmul`` and ``softmax``."""

    name: ClassVar[str] = "lower-attention"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        nodes = module.graph.find_nodes(op="call_function", target=ATTENTION)
        if not nodes:
            return PassResult(module, False)
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        copies = Copies(module.graph, fixed)
        modified = False
        for node in nodes:
            operands = [arg for arg in node.args[:3] if isinstance(arg, fx.Node)]
            stored = [arg for arg in operands if arg in fixed or arg in copies]
            if node not in live or not stored or len(stored) == len(operands):
                continue
            if not kept_for(node, *stored):
                _lower(node)
                modified = True
        return finish(module, modified)


def _lower(node: fx.Node) -> None:
    names = [argument.name for argument in ATTENTION._schema.arguments]
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    query, key, value = (given[name] for name in names[:3])
    mask, scale = given.get("attn_mask"), given.get("scale")
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node), "attention of tensors"
    assert isinstance(value, fx.Node), "attention of tensors"
    if scale is None:
        scale = 1 / math.sqrt(int(query.meta["val"].shape[-1]))
    emit = Emitter(node, LowerAttention.name)
    heads = _heads(key)
    grouped = bool(given.get("enable_gqa")) and _heads(query) != heads
    if grouped:
        # Each head of keys and values serves several of queries: broadcast, not copied.
        query = emit.call(aten.unflatten.int, query, -3, [heads, -1])
        key, value = (emit.call(aten.unsqueeze.default, part, -3) for part in (key, value))
    scores = emit.call(aten.matmul.default, query, emit.call(aten.transpose.int, key, -1, -2))
    scores = emit.call(aten.mul.Scalar, scores, scale)
    if given.get("is_causal"):
        scores = _masked(emit, scores, _lower_triangle(emit, scores))
    elif isinstance(mask, fx.Node):
        if grouped and mask.meta["val"].dim() > 2:
            mask = _grouped(emit, mask, heads)
        scores = _masked(emit, scores, mask)
    # As torch does it: a query that may attend to nothing gets zeros.
    weights = emit.call(aten._safe_softmax.default, scores, -1)
    if given.get("dropout_p"):
        weights = emit.call(aten.dropout.default, weights, given["dropout_p"], True)
    y = emit.call(aten.matmul.default, weights, value)
    emit.replace(emit.call(aten.flatten.using_ints, y, -4, -3) if grouped else y)


def _heads(node: fx.Node) -> int:
    shape = node.meta["val"].shape
    return int(shape[-3]) if len(shape) > 2 else 1


def _grouped(emit: Emitter, mask: fx.Node, heads: int) -> fx.Node:
    if _heads(mask) == 1:
        return emit.call(aten.unsqueeze.default, mask, -3)
    return emit.call(aten.unflatten.int, mask, -3, [heads, -1])


def _lower_triangle(emit: Emitter, scores: fx.Node) -> fx.Node:
    """True where a query may look: at its own place and before it."""
    while scores.meta["val"].dim() > 2:
        scores = emit.call(aten.select.int, scores, 0, 0)
    ones = emit.call(aten.ones_like.default, scores)
    return emit.call(aten.gt.Scalar, emit.call(aten.tril.default, ones), 0)


def _masked(emit: Emitter, scores: fx.Node, mask: fx.Node) -> fx.Node:
    if mask.meta["val"].dtype != torch.bool:
        return emit.call(aten.add.Tensor, scores, mask)
    return emit.call(aten.where.ScalarOther, mask, scores, -math.inf)
