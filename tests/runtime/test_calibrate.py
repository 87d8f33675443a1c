from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import analogc
from analogc import Calibration, Converter, GaussianDevice, Target
from analogc.errors import InputError
from analogc.runtime.calibrate import calibrate
from analogc.runtime.ranges import RangeTable
from analogc.runtime.spec import LayerSpec

ABSMAX = Calibration("absmax")
CPU = torch.device("cpu")


class Rig:
    """A graph of one analog layer, and what its get_attr nodes refer to."""

    def __init__(
        self,
        spec: LayerSpec,
        weight: Tensor,
        geometry: tuple[Any, ...] = (),
    ) -> None:
        self.root = nn.Module()
        self.root.weight = nn.Parameter(weight)
        self.table = self.root.ranges = RangeTable()
        names = self.table.add("fc", spec, len(weight), CPU)
        self.graph = fx.Graph()
        x = self.graph.placeholder("x")
        w = self.graph.get_attr("weight")
        ranges = [None if n is None else self.graph.get_attr(f"ranges.{n}") for n in names]
        op = f"conv{weight.dim() - 2}d" if geometry else "linear"
        y = self.graph.call_function(
            getattr(torch.ops.analogc, op).default,
            (x, w, None, *ranges, *geometry, spec.to_text(), ""),
        )
        y.meta["analogc"] = SimpleNamespace(layer="fc")
        self.graph.output(y)

    def calibrate(self, *batches: Tensor, how: Calibration = ABSMAX, **options: Any) -> int:
        return calibrate(self.graph, self.root, [(b,) for b in batches], how, **options)

    @property
    def input(self) -> Tensor:
        return self.table.get_buffer("fc_input")

    @property
    def adc(self) -> Tensor:
        return self.table.get_buffer("fc_adc")


def unit(weight: Tensor) -> Tensor:
    """Weight with each column scaled to full scale."""
    flat = weight.flatten(1)
    return (flat / flat.abs().amax(1, keepdim=True)).view_as(weight)


BOTH = LayerSpec((0, 3, 7), Converter(8), Converter(8))


def test_absmax_ranges_are_those_of_the_data_for_each_row_block() -> None:
    weight, batches = torch.randn(4, 7), [torch.randn(5, 7) * s for s in (1.0, 3.0, 0.1)]
    rig = Rig(BOTH, weight)

    count = rig.calibrate(*batches)

    x = torch.cat(batches)
    parts = [x[:, :3], x[:, 3:]]
    sums = [p @ w.mT for p, w in zip(parts, unit(weight).split([3, 4], dim=1), strict=True)]
    peaks = torch.stack([part.abs().max() for part in parts])
    assert count == 3
    torch.testing.assert_close(rig.input, peaks, rtol=0, atol=0)
    torch.testing.assert_close(rig.adc, torch.stack([s.abs().max() for s in sums]) / peaks)


def test_absmax_ranges_do_not_depend_on_the_order_of_batches() -> None:
    weight, batches = torch.randn(4, 7), [torch.randn(5, 7) * s for s in (1.0, 30.0, 0.01)]
    found = []
    for order in itertools.permutations(batches):
        rig = Rig(BOTH, weight)
        rig.calibrate(*order)
        found.append(torch.cat([rig.input, rig.adc]))

    assert all(torch.equal(found[0], other) for other in found)


def test_per_column_ranges_are_those_of_each_column() -> None:
    weight, x = torch.randn(4, 7), torch.randn(50, 7)
    rig = Rig(LayerSpec((0, 7), Converter(8), Converter(8, per_column=True)), weight)

    rig.calibrate(x)

    sums = (x @ unit(weight).mT).abs().amax(0) / x.abs().max()
    torch.testing.assert_close(rig.adc, sums[None])


