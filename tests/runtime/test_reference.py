"""The decomposed operators against plain Python arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analogc import Converter
from analogc.runtime import reference
from analogc.runtime.spec import LayerSpec

analog = torch.ops.analogc


def quantise(value: float, full: float, bits: int) -> float:
    """Code of one value, as a share of full scale: Python's round is half to even."""
    levels = (1 << (bits - 1)) - 1
    code = round(value * (levels / full))
    return max(-levels, min(levels, code)) / levels


values = st.lists(st.floats(-9, 9), min_size=1, max_size=20)


@given(values, st.floats(0.1, 5), st.integers(2, 12))
def test_dac_gives_codes_and_adc_values_of_the_nearest_step(
    numbers: list[float], full: float, bits: int
) -> None:
    x, range_ = torch.tensor(numbers).double(), torch.tensor(full).double()

    codes, back = analog.dac(x, range_, bits), analog.adc(x, range_, bits)

    full = float(range_)
    expected = [quantise(value, full, bits) for value in x.tolist()]
    np.testing.assert_allclose(codes.numpy(), expected, rtol=1e-15)
    np.testing.assert_allclose(back.numpy(), np.array(expected) * full, rtol=1e-14)


def test_mvm_is_a_sum_of_products() -> None:
    codes, weight = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(4, 5).double()

    found = analog.mvm(codes, weight)

    for i, j, n in np.ndindex(2, 3, 4):
        exact = math.fsum((codes[i, j] * weight[n]).tolist())
        assert float(found[i, j, n]) == pytest.approx(exact, rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("bias", [None, torch.tensor([0.5, -0.5, 2.0])])
def test_accumulate_sums_scaled_parts(bias: Tensor | None) -> None:
    parts = [torch.randn(2, 3), torch.randn(2, 3)]
    gains = [torch.rand(3), torch.tensor(2.0)]

    found = analog.accumulate(parts, gains, bias)

    exact = parts[0] * gains[0] + parts[1] * 2 + (0 if bias is None else bias)
    torch.testing.assert_close(found, exact)


def test_accumulate_of_one_part_is_a_new_tensor() -> None:
    part = torch.ones(2)

    found = analog.accumulate([part], [torch.ones(())], None)

    assert found.data_ptr() != part.data_ptr()


@pytest.mark.parametrize("name", ["dac", "adc"])
def test_converter_gradient_is_straight_through_inside_the_range(name: str) -> None:
    x = torch.tensor([-3.0, -2.0, -1.9, 0.0, 0.3, 2.0, 2.1], requires_grad=True)

    getattr(analog, name)(x, torch.tensor(2.0), 4).sum().backward()

    inside = torch.tensor([0.0, 1, 1, 1, 1, 1, 0])
    # A DAC gives codes, in units of its range.
    torch.testing.assert_close(x.grad, inside / 2 if name == "dac" else inside)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_gradients_of_mvm_and_accumulate_are_those_of_finite_differences(
    leading: tuple[int, ...], bias: bool
) -> None:
    codes = torch.randn(*leading, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(5, dtype=torch.float64, requires_grad=True) if bias else None
    gains = [torch.rand(5).double(), torch.tensor(0.3).double()]

    def layer(codes: Tensor, weight: Tensor, offset: Tensor | None = None) -> Tensor:
        p = analog.mvm(codes, weight)
        y: Tensor = analog.accumulate([p, p * p], gains, offset)
        return y

    inputs = [codes, weight, offset] if offset is not None else [codes, weight]
    assert torch.autograd.gradcheck(layer, inputs)


def test_linear_by_hand() -> None:
    # Two row blocks of one input, 3-bit converters (3 steps a side), everything by hand.
    spec = LayerSpec((0, 1, 2), Converter(3), Converter(3))
    x = torch.tensor([[0.5, -9.0]])
    weights = [torch.tensor([[1.0], [0.5]]), torch.tensor([[-1.0], [1.0]])]
    scale, bias = torch.tensor([2.0, 4.0]), torch.tensor([10.0, 20.0])

    y = reference.linear(
        x, weights, scale, bias, torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.9]), spec
    )

    # Block 0: 0.5 -> code 1.5 -> 2/3 (half to even). Sums 2/3 and 1/3: steps 2 and 1 of 1/3.
    # Block 1: -9 clips at 3 -> code -1. Sums 1 and -1 clip at 0.9.
    expected = [
        2 / 3 * 1.0 * 2 + 0.9 * 3.0 * 2 + 10,
        1 / 3 * 1.0 * 4 - 0.9 * 3.0 * 4 + 20,
    ]
    torch.testing.assert_close(y, torch.tensor([expected]))


def test_linear_with_a_dynamic_range_takes_each_vectors_own() -> None:
    spec = LayerSpec((0, 2), Converter(8, "dynamic"))
    x = torch.tensor([[1e-3, -2e-3], [0.0, 0.0], [3e3, 1e3]], dtype=torch.float64)
    weight = torch.tensor([[0.25, 1.0]], dtype=torch.float64)

    y = reference.linear(x, [weight], torch.ones(1).double(), None, None, None, spec)

    torch.testing.assert_close(y, x @ weight.mT, rtol=1 / 127, atol=0)
    assert float(y[1]) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_fake_results_have_the_shape_and_dtype_of_real_ones(dtype: torch.dtype) -> None:
    x, full = torch.randn(3, 5).to(dtype), torch.rand(5) + 1
    meta = [t.to("meta") for t in (x, full)]

    for name in ("dac", "adc"):
        real, fake = getattr(analog, name)(x, full, 8), getattr(analog, name)(*meta, 8)
        assert (real.shape, real.dtype) == (fake.shape, fake.dtype)
    real, fake = (analog.accumulate([a], [b], b) for a, b in ((x, full), meta))
    assert (real.shape, real.dtype) == (fake.shape, fake.dtype)


def test_decomposed_operators_work_under_vmap() -> None:
    x, weight = torch.randn(3, 5), torch.randn(4, 5)
    full, gain = torch.rand(3) + 0.5, torch.rand(4)

    def layer(row: Tensor, full: Tensor) -> Tensor:
        p = analog.adc(analog.mvm(analog.dac(row, full, 8), weight), full, 8)
        y: Tensor = analog.accumulate([p], [gain], None)
        return y

    found = torch.vmap(layer)(x, full)

    expected = torch.stack([layer(*pair) for pair in zip(x, full, strict=True)])
    torch.testing.assert_close(found, expected)
