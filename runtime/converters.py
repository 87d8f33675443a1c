"""DAC and ADC settings, and the one quantiser that defines their arithmetic.

A converter of ``b`` bits has ``2^(b-1) - 1`` steps on each side of zero: symmetric codes, so that
zero is exact and sign is free, rounded half to even.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal, TypeGuard

import torch
from torch import Tensor

from .errors import InputError

RangeKind = Literal["calibrated", "dynamic", "full"]


@dataclass(frozen=True, slots=True)
class Converter:
    """Settings of a digital-to-analog or analog-to-digital converter.

    Raises:
        InputError: ``bits`` outside 2..16, or a range that is neither a known kind nor positive.
    """

    bits: int = 8
    """Resolution in bits, sign included."""
    range: RangeKind | float = "calibrated"
    """Where it clips. ``"calibrated"``: from data, one range per row block. ``"dynamic"``: the
    abs-max of each input vector (DAC only). ``"full"``: the largest value possible (ADC only: the
    number of rows). A number: that value; for a DAC in the units of the layer's input, for an ADC
    in units of one full-scale input on one full-scale weight."""
    per_column: bool = False
    """ADC only: a calibrated range for each column instead of one for the row block."""

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int):
            raise InputError(f"Converter.bits must be an int, got {self.bits!r}")
        if not 2 <= self.bits <= 16:
            raise InputError(
                f"Converter.bits must be 2..16, got {self.bits}",
                fix="use None in place of the converter for an ideal one",
            )
        if isinstance(self.range, str):
            if self.range not in ("calibrated", "dynamic", "full"):
                raise InputError(
                    f"Converter.range must be 'calibrated', 'dynamic', 'full' or a number, "
                    f"got {self.range!r}"
                )
        elif not is_number(self.range) or self.range <= 0:
            raise InputError(
                f"Converter.range must be a name or a positive finite number, got {self.range!r}"
            )
        if not isinstance(self.per_column, bool):
            raise InputError(f"Converter.per_column must be a bool, got {self.per_column!r}")
        if self.per_column and self.range != "calibrated":
            raise InputError("Converter.per_column needs range='calibrated'")

    @property
    def levels(self) -> int:
        """Steps on each side of zero: ``2^(bits-1) - 1``."""
        return (1 << (self.bits - 1)) - 1


def is_number(value: object) -> TypeGuard[int | float]:
    """True for what JSON calls a number and a float can hold: no bool, NaN or infinity."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def to_codes(x: Tensor, range: Tensor, levels: int) -> Tensor:
    """Codes of ``x`` as floats: integers in ``[-levels, levels]``, in a new tensor.

    Args:
        x: values, any shape.
        range: the value that the last code stands for; broadcasts against ``x``.
        levels: steps on each side of zero.
    """
    return (x * (levels / range)).round_().clamp_(-levels, levels)


def absmax(x: Tensor) -> Tensor:
    """Abs-max over the last dim, kept, and 1 where that is zero (so that it can be divided by)."""
    peak = x.detach().abs().amax(dim=-1, keepdim=True)
    return torch.where(peak > 0, peak, torch.ones_like(peak))
