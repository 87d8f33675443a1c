"""What ``physical`` computes, in loops: one weight slice and one pulse at a time, on vectors.

It shares no code with it but the settings: digits by division, sums by matrix products, codes by
counting. It is the definition, for layers without random draws; a convolution is this on patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .converters import Converter
from .spec import LayerSpec

Convert = Callable[[Tensor, int, int], Tensor]
"""Steps of the ADC to codes, of columns ``[V, N]`` of row block r and slice s."""


def codes_of(v: Tensor, converter: Converter) -> Tensor:
    """The nearest code of ``v`` (in steps): half to even, clipped."""
    if converter.codes == "offset":
        return torch.clamp(torch.round(v - 0.5) + 0.5, -converter.full_code, converter.full_code)
    return torch.clamp(torch.round(v), converter.lowest, converter.full_code)


def digits_of(codes: Tensor, bits: Sequence[int], kind: str) -> list[tuple[Tensor, float, float]]:
    """``(digit, its full scale, weight of its lowest bit)``, the most significant first."""
    total = sum(bits)
    sign = torch.ones_like(codes)
    level = codes
    if kind == "sign-magnitude":
        sign, level = torch.sign(codes), codes.abs()
    elif kind == "offset":
        level = codes + (2**total - 1) / 2
    elif kind == "symmetric":
        level = torch.where(codes < 0, codes + 2**total, codes)
    found, place = [], total
    for i, width in enumerate(bits):
        place -= width
        digit = torch.div(level, 2**place, rounding_mode="floor")
        level = level - digit * 2**place
        full, worth = float(2**width - 1), float(2**place)
        if kind == "offset":
            digit, full = digit - (2**width - 1) / 2, (2**width - 1) / 2
        elif kind == "symmetric" and i == 0 and width == 1:
            worth = -worth
        elif kind == "symmetric" and i == 0:
            full = float(2 ** (width - 1))
            digit = torch.where(digit >= full, digit - 2**width, digit)
        found.append((digit * sign, full, worth))
    return found


def linear(
    x: Tensor,
    slices: Sequence[Sequence[Tensor]],
    scale: Tensor,
    bias: Tensor | None,
    input_range: Tensor | None,
    adc_range: Tensor | None,
    spec: LayerSpec,
    convert: Convert | None = None,
    read_out: Convert | None = None,
) -> Tensor:
    """One layer with slices and pulses.

    Args:
        x: ``[V, K]``.
        slices: effective normalised weights, ``[S][R]`` of ``[N, K_r]``.
        scale: ``[N]``.
        bias: ``[N]`` or None.
        input_range: ``[R]``, or None for the abs-max of each vector.
        adc_range: of ``spec.adc_shape``.
        spec: settings.
        convert: in place of the nearest code.
        read_out: what the periphery makes of sums, as fractions of the ADC's range.
    """
    slicing, dac, adc = spec.slicing, spec.dac, spec.adc
    offset = slicing is not None and slicing.coding == "offset"
    y = torch.zeros(len(x), len(scale), dtype=x.dtype)
    for r, (start, stop) in enumerate(spec.blocks):
        x_r = x[:, start:stop]
        unit = torch.ones(())
        codes, steps = x_r, 1.0
        if dac is not None:
            peak = x_r.abs().amax(1, keepdim=True).clamp(max=dac.cap or torch.inf)
            unit = peak if input_range is None else input_range[r]
            unit = torch.where(unit > 0, unit, 1.0)
            codes, steps = codes_of(x_r / unit * dac.full_code, dac), dac.full_code
        pulses = [(codes, steps, 1.0)]
        cut = () if slicing is None or slicing.input_bits is None else slicing.input_bits
        if dac is not None and slicing is not None and len(cut) > 1:
            if slicing.input_accumulation == "digital":
                pulses = digits_of(codes, cut, dac.codes)
        for s, blocks in enumerate(slices):
            w = blocks[r]
            c = 1.0 if slicing is None else slicing.significances[s]
            sign = torch.ones(len(w))
            if offset and slicing is not None and slicing.flip:
                sign = torch.where(w.sum(1) > 0, -1.0, 1.0)
            cells = (w * sign[:, None] + 1) / 2 if offset else w
            for k, (digit, full, place) in enumerate(pulses):
                p = digit @ cells.mT / full
                if adc is not None or read_out is not None:
                    span = _range(adc_range, spec, r, s, k, stop - start)
                    v = p / span
                    if read_out is not None:
                        v = read_out(v, r, s)
                    if adc is not None:
                        v = v * adc.full_code
                        v = codes_of(v, adc) if convert is None else convert(v, r, s)
                        v = v / adc.full_code
                    p = v * span
                if offset:
                    p = (2 * p - digit.sum(1, keepdim=True) / full) * sign
                y = y + unit * c * (full * place / steps) * p * scale
    return y if bias is None else y + bias


def _range(adc_range: Tensor | None, spec: LayerSpec, r: int, s: int, k: int, rows: int) -> Tensor:
    if adc_range is None:
        return torch.tensor(float(rows))
    if spec.slicing is not None and spec.slicing.ranges == "per-slice":
        return adc_range[r, s, 0]
    if spec.slicing is not None and spec.slicing.ranges == "per-pulse":
        return adc_range[r, s, k]
    return adc_range[r]
