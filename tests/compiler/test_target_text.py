from __future__ import annotations

from typing import Any

import pytest

import analogc
from analogc.compiler.target_text import device_text, target_text

CELL = analogc.Cell(mode="pair", g_min=1.0, g_max=25.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dac": None}, "ideal DAC"),
        ({"adc": analogc.Converter(6, kind="ramp")}, "6-bit ADC (ramp)"),
        ({"slicing": analogc.Slicing((4, 4))}, "weights of 2x4 bits"),
        (
            {"slicing": analogc.Slicing((2,) * 4, input_bits=(1,) * 8)},
            "inputs of 8x1 bits",
        ),
        ({"cell": CELL}, "pair cells, 1 to 25 µS"),
        ({"cell": analogc.Cell(mode="pair", g_max=25.0, stuck_off=0.1)}, "10 % stuck off"),
        ({"device": analogc.GaussianDevice(0.03)}, "3 % programming noise"),
        ({"device": analogc.GaussianDevice(0.0, read_noise=0.02)}, "2 % read noise"),
        ({"device": analogc.GaussianDevice(0.0, drift_nu=0.06)}, "drift ν 0.06"),
        ({"device": analogc.devices.PCMDevice(), "cell": analogc.Cell(mode="pair")}, "device pcm"),
        ({"cell": CELL, "wires": analogc.Wires(1.0, 2.0)}, "lines of 1 and 2 Ω a cell"),
        ({"periphery": analogc.Periphery(voltage_offset=0.1)}, "voltage offset 0.1"),
        ({"weight_clip": analogc.WeightClip("sigma", 2.5)}, "weights clipped at sigma 2.5"),
        ({"compensation": "column"}, "column drift compensation"),
        ({"output_noise": 0.04}, "output noise 0.04"),
    ],
)
def test_a_part_that_is_set_is_told(changes: dict[str, Any], told: str) -> None:
    plain = target_text(analogc.Target())

    assert told in target_text(analogc.Target().replace(**changes))
    assert told not in plain


def test_every_preset_is_one_line() -> None:
    texts = [target_text(analogc.targets.get(name)) for name in analogc.targets.names()]

    assert all(text and "\n" not in text for text in texts)
    assert len(set(texts)) == len(texts)


def test_a_device_is_told_with_its_own_settings() -> None:
    assert device_text(analogc.IdealDevice()) == "ideal"
    assert device_text(analogc.GaussianDevice(0.03, read_noise=0.01)) == (
        "gaussian sigma=0.03 read_noise=0.01"
    )
