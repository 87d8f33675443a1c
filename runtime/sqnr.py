"""What a converter range costs, predicted from shapes alone.

For partial sums of ``K`` rows, quantised uniformly over ``[-A, A]`` (all in units of one full-scale
input on one full-scale weight):

    SQNR [dB] = 6.02 b + 4.77 - 10 log10(K) - PAPR_w - PAPR_x + 20 log10(K / A)

which at full range A = K is the formula of docs/design.md, section 3: the sums grow with sqrt(K),
full scale with K.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

INPUT_PAPR_DB = 12.0
"""Assumed peak-to-average power ratio of inputs: a Gaussian clipped at four sigma."""
GOOD_CREST = 4.0
"""Range over standard deviation that suits an 8-bit converter of Gaussian sums."""
WORTH_A_WARNING_DB = 6.0


class ConverterRangeWarning(UserWarning):
    """A converter range wastes resolution, or clips."""


def weight_papr_db(rows: int) -> float:
    """Peak-to-average power ratio [dB] of ``rows`` Gaussian weights scaled by their abs-max."""
    # Median of the largest of that many magnitudes, in standard deviations.
    peak = NormalDist().inv_cdf((1 + 0.5 ** (1 / rows)) / 2)
    return 20 * math.log10(max(peak, 1.0))


def sqnr_db(
    bits: int,
    rows: int,
    papr_w_db: float | None = None,
    papr_x_db: float = INPUT_PAPR_DB,
    adc_range: float | None = None,
) -> float:
    """Signal to quantisation noise [dB] of an ADC on the sums of ``rows`` rows.

    Args:
        bits: resolution.
        rows: K, rows that are summed.
        papr_w_db: peak-to-average power ratio of the weights; default: Gaussian weights.
        papr_x_db: of the inputs.
        adc_range: A; default: full range, A = rows.
    """
    if papr_w_db is None:
        papr_w_db = weight_papr_db(rows)
    full = rows if adc_range is None else adc_range
    return (
        6.0206 * bits
        + 4.7712
        - 10 * math.log10(rows)
        - papr_w_db
        - papr_x_db
        + 20 * math.log10(rows / full)
    )


def expected_sigma(rows: int) -> float:
    """Standard deviation of the partial sums that the assumptions above lead to."""
    return math.sqrt(rows) * 10 ** (-(weight_papr_db(rows) + INPUT_PAPR_DB) / 20)


@dataclass(frozen=True, slots=True)
class RangeUse:
    """A fixed ADC range of one layer."""

    layer: str
    bits: int
    rows: int
    adc_range: float

    @property
    def loss_db(self) -> float:
        """SQNR lost against a well chosen range; negative: the range clips."""
        return 20 * math.log10(self.adc_range / (GOOD_CREST * expected_sigma(self.rows)))


def warn_of_waste(uses: Iterable[RangeUse]) -> None:
    """Warn once, naming the worst layers, if fixed ADC ranges waste more than a bit or clip."""
    uses = list(uses)
    waste = sorted((u for u in uses if u.loss_db > WORTH_A_WARNING_DB), key=lambda u: -u.loss_db)
    low = (u for u in uses if u.adc_range < expected_sigma(u.rows))
    clips = sorted(low, key=lambda u: u.loss_db)
    for found, what in ((waste, "waste"), (clips, "clip")):
        if not found:
            continue
        worst = ", ".join(
            f"{u.layer} (range {u.adc_range:g} on {u.rows} rows: SQNR about "
            f"{sqnr_db(u.bits, u.rows, adc_range=u.adc_range):.0f} dB, "
            f"{abs(u.loss_db):.0f} dB {'lost' if what == 'waste' else 'too small a range'})"
            for u in found[:3]
        )
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        warnings.warn(
            f"ADC ranges {what} in {len(found)} layer(s): {worst}{more}. "
            "Use Converter(range='calibrated').",
            ConverterRangeWarning,
            stacklevel=3,
        )
