from __future__ import annotations

import pytest

from analogc import Converter, GaussianDevice, Target, TileSpec, targets
from analogc.errors import InputError
from analogc.runtime.targets import summary


def test_preset_names() -> None:
    assert {
        "ideal", "generic-8bit", "generic-8bit-noisy", "pcm-like", "pcm-hermes-one-device",
        "pcm-hermes-two-device", "reram-wan2022", "reram-milo", "reram-cmo", "sonos",
    } <= set(targets.names())  # fmt: skip


@pytest.mark.parametrize("name", targets.names())
def test_preset_carries_its_name_and_survives_json(name: str) -> None:
    target = targets.get(name)

    assert target.name == name
    assert Target.from_json(target.to_json()) == target
    assert summary(name).endswith(".")


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="no target named 'best'") as caught:
        targets.get("best")

    assert "generic-8bit-noisy" in str(caught.value)


def test_what_the_presets_stand_for() -> None:
    plain, noisy = targets.generic_8bit(), targets.generic_8bit_noisy()

    assert targets.ideal().is_ideal
    assert (plain.tile, plain.dac, plain.adc) == (TileSpec(512, 512), Converter(8), Converter(8))
    assert not plain.is_ideal and plain.device.is_ideal and plain.output_noise == 0
    assert noisy == plain.replace(
        name="generic-8bit-noisy", device=GaussianDevice(0.02), output_noise=0.04
    )
