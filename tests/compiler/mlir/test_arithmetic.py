"""What expand-analog makes, run as machine code, against ``runtime/reference.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("torch_mlir")

from analogc.compiler.mlir import opt
from analogc.compiler.mlir.native import NativeCode
from analogc.runtime.converters import Converter
from analogc.runtime.devices import GaussianDevice
from analogc.runtime.spec import LayerSpec

from .modules import Layer

DIRECT = "expand-analog"
TILES = "split-to-tiles,expand-analog"


def run(layer: Layer, passes: str, dynamic: Sequence[int] = (0,), vague: bool = False) -> Tensor:
    module = layer.module(dynamic, vague)
    opt.run(module, passes)
    assert "analog." not in str(module)
    opt.run(module, "canonicalize,cse,torch-verify-linalg-on-tensors-backend-contract")
    return NativeCode(module)(list(layer.operands.values()))[0]


def assert_equal(
    layer: Layer, passes: str, dynamic: Sequence[int] = (0,), vague: bool = False
) -> None:
    found = run(layer, passes, dynamic, vague)
    expected = layer.expected()
    assert found.dtype == layer.x.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def dyadic(*shape: int, low: int = -15, high: int = 16) -> Tensor:
    """Small multiples of 1/16: sums of products with codes are exact in any order."""
    return torch.randint(low, high, shape) / 16.0


def full_scale(weight: Tensor) -> Tensor:
    """``weight`` with an abs-max of 1 in each column, so that normalised ones are dyadic, too."""
    flat = weight.flatten(1).clone()
    flat[:, 0] = 1.0
    return flat.view(weight.shape)


def exact_layer(weight: Tensor, x: Tensor, spec: LayerSpec, per_column: bool, **more: Any) -> Layer:
    blocks, columns = len(spec.blocks), weight.shape[0]
    static = spec.dac is not None and not spec.dynamic
    limit = (blocks, columns) if per_column else (blocks,)
    return Layer(
        spec, x, full_scale(weight),
        bias=torch.randn(columns),
        input_range=torch.rand(blocks) + 0.3 if static else None,
        adc_range=torch.rand(limit) * 3 + 0.5 if spec.adc is not None else None,
        **more,
    )  # fmt: skip


# One bit a side: codes are -1, 0 and 1.
DACS = [None, Converter(2), Converter(2, range="dynamic")]


@st.composite
def bounds(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    inner = draw(st.lists(st.integers(1, size), max_size=2, unique=True))
    return tuple(sorted({0, size, *inner}))


@st.composite
def specs(draw: st.DrawFn, rows: int) -> LayerSpec:
    return LayerSpec(
        draw(bounds(rows)),
        draw(st.sampled_from(DACS)),
        draw(st.sampled_from([None, Converter(4), Converter(8)])),
        draw(st.sampled_from(["column", "tensor"])),
    )


@st.composite
def linears(draw: st.DrawFn) -> tuple[Layer, list[int]]:
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    lead = draw(st.lists(st.integers(1, 4), max_size=2))
    spec = draw(specs(rows))
    layer = exact_layer(
        dyadic(columns, rows), dyadic(*lead, rows), spec, draw(st.booleans()),
        cols=draw(bounds(columns)),
    )  # fmt: skip
    return layer, draw(st.sampled_from([[], list(range(len(lead)))]))


@settings(max_examples=25)
@given(linears(), st.sampled_from([DIRECT, TILES]), st.booleans())
def test_linear_layers_equal_the_reference(
    drawn: tuple[Layer, list[int]], passes: str, vague: bool
) -> None:
    assert_equal(drawn[0], passes, drawn[1], vague)


@st.composite
def convs(draw: st.DrawFn) -> tuple[Layer, list[int]]:
    dims = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    channels, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3 if dims < 3 else 2)) for _ in range(dims)]
    rows = channels * math.prod(kernel)
    spec = draw(specs(rows))
    if spec.dynamic and dims != 2:
        spec = LayerSpec(spec.rows, None, spec.adc, spec.weight_scale)
    layer = exact_layer(
        dyadic(outputs * groups, channels, *kernel),
        dyadic(2, channels * groups, *[draw(st.integers(6, 7)) for _ in range(dims)]),
        spec,
        draw(st.booleans()),
        cols=draw(bounds(outputs)),
        stride=[draw(st.integers(1, 2)) for _ in range(dims)],
        padding=[draw(st.integers(0, 2)) for _ in range(dims)],
        dilation=[draw(st.integers(1, 2)) for _ in range(dims)],
        groups=groups,
    )  # fmt: skip
    every = [0, *range(2, 2 + dims)]
    return layer, draw(st.sampled_from([[], [0], every]))


@settings(max_examples=25)
@given(convs(), st.sampled_from([DIRECT, TILES]), st.booleans())
def test_convolutions_equal_the_reference(
    drawn: tuple[Layer, list[int]], passes: str, vague: bool
) -> None:
    assert_equal(drawn[0], passes, drawn[1], vague)


@pytest.mark.parametrize("passes", [DIRECT, TILES])
@pytest.mark.parametrize(
    "dac", [Converter(8), Converter(8, range="dynamic")], ids=["static", "dynamic"]
)
def test_other_orders_of_sums_move_outputs_by_one_step_at_most(dac: Converter, passes: str) -> None:
    spec = LayerSpec((0, 150, 300), dac, Converter(8))
    weight, x = torch.randn(20, 300), torch.randn(40, 300)
    layer = Layer(
        spec, x, weight, (0, 12, 20),
        input_range=torch.tensor([2.0, 2.5]) if not spec.dynamic else None,
        adc_range=torch.tensor([12.0, 13.0]),
    )  # fmt: skip

    found, expected = run(layer, passes), layer.expected()

    # The largest step that one ADC can make in each output.
    unit = 2.5 if not spec.dynamic else x.abs().amax(1, keepdim=True)
    step = unit * weight.abs().amax(1) * 13.0 / 127
    assert ((found - expected).abs() <= 1.001 * step).all()
    assert (torch.isclose(found, expected, rtol=1e-5, atol=1e-5)).float().mean() > 0.99


@pytest.mark.parametrize("passes", [DIRECT, TILES])
@pytest.mark.parametrize("dac", DACS, ids=["none", "static", "dynamic"])
def test_nan_and_infinity_go_the_way_of_the_reference(dac: Converter | None, passes: str) -> None:
    spec = LayerSpec((0, 2, 4), dac, Converter(4))
    x = dyadic(6, 4)
    x[0, 1], x[1, 3], x[2, 0], x[3] = math.nan, math.inf, -math.inf, 0.0
    assert_equal(exact_layer(dyadic(3, 4), x, spec, False, cols=(0, 3)), passes)


@pytest.mark.parametrize("passes", [DIRECT, TILES])
@pytest.mark.parametrize("weight_scale", ["column", "tensor"])
def test_columns_of_zeros_count_as_scale_one(weight_scale: Any, passes: str) -> None:
    spec = LayerSpec((0, 4), Converter(2), Converter(4), weight_scale)
    layer = exact_layer(dyadic(3, 4), dyadic(5, 4), spec, False, cols=(0, 3))
    layer.weight[1] = 0
    assert_equal(layer, passes)
    layer.weight[:] = 0
    assert_equal(layer, passes)


@pytest.mark.parametrize("passes", [DIRECT, TILES])
@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
        (torch.float32, torch.float64),
        (torch.float32, torch.float16),
        (torch.float16, torch.float16),
    ],
)
def test_simulation_runs_in_the_weights_type_and_at_least_float32(
    x: torch.dtype, weight: torch.dtype, passes: str
) -> None:
    spec = LayerSpec((0, 2, 4), Converter(2), Converter(4))
    layer = exact_layer(dyadic(3, 4), dyadic(5, 4), spec, True, cols=(0, 3))
    wide = weight if weight.itemsize >= 4 else torch.float32
    layer.x, layer.weight = layer.x.to(x), layer.weight.to(weight)
    assert layer.input_range is not None and layer.adc_range is not None and layer.bias is not None
    layer.input_range, layer.adc_range = layer.input_range.to(wide), layer.adc_range.to(wide)
    layer.bias = layer.bias.to(wide)
    assert_equal(layer, passes)


@pytest.mark.parametrize("passes", [DIRECT, TILES])
def test_given_content_of_the_devices_is_taken_as_it_is(passes: str) -> None:
    spec = LayerSpec((0, 2, 4), Converter(2), Converter(4), device=GaussianDevice())
    layer = exact_layer(dyadic(3, 4), dyadic(5, 4), spec, True, cols=(0, 2, 3))
    layer.weight, layer.scale = dyadic(3, 4), torch.rand(3) + 0.5
    assert_equal(layer, passes)


@pytest.mark.parametrize("passes", [DIRECT, TILES])
def test_ideal_layers_are_the_digital_operator(passes: str) -> None:
    layer = Layer(LayerSpec((0, 2, 4)), dyadic(5, 4), 3 * dyadic(3, 4), (0, 3))
    layer.bias = dyadic(3)
    expected = torch.nn.functional.linear(layer.x, layer.weight, layer.bias)
    torch.testing.assert_close(run(layer, passes), expected, rtol=0, atol=0)
