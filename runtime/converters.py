"""DAC and ADC settings, and the one quantiser that defines their arithmetic.

By default a converter of ``b`` bits has ``2^(b-1) - 1`` steps on each side of zero: symmetric
codes, so that zero is exact and sign is free, rounded half to even. ``codes``, ``rounding`` and the
errors below say otherwise; such a converter is simulated by ``physical``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal, TypeGuard

import torch
from torch import Tensor

from .errors import InputError

RangeKind = Literal["calibrated", "average", "dynamic", "full"]
RANGES: tuple[RangeKind, ...] = ("calibrated", "average", "dynamic", "full")
Codes = Literal["symmetric", "sign-magnitude", "offset", "unsigned"]
FROM_DATA: tuple[RangeKind, ...] = ("calibrated", "average")
CODES: tuple[Codes, ...] = ("symmetric", "sign-magnitude", "offset", "unsigned")


@dataclass(frozen=True, slots=True)
class Converter:
    """Settings of a digital-to-analog or analog-to-digital converter.

    Raises:
        InputError: ``bits`` outside 2..16, or a range that is neither a known kind nor positive.
    """

    bits: int = 8
    """Resolution in bits, sign included."""
    range: RangeKind | float = "calibrated"
    """Where it clips. ``"calibrated"``: from data, one range per row block. ``"average"``: from
    data, the mean of the abs-max of the input vectors (DAC only). ``"dynamic"``: the abs-max of
    each input vector (DAC only). ``"full"``: the largest value possible (ADC only: the
    number of rows). A number: that value; for a DAC in the units of the layer's input, for an ADC
    in units of one full-scale input on one full-scale weight."""
    per_column: bool = False
    """ADC only: a calibrated range for each column instead of one for the row block."""
    codes: Codes = "symmetric"
    """``"symmetric"``: ``2^(b-1) - 1`` steps a side, zero is a code (two's complement without its
    lowest code). ``"sign-magnitude"``: the same values, held as sign and magnitude; sliced inputs
    are digits of the magnitude. ``"offset"``: all ``2^b`` codes from -range to range; zero lies
    between two. ``"unsigned"``: ``2^b`` codes from 0 to range, for values that are not negative."""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """``"stochastic"``: up with a probability of the fraction, so without bias."""
    kind: Literal["ideal", "sar", "ramp"] = "ideal"
    """ADC only. ``"sar"``: successive approximation against a binary weighted capacitor array, one
    for each column. ``"ramp"``: one ramp for all columns of a tile, one step after the other. Both
    after Spear et al., IEEE J. Explor. Solid-State Comput. Devices Circuits 9, 176 (2023)."""
    mismatch: float = 0.0
    """Standard deviation of one unit capacitor (sar) or one step (ramp), relative. An array of
    ``2^i`` units has ``2^(i/2)`` times that, absolutely."""
    gain_error: float = 0.0
    """Standard deviation of the gain, relative: of each column's ADC, or each row's DAC."""
    offset_error: float = 0.0
    """Standard deviation of the offset, as a fraction of the range, of each column or row."""
    shared_by: int = 1
    """ADC only: so many adjacent columns share one converter, and its errors."""
    bound_management: Literal["none", "iterative", "worst-case"] = "none"
    """ADC only: what is done with an input vector that clips. ``"iterative"``: its input is halved
    and multiplied again, until none of its sums clips or four halvings are done. ``"worst-case"``:
    once more, scaled down to where even the largest sum possible does not clip."""
    learned: bool = False
    """DAC only: the range is trained, see ``compiled.learned_ranges()``."""
    cap: float | None = None
    """With ``range="dynamic"``: the range is at most this, in the units of the layer's input, and a
    larger input clips; None: no limit."""

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int):
            raise InputError(f"Converter.bits must be an int, got {self.bits!r}")
        if not 2 <= self.bits <= 16:
            raise InputError(
                f"Converter.bits must be 2..16, got {self.bits}",
                fix="use None in place of the converter for an ideal one",
            )
        if isinstance(self.range, str):
            if self.range not in RANGES:
                raise InputError(
                    f"Converter.range must be {', '.join(map(repr, RANGES))} or a number, "
                    f"got {self.range!r}"
                )
        elif not is_number(self.range) or self.range <= 0:
            raise InputError(
                f"Converter.range must be a name or a positive finite number, got {self.range!r}"
            )
        if self.cap is not None:
            if not is_number(self.cap) or self.cap <= 0:
                raise InputError(
                    f"Converter.cap must be None or a positive finite number, got {self.cap!r}"
                )
            if self.range != "dynamic":
                raise InputError(
                    "Converter.cap limits range='dynamic'", fix="range= a number is a fixed limit"
                )
        if not isinstance(self.per_column, bool):
            raise InputError(f"Converter.per_column must be a bool, got {self.per_column!r}")
        if self.per_column and self.range != "calibrated":
            raise InputError("Converter.per_column needs range='calibrated'")
        for name, known in (
            ("codes", CODES),
            ("rounding", ("nearest", "stochastic")),
            ("kind", ("ideal", "sar", "ramp")),
            ("bound_management", ("none", "iterative", "worst-case")),
        ):
            if getattr(self, name) not in known:
                raise InputError(
                    f"Converter.{name} must be one of {', '.join(known)}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("mismatch", "gain_error", "offset_error"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise InputError(f"Converter.{name} must be a finite number >= 0, got {value!r}")
        if type(self.shared_by) is not int or self.shared_by < 1:
            raise InputError(f"Converter.shared_by must be an int >= 1, got {self.shared_by!r}")
        if not isinstance(self.learned, bool):
            raise InputError(f"Converter.learned must be a bool, got {self.learned!r}")
        if self.learned and self.range == "dynamic":
            raise InputError("Converter.learned trains a range, and range='dynamic' has none")
        if self.kind != "ideal" and self.bits > 12:
            raise InputError(f"Converter.kind={self.kind!r} has at most 12 bits, got {self.bits}")
        if self.kind != "ideal" and self.rounding == "stochastic":
            raise InputError(
                f"Converter.rounding='stochastic' needs kind='ideal', not {self.kind!r}"
            )
        if self.mismatch > 0 and self.kind == "ideal":
            raise InputError("Converter.mismatch needs kind='sar' or 'ramp'")

    def check_dac(self) -> None:
        """InputError for settings that only an ADC has."""
        if self.range == "full" or self.per_column:
            raise InputError("Target.dac: range='full' and per_column are for an ADC")
        if self.kind != "ideal" or self.shared_by != 1 or self.bound_management != "none":
            raise InputError("Target.dac: kind, shared_by and bound_management are for an ADC")

    def check_adc(self) -> None:
        """InputError for settings that only a DAC has."""
        if self.range in ("dynamic", "average"):
            raise InputError(f"Target.adc: range={self.range!r} is for a DAC")
        if self.learned:
            raise InputError("Target.adc: learned is for a DAC")

    @property
    def levels(self) -> int:
        """Steps on each side of zero of symmetric codes: ``2^(bits-1) - 1``."""
        return (1 << (self.bits - 1)) - 1

    def describe(self) -> str:
        """Why it is not plain, in words."""
        found = [] if self.codes == "symmetric" else [f"{self.codes} codes"]
        if self.rounding != "nearest":
            found.append("random rounding")
        if self.kind != "ideal":
            found.append(self.kind)
        if self.gain_error or self.offset_error:
            found.append("gain and offset errors")
        if self.bound_management != "none":
            found.append(f"{self.bound_management} bound management")
        return ", ".join(found)

    @property
    def full_code(self) -> float:
        """Steps from zero to the range, whatever the codes."""
        if self.codes == "unsigned":
            return float((1 << self.bits) - 1)
        if self.codes == "offset":
            return ((1 << self.bits) - 1) / 2
        return float(self.levels)

    @property
    def lowest(self) -> float:
        """The lowest code, in steps: ``-full_code``, or 0 if unsigned."""
        return 0.0 if self.codes == "unsigned" else -self.full_code

    @property
    def is_plain(self) -> bool:
        """True if ``to_codes`` is all there is to it, which every kernel computes."""
        return (
            self.codes in ("symmetric", "sign-magnitude")
            and self.rounding == "nearest"
            and self.kind == "ideal"
            and self.gain_error == 0
            and self.offset_error == 0
            and self.bound_management == "none"
        )


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


def quantise(
    x: Tensor, range: Tensor, converter: Converter, uniform: Tensor | None = None
) -> Tensor:
    """Codes of ``x`` in steps, in a new tensor: integers, or half-integers if ``"offset"``.

    Args:
        x: values, any shape.
        range: the value that the last code stands for; broadcasts against ``x``.
        converter: its codes and rounding; errors are left out.
        uniform: numbers in [0, 1) of the shape of ``x``, for stochastic rounding; None: nearest.
    """
    full, lowest = converter.full_code, converter.lowest
    half = 0.5 if converter.codes == "offset" else 0.0
    v = x * (full / range)
    if half:
        v.sub_(half)
    v = v.round_() if uniform is None else v.add_(uniform).floor_()
    if half:
        v.add_(half)
    return v.clamp_(lowest, full)


def absmax(x: Tensor) -> Tensor:
    """Abs-max over the last dim, kept, and 1 where that is zero (so that it can be divided by)."""
    peak = x.detach().abs().amax(dim=-1, keepdim=True)
    return torch.where(peak > 0, peak, torch.ones_like(peak))
