"""Whole models on bit-sliced tiles with the circuits around them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc import Converter, GaussianDevice, Target, TileSpec, targets
from analogc.runtime.periphery import Periphery
from analogc.runtime.slicing import Slicing


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 36, 10),
    ).eval()  # fmt: skip


def inputs() -> Tensor:
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def error(y: Tensor, reference: Tensor) -> float:
    return float((y - reference).norm() / reference.norm())


SMALL = Target(
    tile=TileSpec(64, 64), dac=Converter(8, codes="sign-magnitude"), adc=Converter(8),
    slicing=Slicing((2, 2, 2, 2), "balanced", (1,) * 7),
)  # fmt: skip


@torch.no_grad()
def test_isaac_is_sixteen_bit_fixed_point() -> None:
    digital, x = model(), inputs()
    compiled = analogc.compile(digital, (x,), target="isaac-like", seed=0)
    plain = targets.isaac_like().replace(adc=None, slicing=None)

    y = compiled(x)

    # Converting every sum of digits loses nothing against 16-bit inputs on exact weights.
    fixed = analogc.compile(digital, (x,), target=plain, seed=0)(x)
    assert error(y, fixed) < 1e-4
    assert error(y, digital(x)) < 2e-4
    # Without the complement, sums of more than 255 steps clip.
    slicing = targets.isaac_like().slicing
    assert slicing is not None and slicing.flip


@torch.no_grad()
def test_the_complement_saves_the_adc_a_bit() -> None:
    layer, x = nn.Linear(128, 8, bias=False), torch.ones(1, 128)
    layer.weight.copy_(torch.ones_like(layer.weight))
    target = targets.isaac_like()
    unflipped = target.replace(slicing=Slicing((2,) * 8, "offset", (1,) * 16))

    y = analogc.compile(layer, (x,), target=target, seed=0)(x)
    clipped = analogc.compile(layer, (x,), target=unflipped, seed=0)(x)

    torch.testing.assert_close(y, torch.full_like(y, 128.0), rtol=1e-4, atol=0)
    assert error(clipped, y) > 0.3


@pytest.mark.parametrize("ranges", ["shared", "per-slice", "per-pulse"])
@pytest.mark.parametrize("coding", ["balanced", "offset"])
@torch.no_grad()
def test_ranges_of_slices_are_calibrated(coding: Any, ranges: Any) -> None:
    digital, x = model(), inputs()
    for codes, pulses in (("sign-magnitude", 7), ("symmetric", 8)):
        slicing = Slicing((2, 2, 2, 2), coding, (1,) * pulses, "digital", ranges)
        dac = Converter(8, codes=codes)  # type: ignore[arg-type]
        for per_column in (False, True):
            adc = Converter(10, per_column=per_column)
            target = SMALL.replace(dac=dac, adc=adc, slicing=slicing)
            compiled = analogc.compile(digital, (x,), target=target, seed=0)
            table = dict(compiled._root.named_buffers())
            (last,) = [v for n, v in table.items() if n.endswith("_adc")][-1:]
            inner = {"shared": (), "per-slice": (4, 1), "per-pulse": (4, pulses)}[ranges]
            assert last.shape == (5, *inner, *((10,) if per_column else ()))
            assert bool((last > 0).all())
            assert error(compiled(x), digital(x)) < (0.025 if coding == "balanced" else 0.05)


@torch.no_grad()
def test_ranges_of_slices_help_where_slices_differ() -> None:
    # Few large weights: the first slice is nearly empty, the last one full.
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 8, bias=False), torch.randn(200, 256)
    layer.weight.mul_(0.9)[:, 0] = 1.0
    errors = []
    for ranges in ("shared", "per-slice"):
        slicing = Slicing((4, 4), "balanced", ranges=ranges)
        target = Target(adc=Converter(6), slicing=slicing)
        compiled = analogc.compile(layer, (x,), target=target, seed=0)
        errors.append(error(compiled(x), layer(x)))

    assert errors[1] < 0.8 * errors[0]


@torch.no_grad()
def test_dynamic_input_ranges_go_with_slices() -> None:
    digital, x = model(), inputs()
    target = SMALL.replace(dac=Converter(8, "dynamic", codes="sign-magnitude"))

    compiled = analogc.compile(digital, (x,), target=target, seed=0)

    assert error(compiled(x), digital(x)) < 0.03
    # One layer is as good for small inputs as for large ones.
    layer = nn.Conv2d(3, 4, 3)
    one = analogc.compile(layer, (x,), target=target, seed=0)
    small, large = (error(one(x * s), layer(x * s)) for s in (1e-3, 1e3))
    assert small < 0.1 and large < 0.1


@torch.no_grad()
def test_slices_take_columns_and_the_reports_say_so() -> None:
    x = inputs()
    compiled = analogc.compile(model(), (x,), target=SMALL, seed=0)

    assert [m.columns_per_weight for m in compiled.tiles] == [4, 4, 4]
    linear = compiled.tiles[-1]
    # 64 columns hold 16 weights of 4 slices: 10 outputs fit, 288 rows take 5 tiles.
    assert linear.grid == (5, 1)
    assert linear.utilisation == pytest.approx(288 * 10 * 4 / (5 * 64 * 64))
    text = str(compiled.backend)
    assert "physical" in text and "4 weight slice(s), 7 input pulse(s)" in text


EVERYTHING = SMALL.replace(
    dac=Converter(8, codes="sign-magnitude", rounding="stochastic", gain_error=0.01),
    adc=Converter(8, kind="sar", mismatch=0.02, gain_error=0.01, offset_error=0.005),
    device=GaussianDevice(0.01, read_noise=0.01),
    periphery=Periphery(0.01, 0.05, 0.1),
    output_noise=0.02,
)


@torch.no_grad()
def test_a_file_and_a_copy_keep_slices_noise_and_the_chips_errors(tmp_path: Path) -> None:
    x = inputs()
    compiled = analogc.compile(model(), (x,), target=EVERYTHING, seed=0)
    compiled(x)
    compiled.save(tmp_path / "model.analogc")
    twins = [analogc.load(tmp_path / "model.analogc"), copy.deepcopy(compiled)]

    y = compiled(x)

    assert all(torch.equal(y, twin(x)) for twin in twins)
    assert not torch.equal(y, compiled(x))


def test_noise_follows_the_seed_of_torch_without_one_of_its_own() -> None:
    x = inputs()
    compiled = analogc.compile(model(), (x,), target=EVERYTHING)
    with torch.no_grad():
        compiled(x)
        torch.manual_seed(3)
        first = compiled(x)
        second = compiled(x)
        torch.manual_seed(3)
        assert torch.equal(first, compiled(x))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_learns_through_slices(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    student, teacher = nn.Linear(24, 4).to(dtype), nn.Linear(24, 4).to(dtype)
    x = torch.randn(64, 24, dtype=dtype)
    target = SMALL.replace(adc=Converter(10), device=GaussianDevice(0.0, read_noise=0.005))
    compiled = analogc.compile(student, (x,), target=target, seed=0).train()
    optimizer = torch.optim.Adam(compiled.parameters(), 0.02)
    wanted = teacher(x).detach()

    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (compiled(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("how", ["iterative", "worst-case"])
@pytest.mark.parametrize("make", ["linear", "conv"])
@torch.no_grad()
def test_bound_management_scales_down_what_clips(how: Any, make: str) -> None:
    torch.manual_seed(0)
    layer: nn.Module = nn.Linear(32, 6) if make == "linear" else nn.Conv2d(8, 6, 2, groups=2)
    x = torch.randn(40, 32) if make == "linear" else torch.randn(4, 8, 6, 6)
    dac = Converter(12, "dynamic")
    errors = {}
    for managed in ("none", how):
        adc = Converter(12, 1.0, bound_management=managed)
        target = Target(dac=dac, adc=adc)
        compiled = analogc.compile(layer, (x,), target=target, seed=0)
        errors[managed] = error(compiled(x), layer(x))

    assert errors["none"] > 0.1 and errors[how] < 0.02


def learned(start: float, bits: int = 8, **changes: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(32, 8, bias=False)
    x = torch.randn(200, 32)
    dac = Converter(bits, start, learned=True, **changes)
    target = Target(tile=TileSpec(16, 64), dac=dac, adc=None)
    return analogc.compile(layer, (x,), target=target, seed=0), x


@pytest.mark.parametrize("codes", ["symmetric", "offset"])
def test_gradient_of_a_learned_range_is_that_of_a_clamp(codes: Any) -> None:
    compiled, x = learned(1.5, codes=codes)
    (value,) = compiled.learned_ranges().values()
    grad = torch.randn(200, 8)
    compiled(x).backward(grad)
    weight = dict(compiled.named_parameters())["weight"].detach()

    for r in range(2):
        full = torch.tensor(1.5, requires_grad=True)
        rows = slice(16 * r, 16 * r + 16)
        part = x[:, rows].clamp(-full, full) @ weight[:, rows].T
        (expected,) = torch.autograd.grad(part, full, grad)
        assert float(value.grad[r]) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("start", [0.3, 20.0])
def test_a_learned_range_finds_where_it_belongs(start: float) -> None:
    compiled, x = learned(start, 5)
    (value,) = compiled.learned_ranges().values()
    wanted = (x @ dict(compiled.named_parameters())["weight"].T).detach()
    optimizer = torch.optim.SGD([value], 0.3 if start < 1 else 100.0)
    before = error(compiled(x).detach(), wanted)

    for _ in range(60):
        optimizer.zero_grad()
        (compiled(x) - wanted).square().mean().backward()
        optimizer.step()

    assert bool((value > 1).all() and (value < 5).all())
    assert error(compiled(x).detach(), wanted) < 0.5 * before


def test_learned_ranges_are_saved_and_no_part_of_the_state_dict(tmp_path: Path) -> None:
    compiled, x = learned(1.5)
    (value,) = compiled.learned_ranges().values()
    with torch.no_grad():
        value.fill_(2.5)
    assert list(compiled.state_dict()) == ["weight"]
    assert all(p is not value for p in compiled.parameters())

    compiled.save(tmp_path / "model.analogc")
    loaded = analogc.load(tmp_path / "model.analogc")

    (again,) = loaded.learned_ranges().values()
    assert again.requires_grad and torch.equal(again, value)
    (copied,) = copy.deepcopy(compiled).learned_ranges().values()
    assert copied.requires_grad and copied is not value
    assert torch.equal(loaded(x), compiled(x))
    (moved,) = compiled.double().learned_ranges().values()
    assert moved.is_leaf and moved.requires_grad


def test_frozen_weights_still_train_a_range() -> None:
    compiled, x = learned(0.5)
    (value,) = compiled.learned_ranges().values()
    for parameter in compiled.parameters():
        parameter.requires_grad_(False)

    compiled(x).sum().backward()

    assert value.grad is not None and bool((value.grad != 0).all())


@torch.no_grad()
def test_plain_targets_stay_on_the_plain_kernels() -> None:
    x = inputs()
    for name in ("generic-8bit", "generic-8bit-noisy"):
        compiled = analogc.compile(model(), (x,), target=name, seed=0)
        assert "physical" not in str(compiled.backend)
    # Another name for the same values costs nothing, either.
    renamed = Target(dac=Converter(8, codes="sign-magnitude"))
    assert "physical" not in str(analogc.compile(model(), (x,), target=renamed, seed=0).backend)


@torch.no_grad()
def test_a_sliced_weight_is_read_as_it_was_written() -> None:
    x = inputs()
    compiled = analogc.compile(model(), (x,), target=SMALL.replace(adc=Converter(12)), seed=0)
    compiled(x)
    wanted = dict(compiled.named_parameters())["5.weight"]

    for found in (compiled.weights["5"].read(), compiled.weights["5"].programmed()):
        # Half a step of 8-bit magnitudes, by column, and half a step of the ADC.
        step = wanted.abs().amax(1, keepdim=True)
        assert bool(((found - wanted).abs() <= step * (0.5 / 255 + 0.6 / 2047)).all())


@torch.no_grad()
def test_slices_are_held_once() -> None:
    layer, x = nn.Linear(200, 30), torch.randn(5, 200)
    target = Target(slicing=analogc.Slicing((2, 2, 2, 2)))
    compiled = analogc.compile(layer, (x,), target=target, seed=0)
    compiled(x)
    (held,) = compiled._contents().values()
    assert held.slices is not None

    memory = {part.untyped_storage().data_ptr() for slice_ in held.slices for part in slice_}

    assert memory == {held.prepared.weights[0].untyped_storage().data_ptr()}  # type: ignore[attr-defined]


ADCS = [
    Converter(8),
    Converter(8, kind="sar", mismatch=0.02, shared_by=3),
    Converter(8, kind="ramp", mismatch=0.02),
    Converter(8, bound_management="iterative"),
    Converter(8, bound_management="worst-case"),
]
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda device: nn.Linear(70, 9, device=device), (3, 70)),
    "conv": (lambda device: nn.Conv2d(4, 6, 3, groups=2, padding=1, device=device), (2, 4, 5, 5)),
    "conv1d": (lambda device: nn.Conv1d(4, 6, 3, device=device), (2, 4, 9)),
}


@pytest.mark.parametrize("adc", ADCS, ids=lambda a: f"{a.kind}-{a.bound_management}")
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_dtypes_empty_batches_transforms_and_exports_work(name: str, adc: Converter) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make("cpu"), torch.randn(shape)
    device = GaussianDevice(0.005, read_noise=0.002)
    target = SMALL.replace(adc=adc, device=device)
    compiled = analogc.compile(layer, (x,), target=target, seed=0)
    wanted = layer(x)

    for dtype in (torch.float16, torch.bfloat16):
        half = compiled(x.to(dtype))
        assert half.dtype is dtype and error(half.float(), wanted) < 0.1
    mapped = torch.func.vmap(compiled)(x.expand(2, *shape))
    assert all(error(one, wanted) < 0.1 for one in mapped)
    exported = torch.export.export(compiled, (x,)).module()(x)
    assert error(exported, wanted) < 0.1
    (node,) = [n for n in compiled.graph.nodes if "analogc" in str(n.target)]
    operands = [
        _fetch(compiled._root, a) if getattr(a, "op", "") == "get_attr" else a for a in node.args
    ]
    operands[0] = x[:0]
    assert node.target(*operands).shape == (0, *wanted.shape[1:])
    operands[0] = x[0]
    assert error(node.target(*operands), wanted[0]) < 0.1


def _fetch(root: nn.Module, node: Any) -> Any:
    home, _, name = str(node.target).rpartition(".")
    return getattr(root.get_submodule(home), name)


@pytest.mark.parametrize("adc", ADCS, ids=lambda a: f"{a.kind}-{a.bound_management}")
@pytest.mark.parametrize("name", ["linear", "conv"])
@torch.no_grad()
def test_a_model_on_the_meta_device_gets_its_weights_later(name: str, adc: Converter) -> None:
    make, shape = LAYERS[name]
    blank = torch.randn(shape, device="meta")
    target = EVERYTHING.replace(adc=adc)
    compiled = analogc.compile(make("meta"), (blank,), target=target, seed=0)
    assert compiled(blank).is_meta

    compiled.to_empty(device="cpu")
    for parameter in compiled.parameters():
        parameter.normal_()
    compiled.calibrate([torch.randn(shape)])

    assert bool(compiled(torch.randn(shape)).isfinite().all())
