"""The simulation of one analog layer, in plain torch operations: the fast path and its gradient.

This is the seam for other backends: a kernel gets the input, the programmed tiles and the settings,
and returns the output. ``reference`` holds the slow decomposition that defines the meaning.

    q_r = dac(x_r / s_r)      p_r = q_r · W̃_rᵀ      a_r = adc(p_r + noise)
    y   = Σ_r s_r · α · a_r + bias

Codes stay integers through the GEMM; every scale is folded into one factor for each partial sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .converters import quantise, to_codes
from .mvm import ConvMVM, Geometry, PatchMVM
from .noise import NoiseKey
from .spec import LayerSpec
from .tiles import Programmed


@dataclass(frozen=True, slots=True)
class Ranges:
    """Converter ranges of one layer."""

    input: Tensor | None
    """``[R]``, in units of the input; None if dynamic or without a DAC."""
    adc: Tensor | None
    """``[R]`` or ``[R, N]``, in units of one full-scale product; None without an ADC."""


def forward(
    mvm: Geometry,
    x: Tensor,
    tiles: Programmed,
    bias: Tensor | None,
    ranges: Ranges,
    spec: LayerSpec,
    key: NoiseKey | None,
    want_mask: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Output of the layer, and where its ADCs did not clip (``[R, *output]``) if wanted.

    Args:
        mvm: how inputs meet weights.
        x: ``[..., K]`` or ``[B, C, *size]``.
        tiles: what is programmed.
        bias: ``[N]``, added digitally.
        ranges: converter ranges.
        spec: settings.
        key: of the output noise; None if the layer has none.
        want_mask: for the backward pass.
    """
    dtype = tiles.scale.dtype
    wide = x.to(dtype)
    alpha = mvm.columns(tiles.scale)
    y: Tensor | None = None
    masks: list[Tensor] = []
    for r, weight in enumerate(tiles.blocks):
        codes, unit, steps = drive(mvm, mvm.take(wide, r), ranges, spec, r)
        p = mvm.multiply(codes, weight, r)
        if key is not None:
            columns = tiles.scale.shape[0]
            noise = key.matrix(r, p.numel() // max(columns, 1), columns, dtype, p.device)
            p.add_(mvm.spread(noise, p.shape), alpha=spec.output_noise * steps)
        if spec.adc is None:
            gain = unit / steps
        else:
            levels = spec.adc.levels
            full = _adc_range(mvm, ranges, r, dtype)
            p.mul_(levels / (full * steps))
            if want_mask:
                masks.append(mvm.finish(p.abs() <= levels))
            p.round_().clamp_(-levels, levels)
            gain = unit * full / levels
        if spec.dynamic:
            p.mul_(gain)
            gain = 1.0
        y = p.mul_(alpha * gain) if y is None else y.addcmul_(p, alpha * gain)
    assert y is not None, "a layer has at least one row block"
    if bias is not None:
        y.add_(mvm.columns(bias.to(dtype)))
    return mvm.finish(y).to(x.dtype), torch.stack(masks) if masks else None


def drive(
    mvm: Geometry, part: Tensor, ranges: Ranges, spec: LayerSpec, block: int
) -> tuple[Tensor, Tensor | float, float]:
    """What a row block is driven with: codes, the input that full scale stands for, full scale."""
    if spec.dac is None:
        return part, 1.0, 1
    if spec.dynamic:
        full: Tensor = mvm.peak(part)
    else:
        assert ranges.input is not None, "a static input range"
        full = ranges.input[block].to(part)
    if spec.physical:
        return quantise(part, full, spec.dac), full, spec.dac.full_code
    return to_codes(part, full, spec.dac.levels), full, spec.dac.levels


def _adc_range(mvm: Geometry, ranges: Ranges, block: int, dtype: torch.dtype) -> Tensor:
    assert ranges.adc is not None, "an ADC has a range"
    full = ranges.adc[block].to(dtype)
    return mvm.columns(full) if full.dim() else full


def backward(
    mvm: Geometry,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    tiles: Programmed,
    mask: Tensor | None,
    ranges: Ranges,
    spec: LayerSpec,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of input and weight: straight through converters inside their range, zero outside.

    Programming counts as the identity; converter ranges and the weight scale as constants.
    """
    dtype = tiles.scale.dtype
    wide = x.to(dtype)
    grad = mvm.start(grad.to(dtype))
    alpha = mvm.columns(tiles.scale)
    single = len(tiles.blocks) == 1
    grad_x = torch.zeros_like(wide) if need_input and not single else None
    grad_w = None
    if need_weight and not single:
        grad_w = torch.zeros(weight.shape, dtype=dtype, device=x.device)
    for r, block in enumerate(tiles.blocks):
        part = mvm.take(wide, r)
        passed = grad if mask is None else grad * mvm.start(mask[r])
        if need_input:
            found = mvm.grad_input(passed * alpha, block, wide, r)
            if spec.dac is not None and not spec.dynamic:
                assert ranges.input is not None, "a static input range"
                found.mul_(_driven(mvm, wide, part, r).abs() <= ranges.input[r].to(part))
            if spec.dac is not None and spec.dac.codes == "unsigned":
                found.mul_(_driven(mvm, wide, part, r) >= 0)
            if grad_x is None:
                grad_x = found
            else:
                mvm.add_input(grad_x, found, r)
        if need_weight:
            codes, unit, steps = drive(mvm, part, ranges, spec, r)
            if spec.dynamic:
                found = mvm.grad_weight(passed, codes * (unit / steps), block, r)
            else:
                found = mvm.grad_weight(passed, codes, block, r).mul_(unit / steps)
            if grad_w is None:
                grad_w = found
            else:
                mvm.add_weight(grad_w, found, r)
    return (
        None if grad_x is None else grad_x.to(x.dtype),
        None if grad_w is None else grad_w.to(weight.dtype),
    )


def _driven(mvm: Geometry, x: Tensor, part: Tensor, block: int) -> Tensor:
    """The part of the input that ``grad_input`` is about: of patches, the channels."""
    return ConvMVM.take(mvm, x, block) if isinstance(mvm, PatchMVM) else part


DECAY = 1e-3
"""Share of a learned range that its gradient has besides, while few inputs clip."""
FEW = 0.05
"""Share of inputs that may clip while a range shrinks."""


def range_gradient(
    mvm: Geometry,
    grad: Tensor,
    x: Tensor,
    tiles: Programmed,
    mask: Tensor | None,
    input_range: Tensor,
    spec: LayerSpec,
) -> Tensor:
    """Gradient ``[R]`` of the input ranges: from the inputs that clip, and a decay.

    A clipped input is driven as the range with its sign, so ``ds = sum sign(x) dx`` over those.
    Where less than ``FEW`` of the inputs clip, ``DECAY s`` is added, so that the range shrinks to
    where it is worth while. ADC ranges are in units of the input range and count as constants.

    Source of the rule: Rasch et al., Nat. Commun. 14, 5282 (2023), methods. Operands are those of
    ``backward``.
    """
    dtype = tiles.scale.dtype
    wide = x.to(dtype)
    grad = mvm.start(grad.to(dtype)) * mvm.columns(tiles.scale)
    out = torch.zeros_like(input_range)
    for r, block in enumerate(tiles.blocks):
        part = _driven(mvm, wide, mvm.take(wide, r), r)
        full = input_range[r].to(dtype)
        passed = grad if mask is None else grad * mvm.start(mask[r])
        found = mvm.grad_input(passed, block, wide, r)
        clipped = part.abs() > full
        total = (found * part.sign() * clipped).sum()
        few = clipped.to(dtype).mean() < FEW
        out[r] = total + DECAY * full * few
    return out
