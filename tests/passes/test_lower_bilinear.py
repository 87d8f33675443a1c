from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import analogc
from analogc.passes.base import META
from analogc.runtime.mapping import Digital
from tests.passes.lowering import assert_analog, assert_same

if TYPE_CHECKING:
    from tests.passes.conftest import Lower, Make

D = torch.float64


def pair(*lead: int, i: int = 4, j: int = 5, dtype: torch.dtype = D) -> tuple[Tensor, Tensor]:
    return torch.randn(*lead, i, dtype=dtype), torch.randn(*lead, j, dtype=dtype)


def test_expected_graph(lower: Lower) -> None:
    lowered = lower(nn.Bilinear(4, 5, 3, dtype=D), *pair(2))

    assert lowered.run("lower-bilinear") is True
    assert lowered.ir == (
        "%input1: f64[2, 4] = input\n"
        "%input2: f64[2, 5] = input\n"
        "%flatten_using_ints: f64[12, 5] = aten.flatten.using_ints(@weight, 0, 1)\n"
        "%linear_default: f64[2, 12] = aten.linear(%input2, %flatten_using_ints)\n"
        "%unflatten_int: f64[2, 3, 4] = aten.unflatten.int(%linear_default, -1, [3, 4])\n"
        "%unsqueeze_default: f64[2, 1, 4] = aten.unsqueeze(%input1, -2)\n"
        "%mul_tensor: f64[2, 3, 4] = aten.mul.Tensor(%unflatten_int, %unsqueeze_default)\n"
        "%sum_dim_int_list: f64[2, 3] = aten.sum.dim_IntList(%mul_tensor, [-1])\n"
        "%bilinear: f64[2, 3] = aten.add.Tensor(%sum_dim_int_list, @bias)\n"
        "output = (%bilinear)"
    )
    assert lowered.run("lower-bilinear") is False


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize(("i", "j"), [(4, 5), (5, 4), (3, 3), (1, 6)])
def test_same_numbers(i: int, j: int, lead: tuple[int, ...], bias: bool) -> None:
    model = nn.Bilinear(i, j, 3, bias=bias, dtype=D)
    inputs = pair(*lead, i=i, j=j)
    compiled = analogc.compile(model, inputs, target="ideal", check=True)

    assert_same(compiled, model, inputs)
    report = compiled.coverage
    vectors = inputs[0].shape[:-1].numel()
    assert (report.macs, report.analog_share) == (vectors * 3 * i * j, 1.0)


def test_same_numbers_with_a_dynamic_batch() -> None:
    model = nn.Bilinear(4, 5, 3, dtype=D)
    compiled = analogc.compile(model, pair(2), target="ideal", check=True, dynamic_shapes="batch")

    for size in (1, 7):
        assert_same(compiled, model, pair(size))


@pytest.mark.parametrize("stored", ["first", "second"])
def test_one_input_may_be_stored_too(stored: str, make: Make) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        v = m.v.expand(3, 4)
        first, second = (v, x) if stored == "first" else (x, v)
        return F.bilinear(first, second, m.W)

    model = make(run, W=torch.randn(2, 4, 4, dtype=D), v=torch.randn(4, dtype=D))
    x = torch.randn(3, 4, dtype=D)
    compiled = analogc.compile(model, (x,), target="ideal", check=True)

    assert len(compiled.coverage.analog) == 1
    assert_same(compiled, model, (x,))


def test_eight_bit_tiles_come_close() -> None:
    inputs = pair(16, i=20, j=30, dtype=torch.float32)
    compiled = assert_analog(nn.Bilinear(20, 30, 10), inputs, 1)

    (row,) = compiled.coverage.analog
    assert row.macs == 16 * 10 * 20 * 30
    # The wider input is on the rows.
    assert compiled.tiles[0].weight_shape == (200, 30)


@pytest.mark.parametrize("what", ["live weight", "no bilinear"])
def test_nothing_to_lower(what: str, lower: Lower, make: Make) -> None:
    x, w = torch.randn(3, 4), torch.randn(2, 4, 4)
    model = make(
        lambda m, x, w: F.bilinear(x, x, w) if what == "live weight" else x.relu() + w.sum()
    )
    lowered = lower(model, x, w)
    code = lowered.module.code

    assert lowered.run("lower-bilinear") is False
    assert lowered.module.code == code


@pytest.mark.parametrize(
    ("dtype", "shape", "rule", "reason"),
    [
        (
            torch.int64,
            (2, 4, 4),
            "unsupported",
            "its weight is int64: tiles hold real numbers; "
            "multiply by the dequantised weight, weight.float() * scale",
        ),
        (torch.float32, (0, 4, 4), "rule", "its weight is empty"),
    ],
)
def test_what_stays_digital_says_why(
    dtype: torch.dtype, shape: tuple[int, ...], rule: str, reason: str, lower: Lower, make: Make
) -> None:
    model = make(lambda m, x: F.bilinear(x, x, m.W), W=torch.ones(shape, dtype=dtype))
    lowered = lower(model, torch.ones(3, 4, dtype=dtype))

    assert lowered.run("lower-bilinear") is False
    lowered.run("canonicalize,select-analog")
    (node,) = lowered.nodes("aten.bilinear")
    record = node.meta[META]
    assert isinstance(record, Digital) and (record.rule, record.reason) == (rule, reason)