def test_few_vectors_are_enough_for_ranges_per_column() -> None:
    layer, few, unseen = nn.Linear(64, 96, bias=False), torch.randn(40, 64), torch.randn(2000, 64)

    def error(adc: Converter) -> float:
        target = Target(dac=None, adc=adc)
        with torch.no_grad():
            compiled = analogc.compile(
                layer, (few,), target=target, dynamic_shapes="batch", calibration_data=[few]
            )
            return float((compiled(unseen) - layer(unseen)).square().mean())

    # Columns of one scale gain nothing from ranges of their own; chosen alone they lose 35 times.
    assert error(Converter(8, per_column=True)) < 3 * error(Converter(8))


@pytest.mark.parametrize("method", ["absmax", "percentile", "mse"])
def test_adc_range_does_not_depend_on_the_scale_of_the_inputs(
    method: Literal["absmax", "percentile", "mse"],
) -> None:
    weight, x = torch.randn(4, 7), torch.randn(500, 7)
    small, large = Rig(BOTH, weight), Rig(BOTH, weight)

    small.calibrate(x, how=Calibration(method, 99))
    large.calibrate(1000 * x, how=Calibration(method, 99))

    torch.testing.assert_close(large.input, 1000 * small.input, rtol=1e-3, atol=0)
    torch.testing.assert_close(large.adc, small.adc, rtol=1e-3, atol=0)


def test_adc_range_is_in_units_of_the_input_range() -> None:
    weight, x = torch.randn(4, 7), torch.randn(500, 7)
    fixed = Rig(LayerSpec((0, 7), Converter(8, 2.0), Converter(8)), weight)
    bare = Rig(LayerSpec((0, 7), None, Converter(8)), weight)

    fixed.calibrate(x)
    bare.calibrate(x)

    peak = (x @ unit(weight).mT).abs().max()
    assert fixed.input.tolist() == [2.0]
    torch.testing.assert_close(fixed.adc, peak[None] / 2)
    torch.testing.assert_close(bare.adc, peak[None])


def test_dynamic_inputs_are_normalised_one_by_one() -> None:
    weight, x = torch.randn(4, 7), torch.randn(50, 7) * torch.logspace(-3, 3, 50)[:, None]
    rig = Rig(LayerSpec((0, 7), Converter(8, "dynamic"), Converter(8)), weight)

    rig.calibrate(x)

    sums = (x / x.abs().amax(1, keepdim=True)) @ unit(weight).mT
    torch.testing.assert_close(rig.adc, sums.abs().max()[None])


CONV: tuple[Any, ...] = ([1, 2], [1, 0], [1, 1], 2)


@pytest.mark.parametrize("single", [False, True])
def test_conv_ranges_see_the_channels_of_each_block(single: bool) -> None:
    weight, x = torch.randn(6, 3, 2, 2), torch.randn(4, 6, 5, 6)
    rig = Rig(LayerSpec((0, 4, 12), Converter(8), Converter(8)), weight, CONV)

    rig.calibrate(*(x if single else [x]))

    grouped = x.unflatten(1, (2, 3))
    peaks = torch.stack([grouped[:, :, :1].abs().max(), grouped[:, :, 1:].abs().max()])
    torch.testing.assert_close(rig.input, peaks)
    for r, (first, last) in enumerate(((0, 1), (1, 3))):
        sums = F.conv2d(
            grouped[:, :, first:last].flatten(1, 2), unit(weight)[:, first:last], None, *CONV
        )
        torch.testing.assert_close(rig.adc[r], sums.abs().max() / peaks[r])


def test_percentile_and_mse_clip_an_outlier_that_absmax_keeps() -> None:
    weight, x = torch.randn(4, 7), torch.randn(2000, 7)
    x[0, 0] = 1e3
    found = []
    for how in (ABSMAX, Calibration("percentile", 99.9), Calibration("mse")):
        rig = Rig(LayerSpec((0, 7), Converter(4), None), weight)
        rig.calibrate(x, how=how)
        found.append(float(rig.input))

    assert found[0] == 1000
    assert found[1] < 10
    # One outlier of a thousand is worth as much square error as 14 000 values of one.
    assert 10 < found[2] < 1000


