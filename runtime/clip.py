"""Clipping of weights before they are scaled and written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .converters import is_number
from .errors import InputError

Kind = Literal["fixed", "sigma", "percentile"]


@dataclass(frozen=True, slots=True)
class WeightClip:
    """Weights beyond a bound are written as the bound, so that the others use more of the range.

    The bound of ``sigma`` and ``percentile`` is that of the weights that share a scale: one output
    column, or the layer with ``weight_scale="tensor"``. The gradient is that of no clipping.
    """

    kind: Kind = "sigma"
    """``fixed``: ``value``, in the weights' own units. ``sigma``: so many standard deviations.
    ``percentile``: that percentile of the magnitudes, 0..100, interpolated linearly."""
    value: float = 2.5
    """Default: that of Gaussian clipping in aihwkit."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise InputError(f"WeightClip.kind must be one of {known}, got {self.kind!r}")
        if not is_number(self.value) or self.value <= 0:
            raise InputError(f"WeightClip.value must be a positive number, got {self.value!r}")
        if self.kind == "percentile" and self.value > 100:
            raise InputError(f"WeightClip.value must be a percentile 0..100, got {self.value!r}")

    def apply(self, weight: Tensor, per_column: bool) -> Tensor:
        """``weight`` ``[N, K]`` clipped, in a new tensor."""
        if not weight.numel():
            return weight
        if self.kind == "fixed":
            return weight.clamp(-self.value, self.value)
        groups = weight if per_column else weight.reshape(1, -1)
        if self.kind == "sigma":
            bound = groups.std(dim=1, correction=0, keepdim=True) * self.value
        else:
            size, at = groups.abs(), self.value / 100 * (groups.shape[1] - 1)
            below = int(at)
            # Not torch.quantile, which takes 16 million values at most.
            low = size.kthvalue(below + 1, dim=1, keepdim=True).values
            bound = low
            if at > below:
                high = size.kthvalue(below + 2, dim=1, keepdim=True).values
                bound = low + (at - below) * (high - low)
        # A constant column has no spread, and nothing to clip.
        bound = torch.where(bound > 0, bound, torch.inf)
        return weight.clamp(-bound, bound)
