"""Pages, lists and diffs say what the hardware of a target has besides bits and tiles."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import analogc
from analogc import Cell, Converter, Periphery, Slicing, Target, TileSpec, Wires
from analogc.compiler.picture.explorer_data import layers
from analogc.compiler.target_text import converter_notes, parts, target_text
from analogc.devices import GaussianDevice

GENERIC = analogc.targets.generic_8bit()
SLICED = GENERIC.replace(
    tile=TileSpec(16, 12),
    slicing=Slicing((2, 2, 3), input_bits=(4, 4), ranges="per-pulse"),
)


def compiled_for(target: Target, inputs: int = 20) -> Any:
    torch.manual_seed(0)
    x = torch.randn(5, inputs)
    return analogc.compile(nn.Linear(inputs, 6).eval(), (x,), target=target, seed=0)


@pytest.mark.parametrize(
    ("target", "phrases"),
    [
        (analogc.targets.isaac_like(), ["8x2 bits (offset, flipped)", "unsigned"]),
        (SLICED, ["weights of 2x2+3 bits", "inputs of 2x4 bits", "per-pulse"]),
        (GENERIC.replace(adc=Converter(8, kind="sar", mismatch=0.01)), ["sar, mismatch 0.01"]),
        (GENERIC.replace(dac=Converter(8, learned=True)), ["8-bit DAC (learned range)"]),
        (GENERIC.replace(periphery=Periphery(nonlinearity=0.02)), ["nonlinearity 0.02"]),
        (GENERIC.replace(device=GaussianDevice(0.0, read_noise=0.01)), ["1 % read noise"]),
        (
            GENERIC.replace(cell=Cell(mode="pair", stuck_on=0.05), wires=Wires(1.0, 2.0)),
            ["5 % stuck on", "lines of 1 and 2 Ω"],
        ),
    ],
)
def test_every_part_is_in_the_text_of_a_target(target: Target, phrases: list[str]) -> None:
    text = target_text(target)
    for phrase in phrases:
        assert phrase in text
    compiled = compiled_for(target)
    (facts,) = dict(layers(compiled)).values()
    shown = [*facts["parts"].values(), facts["device"], *facts["dac"]["notes"]]
    assert set(parts(target)) <= {*facts["parts"], "device"}
    assert all(text in shown for name, text in parts(target).items() if name != "device")
    assert compiled.to_model_explorer().count(json.dumps(facts["device"])) == 1
    assert all(note in facts["dac"]["notes"] for note in converter_notes(target.dac or Converter()))


def test_ranges_say_which_slice_and_pulse_they_are_of() -> None:
    (facts,) = dict(layers(compiled_for(SLICED))).values()
    adc = facts["adc"]
    assert adc["dims"] == [["row block", 2], ["slice", 3], ["pulse", 2]]
    assert len(adc["values"]) == 12 and facts["dac"]["dims"] == [["row block", 2]]
    by_column = SLICED.replace(adc=Converter(8, per_column=True))
    (facts,) = dict(layers(compiled_for(by_column))).values()
    assert facts["adc"]["dims"][-1] == ["column", 6] and facts["adc"]["histogram"]["values"] == 72
    (facts,) = dict(layers(compiled_for(analogc.targets.isaac_like()))).values()
    assert (facts["adc"]["codes"], facts["adc"]["steps"]) == ("unsigned", 255)


def test_page_says_when_devices_that_drift_were_programmed() -> None:
    compiled = compiled_for(analogc.targets.pcm_like())
    compiled.drift_to(3600.0)
    assert '"seconds":3600.0' in compiled.to_html().replace(" ", "")
    assert '"seconds":null' in compiled_for(GENERIC).to_html().replace(" ", "")


def test_diff_counts_ranges_of_slices_as_ranges() -> None:
    a, b = compiled_for(SLICED), compiled_for(SLICED)
    (name,) = (n for n, _ in b.named_buffers() if n.endswith("_adc"))
    b.get_buffer(name)[0] *= 2
    assert "+100 % (6 ranges)" in str(analogc.diff(a, b))
    assert not analogc.diff(a, compiled_for(SLICED))
