"""Take attention with stored queries, keys or values apart, so that its products can go analog.

    y = softmax(scale q k^T + mask) v

Learned queries (Perceiver, pooling heads) and stored memories meet an activation in one of the two
products. That one is then a product with a stored operand like any other. Attention of activations
alone stays one operator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from .base import Pass, PassContext, PassResult, finish
from .emit import Emitter
from .select_analog import keep_digital, kept_for
from .stationary import live_nodes, stationary_nodes

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default


@dataclass(frozen=True, slots=True)
class LowerAttention(Pass):
    """Rewrite attention with a stored operand into two ``matmul`` and a softmax."""

    experts: int = 64
    """Most matrices (batch times heads) that a stored operand may have."""
    name: ClassVar[str] = "lower-attention"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        nodes = module.graph.find_nodes(op="call_function", target=ATTENTION)
        if not nodes:
            return PassResult(module, False)
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        modified = False
        for node in nodes:
            stored = [arg for arg in node.args[:3] if arg in fixed]
            if node in live and stored:
                modified |= self._lower(node, stored)
        return finish(module, modified)

    def _lower(self, node: fx.Node, stored: list[fx.Node]) -> bool:
        if kept_for(node, *stored):
            return False
        most = max(math.prod(map(int, arg.meta["val"].shape[:-2])) for arg in stored)
        if most > self.experts:
            keep_digital(
                node,
                f"its stored operand stacks {most} matrices, more than {self.experts}: "
                f"lower-attention{{experts={most}}},lower-products{{experts={most}}} in passes= "
                "makes a linear of each",
            )
            return False
        emit = Emitter(node, LowerAttention.name)
        names = [argument.name for argument in ATTENTION._schema.arguments]
        given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        q, k, v = given["query"], given["key"], given["value"]
        if given.get("enable_gqa"):
            heads = q.meta["val"].shape[-3]
            k, v = (_repeated(emit, part, heads) for part in (k, v))
        scale = given.get("scale")
        if scale is None:
            scale = 1 / math.sqrt(int(q.meta["val"].shape[-1]))
        turned = emit.call(aten.transpose.int, k, -1, -2)
        scores = emit.call(aten.mul.Scalar, emit.call(aten.matmul.default, q, turned), scale)
        scores = _masked(emit, scores, given.get("attn_mask"), bool(given.get("is_causal")), q, k)
        shares = emit.call(aten._safe_softmax.default, scores, -1)
        if given.get("dropout_p"):
            shares = emit.call(aten.dropout.default, shares, given["dropout_p"], True)
        emit.replace(emit.call(aten.matmul.default, shares, v))
        return True


def _repeated(emit: Emitter, part: fx.Node, heads: Any) -> fx.Node:
    """Keys or values of grouped queries, once for each query head."""
    times = int(heads) // int(part.meta["val"].shape[-3])
    return part if times == 1 else emit.call(aten.repeat_interleave.self_int, part, times, -3)


def _masked(
    emit: Emitter, scores: fx.Node, mask: fx.Node | None, causal: bool, q: fx.Node, k: fx.Node
) -> fx.Node:
    if causal:
        lengths = [node.meta["val"].shape[-2] for node in (q, k)]
        sizes = [
            length if isinstance(length, int) else emit.call(aten.sym_size.int, node, -2)
            for length, node in zip(lengths, (q, k), strict=True)
        ]
        # Not aten.ones: a mask is where the scores are.
        mask = emit.call(aten.tril.default, emit.call(aten.new_ones.default, scores, sizes))
        mask = emit.call(aten.ne.Scalar, mask, 0)
    if mask is None:
        return scores
    if mask.meta["val"].dtype is not torch.bool:
        return emit.call(aten.add.Tensor, scores, mask)
    hidden = emit.call(aten.logical_not.default, mask)
    return emit.call(aten.masked_fill.Scalar, scores, hidden, -math.inf)