def test_noise_and_device_errors_do_not_enter_the_ranges() -> None:
    weight, x = torch.randn(4, 7), torch.randn(50, 7)
    exact = Rig(BOTH, weight)
    spec = LayerSpec(BOTH.rows, BOTH.dac, BOTH.adc, device=GaussianDevice(1), output_noise=9.0)
    noisy = Rig(spec, weight)

    exact.calibrate(x)
    noisy.calibrate(x)

    assert torch.equal(exact.adc, noisy.adc)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_calibrate(dtype: torch.dtype) -> None:
    weight, x = torch.randn(4, 7).to(dtype), torch.randn(50, 7).to(dtype)
    rig = Rig(BOTH, weight)

    rig.calibrate(x)

    assert rig.input.dtype == torch.float32
    torch.testing.assert_close(rig.input[0], x[:, :3].abs().max().float())


def test_zero_data_warns_by_name_and_takes_range_one() -> None:
    rig = Rig(BOTH, torch.randn(4, 7))

    with pytest.warns(UserWarning, match="zero at the input of fc: range 1"):
        rig.calibrate(torch.zeros(5, 7))

    assert rig.input.tolist() == [1, 1]
    assert rig.adc.tolist() == [1, 1]


def test_one_zero_row_block_warns_and_leaves_the_other() -> None:
    x = torch.randn(5, 7)
    x[:, :3] = 0
    rig = Rig(BOTH, torch.randn(4, 7))

    with pytest.warns(UserWarning, match="zero at the input of fc"):
        rig.calibrate(x)

    assert float(rig.input[0]) == 1
    assert float(rig.input[1]) == float(x.abs().max())


def test_a_column_of_zero_weights_does_not_warn() -> None:
    weight = torch.randn(4, 7)
    weight[2] = 0
    rig = Rig(LayerSpec((0, 7), Converter(8), Converter(8, per_column=True)), weight)

    rig.calibrate(torch.randn(5, 7))

    assert float(rig.adc[0, 2]) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_data_that_is_not_finite_warns_by_name_and_is_left_out(bad: float) -> None:
    weight, x = torch.randn(4, 7), torch.randn(5, 7)
    spoilt = torch.cat([x, torch.full((1, 7), bad)])
    clean, rig = Rig(BOTH, weight), Rig(BOTH, weight)

    clean.calibrate(x)
    with pytest.warns(UserWarning, match="NaN or infinite at fc"):
        rig.calibrate(spoilt)

    assert torch.equal(clean.input, rig.input)
    assert torch.equal(clean.adc, rig.adc)


def test_no_data_is_an_input_error() -> None:
    with pytest.raises(InputError, match="calibration data is empty"):
        Rig(BOTH, torch.randn(4, 7)).calibrate()


def test_nothing_to_calibrate_reads_no_data() -> None:
    rig = Rig(LayerSpec((0, 7), Converter(8, 1.0), Converter(8, 2.0)), torch.randn(4, 7))

    def never() -> Iterator[tuple[Tensor]]:
        raise AssertionError("data was read")
        yield

    assert calibrate(rig.graph, rig.root, never(), ABSMAX) == 0


def test_only_missing_leaves_earlier_ranges_alone() -> None:
    rig = Rig(BOTH, torch.randn(4, 7))
    rig.calibrate(torch.ones(1, 7))
    before = rig.input.clone(), rig.adc.clone()

    assert rig.calibrate(9 * torch.ones(1, 7), only_missing=True) == 0
    assert torch.equal(rig.input, before[0]) and torch.equal(rig.adc, before[1])

    rig.input[0] = torch.nan
    assert rig.calibrate(9 * torch.ones(1, 7), only_missing=True) == 1
    assert rig.input.tolist() == [9, 9]


