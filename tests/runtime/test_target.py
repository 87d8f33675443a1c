from __future__ import annotations

import json
import math
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import analogc
from analogc import Calibration, Converter, GaussianDevice, IdealDevice, Target, TileSpec, targets
from analogc.errors import FormatError, InputError
from analogc.runtime.devices import KINDS
from analogc.runtime.target import device_from_dict, device_to_dict

positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
fractions = st.floats(0, 1e6)


@st.composite
def converters(draw: st.DrawFn, kinds: tuple[str, ...]) -> Converter | None:
    if draw(st.booleans()):
        return None
    value: Any = draw(st.sampled_from(kinds) | positive | st.integers(1, 1000))
    per_column = "full" in kinds and value == "calibrated" and draw(st.booleans())
    return Converter(draw(st.integers(2, 16)), value, per_column)


@st.composite
def all_targets(draw: st.DrawFn) -> Target:
    columns = draw(st.integers(1, 4))
    scale: Literal["column", "tensor"] = draw(st.sampled_from(["column", "tensor"]))
    method: Literal["mse", "percentile", "absmax"]
    method = draw(st.sampled_from(["mse", "percentile", "absmax"]))
    return Target(
        name=draw(st.text(min_size=1, max_size=20)),
        tile=TileSpec(draw(st.integers(1, 4096)), draw(st.integers(columns, 4096)), columns),
        dac=draw(converters(("calibrated", "dynamic"))),
        adc=draw(converters(("calibrated", "full"))),
        weight_scale=scale,
        device=draw(st.just(IdealDevice()) | fractions.map(GaussianDevice)),
        output_noise=draw(fractions),
        calibration=Calibration(method, draw(st.floats(0, 100, exclude_min=True))),
    )


@given(all_targets())
def test_json_round_trip_is_equal(target: Target) -> None:
    text = target.to_json()

    assert Target.from_json(text) == target
    assert Target.from_dict(json.loads(text)) == target
    assert Target.from_json(target.to_json(indent=None)) == target
    assert hash(Target.from_json(text)) == hash(target)


@given(st.text(max_size=50))
def test_from_json_of_any_text_is_a_target_or_an_analogc_error(text: str) -> None:
    try:
        found = Target.from_json(text)
    except analogc.errors.AnalogcError:
        return
    assert isinstance(found, Target)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
field_names = st.sampled_from(["format", *json.loads(Target().to_json())])


@given(st.dictionaries(field_names, json_values, min_size=1, max_size=3))
def test_from_dict_of_any_values_is_a_target_or_an_analogc_error(changes: dict[str, Any]) -> None:
    try:
        found = Target.from_dict({**Target().to_dict(), **changes})
    except analogc.errors.AnalogcError:
        return
    assert Target.from_json(found.to_json()) == found


def test_missing_fields_take_their_defaults() -> None:
    assert Target.from_dict({}) == Target()
    assert Target.from_dict({"name": "x", "dac": {"bits": 4}}) == Target("x", dac=Converter(4))


def test_a_converter_of_null_is_ideal() -> None:
    assert Target.from_dict({"dac": None, "adc": None}).is_ideal


@pytest.mark.parametrize(
    "data",
    [
        [],
        None,
        "generic-8bit",
        3,
        {"bits": 8},
        {"format": 2},
        {"format": None},
        {"tile": {"rows": 8, "depth": 3}},
        {"tile": None},
        {"tile": [8, 8]},
        {"dac": {"bits": 8, "offset": 1}},
        {"dac": 8},
        {"adc": []},
        {"calibration": {"bins": 3}},
        {"device": {"kind": "gaussian", "sigma": 0.1, "tau": 1}},
        {"device": {"kind": "flux-capacitor"}},
        {"device": {"kind": ["ideal"]}},
        {"device": {}},
        {"device": "ideal"},
    ],
)
def test_unknown_fields_and_wrong_forms_are_format_errors(data: Any) -> None:
    with pytest.raises(FormatError):
        Target.from_dict(data)


