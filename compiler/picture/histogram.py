"""Distributions for the page: what a weight and the converter ranges of a layer look like."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from ...runtime.converters import Converter
from ...runtime.slicing import Slicing
from ..target_text import converter_notes

BINS = 48
_MOST = 1 << 20
"""Values that are counted; of a larger tensor an even sample."""
_LISTED = 64
"""Ranges that are listed one by one."""


def histogram(values: Tensor) -> dict[str, Any]:
    """Counts of ``values`` in equal bins from the smallest to the largest, and moments.

    Extremes are exact; counts and moments of more than 2^20 values are those of an even sample.
    Values that are not finite are left out and counted apart.
    """
    flat = values.detach().reshape(-1)
    # Odd, so that a sample does not keep to a few columns of a matrix.
    step = -(-flat.numel() // _MOST) | 1
    low, high = (flat.amin(), flat.amax()) if flat.numel() else (flat.sum(), flat.sum())
    sample = flat[::step].float().cpu().numpy().astype(np.float64)
    finite = sample[np.isfinite(sample)]
    ends = float(low), float(high)
    if not all(map(math.isfinite, ends)):
        ends = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    counts, _ = np.histogram(finite, BINS, range=ends if ends[0] < ends[1] else None)
    return {
        "min": _digits(ends[0]),
        "max": _digits(ends[1]),
        "mean": _digits(finite.mean() if finite.size else 0.0),
        "std": _digits(finite.std() if finite.size else 0.0),
        "zero": _digits((finite == 0).mean() if finite.size else 0.0),
        "values": flat.numel(),
        "sampled": step > 1,
        "odd": int(sample.size - finite.size),
        "counts": counts.tolist(),
    }


def ranges(
    converter: Converter, value: Tensor | None, slicing: Slicing | None = None
) -> dict[str, Any]:
    """Settings of a converter and its ranges; ``dims`` has the name and size of each of their dims.

    Args:
        converter: DAC or ADC of a layer.
        value: its ranges, see ``LayerSpec.adc_shape``; None: it has none of its own.
        slicing: of the layer.
    """
    kind = converter.range if isinstance(converter.range, str) else "fixed"
    found: dict[str, Any] = {
        "bits": converter.bits,
        "steps": converter.full_code,
        "codes": converter.codes,
        "notes": converter_notes(converter),
        "range": kind,
        "per_column": converter.per_column,
    }
    if value is None:
        return found
    sliced = slicing is not None and value.ndim > 2
    names = ["row block", *(["slice", "pulse"] if sliced else []), "column"][: value.ndim]
    found["dims"] = [
        [name, size] for name, size in zip(names, value.shape, strict=True)
        if size > 1 or name == "row block"
    ]  # fmt: skip
    numbers = value.detach().float().cpu()
    if bool(numbers.isnan().any()):
        return {**found, "uncalibrated": True}
    if numbers.numel() > _LISTED:
        return {**found, "histogram": histogram(numbers)}
    return {**found, "values": [_digits(v) for v in numbers.reshape(-1).tolist()]}


def _digits(value: Any) -> float:
    return float(f"{float(value):.6g}")
