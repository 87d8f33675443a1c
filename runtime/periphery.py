"""Errors of the circuits between the columns and the ADC."""

from __future__ import annotations

from dataclasses import dataclass

from .converters import is_number
from .errors import InputError


@dataclass(frozen=True, slots=True)
class Periphery:
    """What the read-out does to the sum ``p`` of a column before it is converted.

        p (1 - v),    v = max(voltage_offset N(0, 1), 0)            drawn once for each column
        p k / (1 + n |p / A|),   n = |nonlinearity (1 + nonlinearity_spread N(0, 1))|

    with A the range of the ADC and ``k = (1 + nonlinearity * calibrated_at)^2``, so that the slope
    is 1 where ``|p / A| = calibrated_at``. Without an ADC, A is the number of rows of the tile. The
    chip's key makes the draws: writing a weight again leaves them.

    Source: the analog MVM of the IBM Analog Hardware Acceleration Kit (Rasch et al., AICAS 2021;
    its parameters ``v_offset_std``, ``out_nonlinearity``, ``out_nonlinearity_std`` and
    ``slope_calibration``).

    Raises:
        InputError: a value that is not a finite number >= 0.
    """

    voltage_offset: float = 0.0
    """Standard deviation of the relative loss of a column's read voltage."""
    nonlinearity: float = 0.0
    """Relative loss at full scale of the S-shaped output nonlinearity."""
    nonlinearity_spread: float = 0.0
    """Its relative standard deviation from column to column."""
    calibrated_at: float = 0.0
    """Share of the ADC's range at which the slope was calibrated to 1."""

    def __post_init__(self) -> None:
        for name in (
            "voltage_offset", "nonlinearity", "nonlinearity_spread",
            "calibrated_at",
        ):  # fmt: skip
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise InputError(f"Periphery.{name} must be a finite number >= 0, got {value!r}")