@pytest.mark.parametrize("text", ["", "{", "nope", "[" * 100_000, '{"name": "x"', "null", "1"])
def test_text_that_is_no_json_object_is_a_format_error(text: str) -> None:
    with pytest.raises(FormatError):
        Target.from_json(text)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"name": ""}, "name"),
        ({"name": 3}, "name"),
        ({"tile": {"rows": 0}}, "rows"),
        ({"tile": {"rows": 8.0}}, "rows"),
        ({"tile": {"cols": True}}, "cols"),
        ({"tile": {"cols": 1, "columns_per_weight": 2}}, "columns"),
        ({"dac": {"bits": 40}}, "bits"),
        ({"dac": {"range": "full"}}, "dac"),
        ({"dac": {"per_column": True}}, "dac"),
        ({"adc": {"range": "dynamic"}}, "adc"),
        ({"weight_scale": "row"}, "weight_scale"),
        ({"weight_scale": ["column"]}, "weight_scale"),
        ({"device": {"kind": "gaussian", "sigma": -0.1}}, "sigma"),
        ({"device": {"kind": "gaussian", "sigma": "0.1"}}, "sigma"),
        ({"output_noise": -1}, "output_noise"),
        ({"output_noise": True}, "output_noise"),
        ({"output_noise": math.nan}, "output_noise"),
        ({"output_noise": 10**400}, "output_noise"),
        ({"calibration": {"method": "median"}}, "method"),
        ({"calibration": {"percentile": 0}}, "percentile"),
        ({"calibration": {"percentile": 100.1}}, "percentile"),
        ({"calibration": {"percentile": True}}, "percentile"),
        ({"calibration": {"percentile": "99"}}, "percentile"),
    ],
)
def test_values_out_of_their_domain_are_input_errors(data: Any, place: str) -> None:
    with pytest.raises(InputError, match=place):
        Target.from_dict(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"tile": (512, 512)},
        {"dac": 8},
        {"adc": "calibrated"},
        {"device": "ideal"},
        {"device": None},
        {"calibration": "mse"},
    ],
)
def test_parts_of_the_wrong_type_are_input_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"Target.{next(iter(changes))}"):
        Target(**changes)


@pytest.mark.parametrize(
    "value", [Target(), TileSpec(), Calibration(), IdealDevice(), GaussianDevice()]
)
def test_values_are_frozen_and_have_no_dict(value: Any) -> None:
    with pytest.raises((AttributeError, TypeError)):
        value.sigma = value.name = value.rows = value.method = 1
    assert not hasattr(value, "__dict__")


def test_replace_changes_a_copy() -> None:
    before = targets.generic_8bit()

    after = before.replace(output_noise=0.1, tile=TileSpec(64, 32))

    assert (after.output_noise, after.tile.rows, after.adc) == (0.1, 64, before.adc)
    assert before == targets.generic_8bit()


def test_replace_names_an_unknown_field_and_the_known_ones() -> None:
    with pytest.raises(InputError, match="no field 'rows'") as caught:
        Target().replace(rows=3)

    assert "tile" in str(caught.value.fix)


def test_replace_validates() -> None:
    with pytest.raises(InputError, match="output_noise"):
        Target().replace(output_noise=-1)


@pytest.mark.parametrize(
    ("changes", "ideal"),
    [
        ({}, True),
        ({"device": GaussianDevice(0.0)}, True),
        ({"tile": TileSpec(3, 3)}, True),
        ({"dac": Converter(16)}, False),
        ({"adc": Converter(16)}, False),
        ({"device": GaussianDevice(1e-9)}, False),
        ({"output_noise": 1e-9}, False),
    ],
)
def test_ideal_means_no_converter_no_noise_and_an_exact_device(
    changes: dict[str, Any], ideal: bool
) -> None:
    assert targets.ideal().replace(**changes).is_ideal is ideal


def test_logical_columns_count_whole_weights() -> None:
    assert TileSpec(8, 9, 2).logical_cols == 4


@pytest.mark.parametrize("device", [IdealDevice(), GaussianDevice(0.3)])
def test_device_round_trip(device: Any) -> None:
    data = device_to_dict(device)

    assert data["kind"] in KINDS
    assert device_from_dict(data) == device
