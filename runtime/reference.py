"""The decomposition that defines what an analog layer means: explicit, slow, readable.

    dac(x, range, bits)  mvm(codes, weight)  adc(p, range, bits)  accumulate(parts, gains, bias)

Each is an operator with its own straight-through gradient; ``linear`` and ``conv`` compose them.
Noise is an argument, so that the same draw can be given to the fast path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from .spec import LayerSpec
from .tiles import Programmed, join


@torch.library.custom_op("analogc::dac", mutates_args=())
def dac(x: Tensor, range: Tensor, bits: int) -> Tensor:
    """Convert ``x`` to codes in [-1, 1]: clip at ``range``, ``2^(bits-1) - 1`` steps a side."""
    levels = (1 << (bits - 1)) - 1
    return torch.clamp(torch.round(x * (levels / range)), -levels, levels) / levels


@torch.library.custom_op("analogc::adc", mutates_args=())
def adc(p: Tensor, range: Tensor, bits: int) -> Tensor:
    """Convert partial sums to the nearest of ``2^(bits-1) - 1`` steps a side of ``range``."""
    levels = (1 << (bits - 1)) - 1
    return torch.clamp(torch.round(p * (levels / range)), -levels, levels) * (range / levels)


@torch.library.custom_op("analogc::mvm", mutates_args=())
def mvm(codes: Tensor, weight: Tensor) -> Tensor:
    """Partial sums ``codes @ weight^T``: codes ``[..., K]``, weight ``[N, K]``."""
    return codes @ weight.mT


@torch.library.custom_op("analogc::accumulate", mutates_args=())
def accumulate(parts: Sequence[Tensor], gains: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """Digital sum ``sum_r parts_r * gains_r + bias`` over row blocks."""
    total = sum((part * gain for part, gain in zip(parts, gains, strict=True)), torch.zeros(()))
    assert isinstance(total, Tensor)
    return total.clone() if bias is None else total + bias


@dac.register_fake
def _(x: Tensor, range: Tensor, bits: int) -> Tensor:
    return torch.empty_like(x / range)


@adc.register_fake
def _(p: Tensor, range: Tensor, bits: int) -> Tensor:
    return torch.empty_like(p / range)


@mvm.register_fake
def _(codes: Tensor, weight: Tensor) -> Tensor:
    return codes.new_empty([*codes.shape[:-1], weight.shape[0]])


@accumulate.register_fake
def _(parts: Sequence[Tensor], gains: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    total = parts[0] * gains[0]
    return torch.empty_like(total if bias is None else total + bias)


def _make_vmap(op: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        flat, form = pytree.tree_flatten(args)
        dims = pytree.tree_leaves(in_dims)
        found = []
        for i in range(info.batch_size):
            picked = [
                arg.select(dim, i) if isinstance(dim, int) else arg
                for arg, dim in zip(flat, dims, strict=True)
            ]
            found.append(op(*pytree.tree_unflatten(picked, form)))
        return torch.stack(found), 0

    return vmap


for _op in (dac, adc, mvm, accumulate):
    _op.register_vmap(_make_vmap(_op))


def _save_inside(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, full, _ = inputs
    ctx.save_for_backward(x, full)


dac.register_autograd(
    lambda ctx, grad: (
        grad * (ctx.saved_tensors[0].abs() <= ctx.saved_tensors[1]) / ctx.saved_tensors[1],
        None,
        None,
    ),
    setup_context=_save_inside,
)
adc.register_autograd(
    lambda ctx, grad: (grad * (ctx.saved_tensors[0].abs() <= ctx.saved_tensors[1]), None, None),
    setup_context=_save_inside,
)
mvm.register_autograd(
    lambda ctx, grad: (
        grad @ ctx.saved_tensors[1],
        grad.reshape(-1, grad.shape[-1]).mT
        @ ctx.saved_tensors[0].reshape(-1, ctx.saved_tensors[0].shape[-1]),
    ),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def _accumulate_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    rows = list(range(grad.dim() - 1))
    bias = None
    if ctx.bias:
        bias = grad.sum(rows) if rows else grad
    return [grad * gain for gain in ctx.gains], [None] * len(ctx.gains), bias


def _accumulate_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.gains = inputs[1]
    ctx.bias = inputs[2] is not None


accumulate.register_autograd(_accumulate_gradient, setup_context=_accumulate_setup)


def linear(
    x: Tensor,
    weights: Sequence[Tensor],
    scale: Tensor,
    bias: Tensor | None,
    input_range: Tensor | None,
    adc_range: Tensor | None,
    spec: LayerSpec,
    noise: Sequence[Tensor] | None = None,
) -> Tensor:
    """One analog layer, block by block.

    Args:
        x: inputs ``[..., K]``.
        weights: effective normalised weight of each row block, ``[N, K_r]``.
        scale: weight scale of each column, ``[N]``.
        bias: ``[N]`` or None.
        input_range: ``[R]``, or None for the abs-max of each vector.
        adc_range: ``[R]`` or ``[R, N]``.
        spec: settings.
        noise: for each row block what is added to the partial sums, in units of one full-scale
            input on one full-scale weight.
    """
    parts, gains = [], []
    for r, (start, stop) in enumerate(spec.blocks):
        x_r = x[..., start:stop]
        full = torch.ones((), dtype=x.dtype, device=x.device)
        codes = x_r
        if spec.dac is not None:
            if input_range is None:
                peak = x_r.detach().abs().amax(-1, keepdim=True)
                peak = peak.clamp(max=spec.dac.cap or torch.inf)
                full = torch.where(peak > 0, peak, 1.0)
            else:
                full = input_range[r].to(x.dtype)
            codes = dac(x_r, full, spec.dac.bits)
        p = mvm(codes, weights[r])
        if noise is not None:
            p = p + noise[r]
        if spec.adc is not None:
            assert adc_range is not None, "an ADC has a range"
            p = adc(p, adc_range[r].to(x.dtype), spec.adc.bits)
        parts.append(p)
        gains.append(full * scale)
    y: Tensor = accumulate(parts, gains, bias)
    return y


def conv(
    x: Tensor,
    tiles: Programmed,
    bias: Tensor | None,
    input_range: Tensor | None,
    adc_range: Tensor | None,
    spec: LayerSpec,
    weight_shape: torch.Size,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """A 2-D convolution as ``linear`` on its im2col patches, group by group, without noise.

    Args:
        x: ``[B, C, H, W]``.
        tiles: programmed conv tiles.
        weight_shape: ``[N, C / groups, kh, kw]``.
        The others are those of ``linear`` and of ``torch.nn.functional.conv2d``.
    """
    kernel = weight_shape[2:]
    matrix = flat_weight(tiles, weight_shape, spec)
    size = [
        (x.shape[2 + d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1
        for d in (0, 1)
    ]
    outputs = []
    per_group = weight_shape[0] // groups
    for g, part in enumerate(x.chunk(groups, dim=1)):
        patches = F.unfold(
            part, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride)
        ).mT  # [B, P, K]
        columns = slice(g * per_group, (g + 1) * per_group)
        wide = adc_range
        if wide is not None and wide.dim() == 2:
            wide = wide[:, columns]
        blocks = [matrix[columns, a:b] for a, b in spec.blocks]
        group_bias = None if bias is None else bias[columns]
        y = linear(patches, blocks, tiles.scale[columns], group_bias, input_range, wide, spec)
        outputs.append(y.mT.unflatten(-1, size))
    return torch.cat(outputs, dim=1)


def flat_weight(tiles: Programmed, weight_shape: torch.Size, spec: LayerSpec) -> Tensor:
    """Effective normalised weight as one matrix ``[N, K]``."""
    if tiles.packed is not None:
        return tiles.packed.unpack()
    return join(tiles.blocks, weight_shape, spec)
