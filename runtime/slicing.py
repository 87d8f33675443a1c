"""Bit slices: weights and inputs that take several columns or several pulses.

A weight of B bits is written as S digits of fewer bits, each in a column of its own; an input code
is driven as several digits, one after the other. ``physical`` computes all of them at once;
``reference_physical`` does it in loops, one slice and one pulse at a time.

Source of the balanced and offset codings: Xiao et al., IEEE Circuits Syst. Mag. 22(4), 26 (2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .converters import Converter
from .errors import InputError

MOST_BITS = 24
"""Bits of a weight that float32 holds exactly."""


@dataclass(frozen=True, slots=True)
class Digit:
    """One pulse of a sliced input."""

    shift: int
    """Place of its lowest bit in the code."""
    bits: int
    signed: bool
    """Driven both ways: the first digit of a two's complement, if it has more than the sign."""
    full: float
    """Largest magnitude that it is driven with, in units of its lowest bit."""
    significance: float
    """What a full-scale digit adds to a full-scale input of 1; below 0 for a bare sign bit."""


@dataclass(frozen=True, slots=True)
class Slicing:
    """How weights and inputs are cut into digits.

    Raises:
        InputError: a field out of its domain.
    """

    weight_bits: tuple[int, ...] | None = None
    """Bits of each weight slice, the most significant first; each slice takes columns of its own.
    None: one slice that holds the weight as a continuous value."""
    coding: Literal["balanced", "offset"] = "balanced"
    """``"balanced"``: digits of the magnitude, all with the weight's sign, on differential pairs; a
    sign beside ``sum(weight_bits)`` bits. ``"offset"``: digits of the weight plus full scale, not
    negative, so ``sum(weight_bits)`` bits with the sign. The ADC then converts the sums of digits,
    from 0 (nothing) to 1 (a full-scale input on a full-scale digit) a row, and the inputs' sum is
    subtracted digitally."""
    input_bits: tuple[int, ...] | None = None
    """Bits of each pulse, the most significant first: all 1 is bit-serial. They make up the code of
    the DAC: two's complement (``codes="symmetric"``, its bits), sign and magnitude (one bit less),
    ``"offset"`` and ``"unsigned"`` (its bits). None, or one: a pulse of the DAC's own levels."""
    input_accumulation: Literal["digital", "analog"] = "digital"
    """``"digital"``: the ADC converts after each pulse. ``"analog"``: the charge of all pulses is
    added up with their significance and converted once."""
    ranges: Literal["shared", "per-slice", "per-pulse"] = "shared"
    """ADC ranges: one for all slices and pulses, one for each slice, or one for each slice and
    pulse. The last is worse where pulses are alike and subtracted, as those of a two's complement
    are for small inputs: errors of one range cancel, those of two do not."""
    flip: bool = False
    """Offset coding: a column of digits whose sum is above half scale is written as its complement,
    so sums never pass half scale and the ADC saves a bit (Shafiee et al., ISCA 2016, section V)."""

    def __post_init__(self) -> None:
        for name in ("weight_bits", "input_bits"):
            value = getattr(self, name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, name, value)
            good = value is None or (
                isinstance(value, tuple)
                and len(value) > 0
                and all(type(bits) is int and 1 <= bits <= 16 for bits in value)
                and sum(value) <= MOST_BITS
            )
            if not good:
                raise InputError(
                    f"Slicing.{name} must be None or bits of each slice (1..16, {MOST_BITS} in "
                    f"all), got {value!r}",
                    fix="(2, 2, 2, 2), for example",
                )
        for name, known in (
            ("coding", ("balanced", "offset")),
            ("input_accumulation", ("digital", "analog")),
            ("ranges", ("shared", "per-slice", "per-pulse")),
        ):
            if getattr(self, name) not in known:
                raise InputError(
                    f"Slicing.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if not isinstance(self.flip, bool):
            raise InputError(f"Slicing.flip must be a bool, got {self.flip!r}")
        if self.flip and self.coding != "offset":
            raise InputError("Slicing.flip is for coding='offset'")

    @property
    def slices(self) -> int:
        """Weight slices S: columns of digits that one weight takes."""
        return 1 if self.weight_bits is None else len(self.weight_bits)

    @property
    def pulses(self) -> int:
        """Conversions of one column for one input vector."""
        digital = self.input_bits is not None and self.input_accumulation == "digital"
        return len(self.input_bits) if digital and self.input_bits else 1

    @property
    def significances(self) -> tuple[float, ...]:
        """c_s: what a full-scale digit of each slice adds to a full-scale weight; they sum to 1."""
        if self.weight_bits is None:
            return (1.0,)
        total, place = (1 << sum(self.weight_bits)) - 1, sum(self.weight_bits)
        found = []
        for bits in self.weight_bits:
            place -= bits
            found.append((((1 << bits) - 1) << place) / total)
        return tuple(found)

    def split(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Slice targets in [-1, 1] of normalised weights, any shape: ``weight = sum c_s target_s``.

        The weight is rounded to the bits there are, half to even. In the offset coding a digit d of
        b bits is the target ``2 d / (2^b - 1) - 1``.
        """
        if self.weight_bits is None:
            return (weight,)
        total, place = (1 << sum(self.weight_bits)) - 1, sum(self.weight_bits)
        offset = self.coding == "offset"
        level = (weight + 1) * (total / 2) if offset else weight.abs() * total
        level = level.round_().clamp_(0, total).to(torch.int32)
        sign = torch.sign(weight)
        found = []
        for bits in self.weight_bits:
            place -= bits
            top = (1 << bits) - 1
            digit = ((level >> place) & top).to(weight.dtype)
            found.append(digit.mul_(2 / top).sub_(1) if offset else digit.div_(top).mul_(sign))
        return tuple(found)

    def digits(self, dac: Converter) -> tuple[Digit, ...]:
        """The pulses of the codes of ``dac``, the most significant first."""
        assert self.input_bits is not None, "inputs are sliced"
        found, place = [], sum(self.input_bits)
        for i, bits in enumerate(self.input_bits):
            place -= bits
            first = i == 0 and dac.codes == "symmetric"
            signed = first and bits > 1
            full = float((1 << bits) - 1)
            if dac.codes == "offset":
                full /= 2
            elif signed:
                full = float(1 << (bits - 1))
            significance = full * (1 << place) / dac.full_code
            # A sign bit of its own is driven as any other, and its sums are subtracted.
            significance = -significance if first and not signed else significance
            found.append(Digit(place, bits, signed, full, significance))
        return tuple(found)

    def check(self, dac: Converter | None, adc: Converter | None = None) -> None:
        """InputError unless the pulses make up the codes of ``dac`` and ``adc`` suits the sums."""
        if adc is not None and adc.codes == "unsigned":
            bare = (
                dac is not None and dac.codes == "symmetric" and (self.input_bits or (0,))[0] == 1
            )
            bare = bare and self.input_accumulation == "digital"
            positive = bare or (dac is not None and dac.codes == "unsigned")
            if not positive or self.coding != "offset":
                raise InputError(
                    "Target.adc: codes='unsigned' makes 0 of a negative sum",
                    fix="coding='offset', and inputs driven one way: a DAC with codes='unsigned', "
                    "or input_bits that begin with 1 and digital accumulation",
                )
        if self.input_bits is None:
            return
        if dac is None:
            raise InputError("Slicing.input_bits cut the codes of a DAC, and Target.dac is None")
        wanted = dac.bits - 1 if dac.codes == "sign-magnitude" else dac.bits
        if sum(self.input_bits) != wanted:
            raise InputError(
                f"Slicing.input_bits {self.input_bits} have {sum(self.input_bits)} bits in all, a "
                f"{dac.bits}-bit DAC with codes={dac.codes!r} has {wanted}"
            )


def flips(digits: Tensor) -> Tensor:
    """-1 for each column ``[N]`` of digits ``[N, rows]``, in [-1, 1], above half scale, else 1."""
    return torch.where(digits.sum(1) > 0, -1.0, 1.0).to(digits.dtype)


def pulses_of(codes: Tensor, digits: tuple[Digit, ...], dac: Converter) -> Tensor:
    """Digits ``[pulses, *codes.shape]`` of integer codes, as floats in units of their lowest bit.

    ``sum_k digit_k / full_k * significance_k`` is the code over the DAC's ``full_code``. Digits of
    an offset code are driven from ``-(2^b - 1) / 2`` to ``(2^b - 1) / 2``, so that nothing has to
    be subtracted.
    """
    out = codes.new_empty(len(digits), *codes.shape)
    if dac.codes == "sign-magnitude":
        level, sign = codes.abs().to(torch.int32), codes.sign()
    elif dac.codes == "offset":
        level, sign = (codes + dac.full_code).to(torch.int32), None
    else:
        level, sign = codes.to(torch.int32), None
    for place, digit in zip(out, digits, strict=True):
        shifted = level >> digit.shift
        if not digit.signed:
            shifted &= (1 << digit.bits) - 1
        place.copy_(shifted)
    if sign is not None:
        out.mul_(sign)
    elif dac.codes == "offset":
        for place, digit in zip(out, digits, strict=True):
            place.sub_(((1 << digit.bits) - 1) / 2)
    return out
