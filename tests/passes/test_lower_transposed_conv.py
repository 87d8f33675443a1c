from __future__ import annotations

import random
from pathlib import Path
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
CONVS: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def drawn(dims: int, seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer with random options, and the size of an image that it takes."""
    rng = random.Random(1000 * dims + seed)

    def each(low: int, high: int) -> list[int]:
        return [rng.randint(low, high) for _ in range(dims)]

    kernel, stride, dilation, padding = each(1, 4), each(1, 3), each(1, 3), each(0, 2)
    extra = [rng.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True)]
    layer = CONVS[dims](
        4, 8, kernel, stride, padding, extra, rng.choice([1, 2, 4]), rng.random() < 0.5, dilation,
        dtype=D,
    )  # fmt: skip
    return layer, tuple(each(4, 6))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dims", CONVS)
def test_same_numbers_with_any_options(dims: int, seed: int) -> None:
    layer, size = drawn(dims, seed)
    x = torch.randn(2, 4, *size, dtype=D)
    for given in (x, x[0]):
        compiled = analogc.compile(layer, (given,), target="ideal", check=True)
        assert_same(compiled, layer, (given,))
        report = compiled.coverage
        macs = given.numel() * layer.get_parameter("weight")[0].numel()
        assert (report.macs, report.analog_share) == (macs, 1.0)
        assert len(report.analog) == 1


@pytest.mark.parametrize("seed", range(2, 6))
@pytest.mark.parametrize("dims", CONVS)
def test_same_numbers_with_dynamic_sizes(dims: int, seed: int) -> None:
    layer, size = drawn(dims, seed)
    shapes = ({i: torch.export.Dim.AUTO for i in range(dims + 2)},)
    x = torch.randn(2, 4, *size, dtype=D)
    compiled = analogc.compile(layer, (x,), target="ideal", check=True, dynamic_shapes=shapes)

    for batch, more in ((2, 0), (5, 1), (3, 4)):
        assert_same(compiled, layer, (torch.randn(batch, 4, *(n + more for n in size), dtype=D),))


def test_dynamic_batch() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, 2, dtype=D)
    x = torch.randn(2, 4, 5, 6, dtype=D)
    compiled = analogc.compile(layer, (x,), target="ideal", check=True, dynamic_shapes="batch")
    for size in (1, 7):
        assert_same(compiled, layer, (torch.randn(size, 4, 5, 6, dtype=D),))


@pytest.mark.parametrize("dims", CONVS)
def test_a_saved_model_keeps_its_dynamic_sizes(dims: int, tmp_path: Path) -> None:
    layer = CONVS[dims](4, 6, 3, 2, 1, 2, dilation=3, dtype=D)
    shapes = ({i: torch.export.Dim.AUTO for i in range(dims + 2)},)
    x = torch.randn(2, 4, *[5] * dims, dtype=D)
    analogc.compile(layer, (x,), target="ideal", dynamic_shapes=shapes).save(tmp_path / "up")

    wider = torch.randn(3, 4, *[6] * dims, dtype=D)
    torch.testing.assert_close(analogc.load(tmp_path / "up")(wider), layer(wider))


def test_decomposed_programs() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, dtype=D)
    x = torch.randn(2, 4, 5, 6, dtype=D)
    program = torch.export.export(layer, (x,)).run_decompositions()
    compiled = analogc.compile(program, target="ideal", check=True)

    assert compiled.coverage.analog_share == 1.0
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-10, atol=1e-12)


def test_expected_graph(lower: Lower) -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, dtype=D)
    lowered = lower(layer, torch.randn(2, 4, 5, 7, dtype=D))

    assert lowered.run("lower-transposed-conv") is True
    assert lowered.ir == (
        "%input_1: f64[2, 4, 5, 7] = input\n"
        "%flatten_using_ints: f64[4, 27] = aten.flatten.using_ints(@weight, 1, -1)\n"
        "%unflatten_int: f64[2, 2, 27] = aten.unflatten.int(%flatten_using_ints, 0, [2, 2])\n"
        "%transpose_int: f64[2, 27, 2] = aten.transpose.int(%unflatten_int, 1, 2)\n"
        "%flatten_using_ints_1: f64[54, 2] = aten.flatten.using_ints(%transpose_int, 0, 1)\n"
        "%unsqueeze_default: f64[54, 2, 1] = aten.unsqueeze(%flatten_using_ints_1, -1)\n"
        "%unsqueeze_default_1: f64[54, 2, 1, 1] = aten.unsqueeze(%unsqueeze_default, -1)\n"
        "%conv2d_default: f64[2, 54, 5, 7] = aten.conv2d(%input_1, %unsqueeze_default_1, None, "
        "[1, 1], [0, 0], [1, 1], 2)\n"
        "%flatten_using_ints_2: f64[2, 54, 35] = aten.flatten.using_ints(%conv2d_default, 2, 3)\n"
        "%col2im_default: f64[2, 6, 10, 14] = aten.col2im(%flatten_using_ints_2, [10, 14], "
        "[3, 3], [1, 1], [1, 1], [2, 2])\n"
        "%unsqueeze_default_2: f64[6, 1] = aten.unsqueeze(@bias, -1)\n"
        "%unsqueeze_default_3: f64[6, 1, 1] = aten.unsqueeze(%unsqueeze_default_2, -1)\n"
        "%conv_transpose2d: f64[2, 6, 10, 14] = aten.add.Tensor(%col2im_default, "
        "%unsqueeze_default_3)\n"
        "output = (%conv_transpose2d)"
    )
    assert lowered.run("lower-transposed-conv") is False


def test_weights_without_groups_are_a_view(lower: Lower) -> None:
    layer = nn.ConvTranspose1d(4, 6, 3, dtype=D)
    x = torch.randn(2, 4, 5, dtype=D)
    lowered = lower(layer, x)
    lowered.run("lower-transposed-conv")

    (conv,) = lowered.nodes("aten.conv1d")
    assert conv.args[1].meta["val"].shape == (18, 4, 1)
    assert "aten.clone" not in lowered.counts


@pytest.mark.parametrize("dims", CONVS)
def test_eight_bit_tiles_come_close(dims: int) -> None:
    layer = CONVS[dims](16, 12, 3, 2, 1, 1, groups=2)
    compiled = assert_analog(layer, (torch.randn(2, 16, *[5] * dims),), 1, within=0.1)

    # Rows: the channels of one pixel. Columns: output channels times taps.
    assert compiled.tiles[0].in_features == 8
    assert compiled.tiles[0].out_features == 6 * 3**dims


def test_a_decoder_is_all_analog() -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(8, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh(),
    ).eval()  # fmt: skip
    compiled = assert_analog(model, (torch.randn(4, 8, 4, 4),), 2, within=0.1)
    assert compiled.coverage.analog_share == 1.0


@pytest.mark.parametrize("what", ["live weight", "no convolution", "forward convolution"])
def test_nothing_to_lower(what: str, lower: Lower, make: Make) -> None:
    def run(m: Any, x: Tensor, w: Tensor) -> Tensor:
        if what == "live weight":
            return F.conv_transpose1d(x, w)
        if what == "no convolution":
            return x.relu() + w.sum()
        return F.conv1d(x, m.W)

    model = make(run, W=torch.randn(5, 4, 2))
    lowered = lower(model, torch.randn(2, 4, 9), torch.randn(4, 3, 2))
    code = lowered.module.code

    assert lowered.run("lower-transposed-conv") is False
    assert lowered.module.code == code


def test_what_stays_digital_says_why(lower: Lower, make: Make) -> None:
    model = make(
        lambda m, x: F.conv_transpose1d(x, m.W), W=torch.ones(4, 3, 2, dtype=torch.complex64)
    )
    lowered = lower(model, torch.ones(2, 4, 9, dtype=torch.complex64))

    assert lowered.run("lower-transposed-conv") is False
    lowered.run("canonicalize,select-analog")
    (node,) = lowered.nodes("aten.conv_transpose1d")
    record = node.meta[META]
    assert isinstance(record, Digital)
    assert record.rule == "unsupported"
    assert record.reason.startswith("its weight is complex64: tiles hold real numbers")
