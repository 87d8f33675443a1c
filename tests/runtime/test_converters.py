from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analogc.errors import InputError
from analogc.runtime.converters import Converter, absmax, to_codes
from analogc.runtime.target import Target


@pytest.mark.parametrize("bits", [1, 0, -3, 17, 8.0, "8", True, None])
def test_bits_must_be_an_int_of_2_to_16(bits: Any) -> None:
    with pytest.raises(InputError, match=r"Converter\.bits"):
        Converter(bits=bits)


@pytest.mark.parametrize(
    "value",
    [0, 0.0, -1.0, math.inf, -math.inf, math.nan, 10**400, True, None, "auto", "", [1.0], b"full"],
)
def test_range_must_be_a_known_kind_or_positive_and_finite(value: Any) -> None:
    with pytest.raises(InputError, match=r"Converter\.range"):
        Converter(range=value)


@pytest.mark.parametrize("kind", ["calibrated", "dynamic", "full", 3, 0.25])
def test_range_accepts_kinds_and_numbers(kind: Any) -> None:
    assert Converter(range=kind).range == kind


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_per_column_must_be_a_bool(value: Any) -> None:
    with pytest.raises(InputError, match="per_column must be a bool"):
        Converter(per_column=value)


@pytest.mark.parametrize("kind", ["dynamic", "full", 2.0])
def test_per_column_needs_a_calibrated_range(kind: Any) -> None:
    with pytest.raises(InputError, match="per_column needs range='calibrated'"):
        Converter(range=kind, per_column=True)


def test_too_few_bits_says_how_to_get_an_ideal_converter() -> None:
    with pytest.raises(InputError, match="fix: use None"):
        Converter(bits=1)


def test_converter_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Converter().bits = 4  # type: ignore[misc]


@pytest.mark.parametrize(("bits", "levels"), [(2, 1), (3, 3), (4, 7), (8, 127), (16, 32767)])
def test_levels_are_the_steps_of_one_side(bits: int, levels: int) -> None:
    assert Converter(bits).levels == levels


def exact_code(value: float, full: float, levels: int) -> int:
    """The code by exact rational arithmetic: Python rounds a Fraction half to even."""
    code = round(Fraction(value) * levels / Fraction(full))
    return max(-levels, min(levels, code))


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=30),
    st.floats(0.01, 10),
    st.integers(2, 16),
)
def test_codes_equal_exact_rational_arithmetic(values: list[float], full: float, bits: int) -> None:
    levels = (1 << (bits - 1)) - 1

    codes = to_codes(torch.tensor(values, dtype=torch.float64), torch.tensor(full).double(), levels)

    for value, code in zip(values, codes.tolist(), strict=True):
        position = float(Fraction(value) * levels / Fraction(full))
        near_a_tie = abs(abs(position) % 1 - 0.5) < 1e-9
        assert code == exact_code(value, full, levels) or near_a_tie


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_round_half_to_even(bits: int) -> None:
    levels = (1 << (bits - 1)) - 1
    halves = torch.arange(-levels, levels) + 0.5

    # A range equal to the number of levels makes one step exactly one unit.
    codes = to_codes(halves, torch.tensor(float(levels)), levels)

    np.testing.assert_array_equal(codes.numpy(), np.rint(halves.numpy()))
    assert bool((codes % 2 == 0).logical_or(codes.abs() == levels).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_clip_at_the_range(dtype: torch.dtype) -> None:
    x = torch.tensor([-math.inf, -1e30, -2.0, -1.0, 1.0, 2.0, 1e30, math.inf], dtype=dtype)

    codes = to_codes(x, torch.tensor(1.0, dtype=dtype), 127)

    assert codes.tolist() == [-127] * 4 + [127] * 4


def test_zero_is_exact_and_codes_are_symmetric() -> None:
    x = torch.randn(1000)
    full = torch.tensor(1.7)

    assert to_codes(torch.zeros(3), full, 7).tolist() == [0, 0, 0]
    assert torch.equal(to_codes(-x, full, 7), -to_codes(x, full, 7))


def test_codes_leave_their_input_alone_and_broadcast_the_range() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    before = x.clone()

    codes = to_codes(x, torch.tensor([[1.0], [2.0]]), 3)

    assert torch.equal(x, before)
    assert codes.tolist() == [[3, 3], [2, 3]]  # 1/2 of 3 steps is a tie: 1.5 -> 2


def test_absmax_is_one_where_all_is_zero() -> None:
    x = torch.tensor([[0.0, 0.0], [-3.0, 2.0]], requires_grad=True)

    peak = absmax(x)

    assert peak.tolist() == [[1.0], [3.0]]
    assert not peak.requires_grad


def test_a_cap_is_for_dynamic_ranges() -> None:
    assert Target.from_json(
        Target(dac=Converter(8, "dynamic", cap=2.0)).to_json()
    ).dac == Converter(8, "dynamic", cap=2.0)
    for cap in (0, -1.0, math.inf, math.nan, "2", True):
        with pytest.raises(InputError, match=r"Converter\.cap"):
            Converter(8, "dynamic", cap=cap)  # type: ignore[arg-type]
    for range in ("calibrated", "average", 3.0):
        with pytest.raises(InputError, match=r"Converter\.cap"):
            Converter(8, range, cap=2.0)
    with pytest.raises(InputError, match=r"Target\.adc: range='average' is for a DAC"):
        Target(adc=Converter(8, "average"))