def test_ranges_are_written_in_place() -> None:
    rig = Rig(BOTH, torch.randn(4, 7))
    held = rig.input

    rig.calibrate(torch.randn(5, 7))

    assert rig.input is held
    assert not bool(held.isnan().any())


# -- through a compiled model ---------------------------------------------------------------------


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 3)
    )


TARGET = Target(dac=Converter(8), adc=Converter(8), output_noise=0.1, device=GaussianDevice(0.1))


def test_statistics_and_random_state_are_left_as_they_were() -> None:
    model, x = network().train(), torch.randn(6, 2, 5, 5)
    compiled = analogc.compile(model, (x,), target=TARGET, seed=0)
    before = {name: b.clone() for name, b in model.named_buffers()}
    state = torch.get_rng_state()

    assert compiled.calibrate([x + 5, x - 5]) == 2

    assert torch.equal(torch.get_rng_state(), state)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_statistics_are_left_as_they_were_when_the_data_fails() -> None:
    model, x = network().train(), torch.randn(6, 2, 5, 5)
    compiled = analogc.compile(model, (x,), target=TARGET, seed=0)
    before = {name: b.clone() for name, b in model.named_buffers()}

    def failing() -> Iterator[Tensor]:
        yield x + 5
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        compiled.calibrate(failing())

    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_calibration_data_may_be_an_iterator_of_tensors() -> None:
    model, x = nn.Linear(4, 3).eval(), torch.randn(5, 4)

    one = analogc.compile(model, (x,), calibration_data=(x * s for s in (1, 7)), seed=0)
    two = analogc.compile(model, (x,), calibration_data=[x, x * 7], seed=0)

    with torch.no_grad():
        found, again, exact = one(7 * x), two(7 * x), model(7 * x)
    assert torch.equal(found, again)
    assert float((found - exact).abs().max()) < 0.05 * float(exact.abs().max())


AVERAGE = LayerSpec((0, 5, 18), Converter(8, "average", learned=True), Converter(8))


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_average_ranges_are_the_mean_abs_max_of_the_vectors(groups: int) -> None:
    if not groups:
        rig, batches = Rig(AVERAGE, torch.randn(6, 18)), [torch.randn(n, 18) for n in (3, 5)]
        vectors = torch.cat(batches)
    else:
        geometry = ([2, 2], [1, 1], [1, 1], groups)
        rig = Rig(AVERAGE, torch.randn(4, 2, 3, 3), geometry)
        batches = [torch.randn(n, 2 * groups, 7, 6) for n in (3, 5)]
        patches = F.unfold(torch.cat(batches), 3, padding=1, stride=2).mT
        vectors = patches.unflatten(-1, (groups, 18)).flatten(0, 2)

    rig.calibrate(*batches)

    peaks = [vectors[:, a:b].abs().amax(1).mean() for a, b in AVERAGE.blocks]
    torch.testing.assert_close(rig.input, torch.stack(peaks))
    assert bool((rig.adc > 0).all())


def test_average_ranges_leave_out_what_is_not_finite() -> None:
    weight, x = torch.randn(4, 18), torch.randn(5, 18)
    clean, rig = Rig(AVERAGE, weight), Rig(AVERAGE, weight)

    clean.calibrate(x)
    with pytest.warns(UserWarning, match="NaN or infinite at fc"):
        rig.calibrate(torch.cat([x, torch.full((1, 18), torch.nan)]))

    assert torch.equal(clean.input, rig.input)


def test_a_capped_dynamic_range_is_capped_in_calibration() -> None:
    weight, x = torch.randn(4, 18), 5 * torch.randn(40, 18)
    capped = LayerSpec((0, 5, 18), Converter(8, "dynamic", cap=1.5), Converter(8))
    plain = LayerSpec((0, 5, 18), Converter(8, "dynamic"), Converter(8))
    found, right = Rig(capped, weight), Rig(plain, weight)

    found.calibrate(x)
    right.calibrate(x.clamp(-1.5, 1.5))

    assert torch.equal(found.adc, right.adc)
