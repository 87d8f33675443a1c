"""The physical simulation against other simulators' numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from analogc import Converter
from analogc.runtime import physical, tiles
from analogc.runtime.kernels import Ranges
from analogc.runtime.mvm import DenseMVM
from analogc.runtime.periphery import Periphery
from analogc.runtime.slicing import Slicing
from analogc.runtime.spec import LayerSpec

# Printed by crosssim_oracle.py: bits of each slice, of the DAC, of each pulse, where the ADC is,
# its bits and range; the first and the last of five output vectors.
CROSSSIM: list[tuple[Any, ...]] = [
    ((2, 2, 2, 2), 8, (1,) * 7, "digital", None, 0.0,
     [1.3222788328, 0.1269414853, -1.3135402192, -0.175266327],
     [1.0610467809, -0.7595800525, -1.0900108075, 0.7202717307]),
    ((2, 2, 2, 2), 8, (1,) * 7, "digital", 6, 3.7,
     [1.3442041566, 0.1033560938, -1.3286697844, -0.2001114614],
     [1.0799429246, -0.6811684023, -1.1169268927, 0.6516254538]),
    ((2, 2, 2, 2), 8, (1,) * 7, "analog", 6, 3.7,
     [1.3044781784, 0.1319924099, -1.2806072106, -0.1741176471],
     [1.0390891841, -0.7877419355, -1.134573055, 0.7414041746]),
    ((2, 2), 4, (3,), "digital", 5, 2.9,
     [1.508, 0.0773333333, -1.4306666667, -0.1933333333],
     [1.1213333333, -0.8506666667, -1.0826666667, 0.7733333333]),
]  # fmt: skip


def simulate(x: Tensor, weight: Tensor, spec: LayerSpec, adc_range: float = 1.0) -> Tensor:
    held = tiles.program(weight, spec, tiles.FIXED)
    ranges = Ranges(torch.ones(1), torch.tensor([adc_range], dtype=torch.float64))
    y, _ = physical.forward(DenseMVM(spec), x, held, None, ranges, spec, None)
    return y


@pytest.mark.parametrize(
    ("weight_bits", "bits", "pulses", "accumulation", "adc_bits", "full", "first", "last"), CROSSSIM
)
def test_balanced_slices_give_the_numbers_of_crosssim(
    weight_bits: tuple[int, ...],
    bits: int,
    pulses: tuple[int, ...],
    accumulation: Any,
    adc_bits: int | None,
    full: float,
    first: list[float],
    last: list[float],
) -> None:
    weight = torch.sin(1.7 * torch.arange(48, dtype=torch.float64).view(4, 12) + 0.3)
    x = torch.cos(0.9 * torch.arange(60, dtype=torch.float64).view(5, 12) + 0.1)
    spec = LayerSpec(
        (0, 12),
        Converter(bits, codes="sign-magnitude"),
        None if adc_bits is None else Converter(adc_bits, codes="sign-magnitude"),
        "tensor",
        slicing=Slicing(weight_bits, "balanced", pulses, accumulation),
    )

    y = simulate(x, weight / weight.abs().max(), spec, full)

    expected = torch.tensor([first, last], dtype=torch.float64)
    torch.testing.assert_close(y[[0, -1]], expected, rtol=0, atol=2e-10)


# aihwkit 1.2.0, AnalogLinear(8, 3) of an InferenceRPUConfig whose forward has out_bound 12, no
# noise, no quantisation and no management: out_nonlinearity 0.3, slope_calibration 0 and 0.5.
AIHWKIT = [
    (0.0, [[3.208993197, 0.634226322, -2.085308075], [-2.4020886421, 0.2868174613, 2.905718565]]),
    (0.5, [[4.243893147, 0.83876425, -2.757819653], [-3.176762104, 0.3793160915, 3.8428127766]]),
]  # fmt: skip


@pytest.mark.parametrize(("calibrated_at", "expected"), AIHWKIT)
def test_output_nonlinearity_gives_the_numbers_of_aihwkit(
    calibrated_at: float, expected: list[list[float]]
) -> None:
    weight = torch.arange(24, dtype=torch.float64).view(3, 8) / 12 - 1
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).view(2, 8)
    # The largest weight is 1, so a sum is what aihwkit bends. 16 bits stand for no converter.
    periphery = Periphery(nonlinearity=0.3, calibrated_at=calibrated_at)
    spec = LayerSpec((0, 8), None, Converter(16), "tensor", periphery=periphery)

    y = simulate(x, weight, spec, 12.0)

    torch.testing.assert_close(
        y, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=12 / 32767
    )


def test_voltage_offset_takes_away_what_a_rectified_gaussian_does() -> None:
    weight = torch.ones(20_000, 1, dtype=torch.float64)
    spec = LayerSpec((0, 1), None, None, periphery=Periphery(voltage_offset=0.1))

    loss = 1 - simulate(torch.ones(1, 1, dtype=torch.float64), weight, spec)[0]

    # E max(s N, 0) = s / sqrt(2 pi), E of its square s^2 / 2.
    assert float(loss.min()) == 0.0
    assert float(loss.mean()) == pytest.approx(0.1 * 0.39894, rel=0.03)
    assert float(loss.square().mean()) == pytest.approx(0.005, rel=0.05)
