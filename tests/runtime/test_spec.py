from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analogc import Converter, GaussianDevice, Target, targets
from analogc.errors import FormatError
from analogc.runtime.spec import LayerSpec, parse

specs = st.builds(
    LayerSpec,
    rows=st.lists(st.integers(1, 99), min_size=1, unique=True).map(lambda r: (0, *sorted(r))),
    dac=st.none()
    | st.builds(Converter, st.integers(2, 16), st.sampled_from(["calibrated", "dynamic"])),
    adc=st.none() | st.builds(Converter, st.integers(2, 16), st.floats(0.1, 9)),
    weight_scale=st.sampled_from(["column", "tensor"]),
    device=st.floats(0, 1).map(GaussianDevice),
    output_noise=st.floats(0, 1),
)


@given(specs)
def test_text_round_trip_is_equal(spec: LayerSpec) -> None:
    text = spec.to_text()

    assert parse(text) == spec
    assert parse(text).to_text() == text


@given(specs, specs)
def test_texts_are_equal_exactly_if_specs_are(a: LayerSpec, b: LayerSpec) -> None:
    assert (a.to_text() == b.to_text()) == (a == b)


@pytest.mark.parametrize("name", targets.names())
def test_spec_of_a_target_carries_its_settings(name: str) -> None:
    target = targets.get(name)

    spec = LayerSpec.of(target, (0, 3, 7))

    assert spec.blocks == ((0, 3), (3, 7))
    assert spec.is_ideal == target.is_ideal
    assert (spec.dac, spec.adc, spec.device) == (target.dac, target.adc, target.device)
    assert parse(spec.to_text()) == spec


@pytest.mark.parametrize("rows", [(), (0,), (1, 4), (0, 4, 4), (0, 5, 4), (0, 4.5), (0, True)])
def test_rows_must_be_integers_that_rise_from_zero(rows: Any) -> None:
    with pytest.raises(FormatError, match="row blocks"):
        LayerSpec(rows)


GOOD = json.loads(LayerSpec.of(Target(), (0, 4)).to_text())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "3",
        "null",
        "{}",
        "[" * 100_000,
        *(json.dumps({k: v for k, v in GOOD.items() if k != name}) for name in GOOD),
        json.dumps({**GOOD, "rows": 4}),
        json.dumps({**GOOD, "rows": "04"}),
        json.dumps({**GOOD, "rows": [0, "a"]}),
        json.dumps({**GOOD, "rows": [4, 0]}),
        json.dumps({**GOOD, "cell": {"mode": "pair"}, "cols": [0, 4, 4]}),
        json.dumps({**GOOD, "cell": {"mode": "pair"}, "cols": [1, 4]}),
        json.dumps({**GOOD, "cell": {"mode": "pair"}, "cols": 4}),
        json.dumps({**GOOD, "rows": [0, 4.0]}),
        json.dumps({**GOOD, "dac": {"bits": 99}}),
        json.dumps({**GOOD, "dac": {"range": "full"}}),
        json.dumps({**GOOD, "adc": {"range": "dynamic"}}),
        json.dumps({**GOOD, "adc": 8}),
        json.dumps({**GOOD, "weight_scale": "row"}),
        json.dumps({**GOOD, "device": {"kind": "gaussian", "sigma": None}}),
        json.dumps({**GOOD, "device": None}),
        json.dumps({**GOOD, "output_noise": "x"}),
        json.dumps({**GOOD, "output_noise": -1}),
    ],
)
def test_anything_else_is_a_format_error(text: str) -> None:
    with pytest.raises(FormatError):
        parse(text)


def test_dynamic_is_a_property_of_the_dac() -> None:
    assert LayerSpec((0, 1), Converter(range="dynamic")).dynamic
    assert not LayerSpec((0, 1), Converter()).dynamic
    assert not LayerSpec((0, 1)).dynamic
