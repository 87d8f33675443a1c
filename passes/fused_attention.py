"""What torch's fused encoder operators compute, in operators that other passes know.

``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention`` call them in eval mode without
gradients. Capture switches them off; an ExportedProgram made elsewhere may hold them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


def attention(
    query: Tensor, key: Tensor, value: Tensor, embed_dim: int, num_head: int,
    qkv_weight: Tensor, qkv_bias: Tensor, proj_weight: Tensor, proj_bias: Tensor,
    mask: Tensor | None = None, need_weights: bool = True, average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``aten._native_multi_head_attention``: inputs [B, L, E], ``mask`` True where hidden."""
    weights, biases = qkv_weight.chunk(3), qkv_bias.chunk(3)
    if query is key and key is value:
        projected = F.linear(query, qkv_weight, qkv_bias).chunk(3, -1)
    else:
        projected = tuple(map(F.linear, (query, key, value), weights, biases))
    q, k, v = (
        p.unflatten(-1, (num_head, embed_dim // num_head)).transpose(1, 2) for p in projected
    )
    scores = (q * (embed_dim // num_head) ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        if mask.dim() == 2:
            mask = mask[None, None] if mask_type == 0 else mask[:, None, None]
        scores = scores.masked_fill(mask.bool(), float("-inf"))
    shares = torch.softmax(scores, -1)
    y = F.linear((shares @ v).transpose(1, 2).flatten(2), proj_weight, proj_bias)
    if not need_weights:
        return y, y.new_empty(0)
    return y, shares.mean(1) if average_attn_weights else shares


def encoder_layer(
    src: Tensor, embed_dim: int, num_heads: int, qkv_weight: Tensor, qkv_bias: Tensor,
    proj_weight: Tensor, proj_bias: Tensor, use_gelu: bool, norm_first: bool, eps: float,
    norm_weight_1: Tensor, norm_bias_1: Tensor, norm_weight_2: Tensor, norm_bias_2: Tensor,
    ffn_weight_1: Tensor, ffn_bias_1: Tensor, ffn_weight_2: Tensor, ffn_bias_2: Tensor,
    mask: Tensor | None = None, mask_type: int | None = None,
) -> Tensor:  # fmt: skip
    """``aten._transformer_encoder_layer_fwd``: input and result [B, L, E]."""

    def norm1(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_1, norm_bias_1, eps)

    def norm2(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_2, norm_bias_2, eps)

    def attend(x: Tensor) -> Tensor:
        return attention(
            x, x, x, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight, proj_bias,
            mask, False, True, mask_type,
        )[0]  # fmt: skip

    def feed(x: Tensor) -> Tensor:
        hidden = F.linear(x, ffn_weight_1, ffn_bias_1)
        hidden = F.gelu(hidden) if use_gelu else F.relu(hidden)
        return F.linear(hidden, ffn_weight_2, ffn_bias_2)

    if norm_first:
        src = src + attend(norm1(src))
        return src + feed(norm2(src))
    src = norm1(src + attend(src))
    return norm2(src + feed(src))


FUSED: dict[Any, Callable[..., Any]] = {
    aten._native_multi_head_attention.default: attention,
    aten._transformer_encoder_layer_fwd.default: encoder_layer,
}
"""Lowerings of torch's fused operators."""
