"""Devices with conductances, and their time, in a compiled model."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc import Cell, CompiledModel, Converter, GaussianDevice, Target, TileSpec, targets
from analogc.devices import DeviceTimeWarning, PCMDevice
from analogc.errors import AccessError, FormatError, InputError

HOUR, DAY, YEAR = 3600.0, 86400.0, 365 * 86400.0
PUBLISHED = [name for name in targets.names() if targets.get(name).device.units == "uS"]


def build(target: str | Target, seed: int | None = 0, **options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10)
    ).eval()
    x = torch.randn(16, 4, 6, 6)
    return model, analogc.compile(model, (x,), target=target, seed=seed, **options), x


def small(**changes: Any) -> Target:
    """Tiles small enough for several, quiet converters."""
    base = Target(tile=TileSpec(40, 4), dac=Converter(8), adc=Converter(10))
    return base.replace(**changes)


PAIR = small(cell=Cell(mode="pair", g_min=0.5), device=GaussianDevice(0.01, drift_nu=0.05))
PCM = small(cell=Cell(mode="pair"), device=PCMDevice())


def held(compiled: CompiledModel, name: str = "3") -> Tensor:
    return compiled.weights[name].programmed()


# -- presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_device_computes_roughly_the_model(name: str) -> None:
    model, compiled, x = build(name)
    with torch.no_grad():
        wanted, found = model(x), compiled(x)
        error = float((found - wanted).norm() / wanted.norm())
        assert 0.002 < error < 0.6
        compiled.drift_to(HOUR)
        later = compiled(x)
    assert torch.equal(held(compiled), held(compiled))
    assert float((later - wanted).norm() / wanted.norm()) < 0.7


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_cite_what_they_are_made_of(name: str) -> None:
    from analogc.runtime.targets import source, summary

    assert "et al." in source(name) and "as fitted in" in source(name) or name == "pcm-like"
    assert summary(name).endswith(".")
    target = targets.get(name)
    assert target.cell.has_conductances and target.name == name


def test_other_devices_have_no_source_to_show() -> None:
    from analogc.runtime.targets import source

    assert source("ideal") == ""


# -- conductances ---------------------------------------------------------------------------------


def test_conductances_are_those_the_weight_was_decoded_from() -> None:
    model, compiled, _ = build(PAIR.replace(device=GaussianDevice(0.05)))
    for name, layer in (("0", model[0]), ("3", model[3])):
        found = compiled.weights[name].conductances()
        outputs, inputs = layer.weight.shape[0], layer.weight[0].numel()
        assert found.planes == ("+", "-") and found.reference is None
        assert found.values.shape == (2, outputs, inputs)
        scale = layer.weight.detach().flatten(1).abs().amax(1, keepdim=True)
        weight = (found.values[0] - found.values[1]) / 24.5 * scale
        # The tiles hold 15 bits and a sign of each column's largest weight.
        torch.testing.assert_close(weight.view(layer.weight.shape), held(compiled, name),
                                   rtol=0, atol=1e-4 * float(scale.max()))  # fmt: skip
        assert (found.values >= 0).all()


def test_conductances_follow_time_and_writes() -> None:
    model, compiled, _ = build(PAIR)
    weight = compiled.weights["3"]
    fresh = weight.conductances().values
    compiled.drift_to(DAY)
    aged = weight.conductances().values
    torch.testing.assert_close(aged, fresh * ((DAY + 20) / 20) ** -0.05)
    with torch.no_grad():
        model[3].weight.mul_(-1)
    turned = weight.conductances().values
    assert float((turned[0] - fresh[1]).abs().max()) < 0.3 * 25  # noise apart, the sides swap
    assert float((turned[0] - fresh[0]).abs().max()) > 0.9 * 24
    assert weight.times_programmed == 2


def test_conductances_have_the_rules_of_access() -> None:
    _, sealed, _ = build(PAIR, weight_access="sealed")
    with pytest.raises(AccessError, match=r"conductances\(\)"):
        sealed.weights["3"].conductances()
    assert sealed.weights["3"].read().shape == (10, 96)
    _, readonly, _ = build(PAIR, weight_access="readonly")
    assert readonly.weights["3"].conductances().values.shape == (2, 10, 96)
    _, plain, _ = build("generic-8bit")
    with pytest.raises(InputError, match="no conductances") as caught:
        plain.weights["3"].conductances()
    assert "Cell(mode='pair'" in str(caught.value.fix)
    with pytest.raises(InputError, match="no conductances"):
        build("ideal")[1].weights["3"].conductances()


def test_a_read_sees_the_noise_of_devices() -> None:
    _, compiled, _ = build(PCM)
    weight = compiled.weights["3"]
    held_now = compiled._ctx.arrays["3"].programmed
    assert held_now is not None and held_now.read_variance is not None
    wanted = torch.cat(held_now.read_variance[0], 1) * held_now.scale[:, None] ** 2
    reads = torch.stack([weight.read() for _ in range(60)])
    # 60 reads of 960 weights: 1 % at one sigma; ADC steps of 10 bits are a few percent of it.
    assert float((reads.var(0) / wanted).mean()) == pytest.approx(1, abs=0.06)
    assert torch.equal(weight.read(noise=False), weight.read(noise=False))
    steps = 2 * float(weight.get().detach().abs().max()) / 511
    assert float((weight.read(noise=False) - weight.programmed()).abs().max()) < steps


# -- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [PAIR, PCM, "reram-wan2022", "sonos", "reram-cmo"], ids=str)
def test_any_order_of_times_gives_the_same_states(target: Any) -> None:
    _, compiled, _ = build(target)
    states = []
    for seconds in (0, HOUR, DAY, HOUR, 0, DAY):
        compiled.drift_to(seconds)
        states.append(held(compiled))
    for a, b in ((1, 3), (0, 4), (2, 5)):
        assert torch.equal(states[a], states[b])
    assert not torch.equal(states[0], states[1])
    _, straight, _ = build(target)
    straight.drift_to(DAY)
    assert torch.equal(held(straight), states[2])


def test_programming_after_training_writes_the_new_weights() -> None:
    # aihwkit 1.2.0 writes its old reference here: |w - w_initial| = 0.
    model, compiled, x = build(PCM)
    before = model[3].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        (compiled(x) - 3).square().mean().backward()
        optimizer.step()
    moved = model[3].weight.detach() - before
    assert moved.abs().max() > 0.1
    for act in (compiled.program, lambda: compiled.drift_to(HOUR)):
        act()
        off = (held(compiled) - model[3].weight).detach()
        # Drift of an hour leaves at least 0.6 of a weight.
        assert off.norm() < 0.45 * moved.norm()


def test_a_later_time_is_a_larger_error_and_compensation_undoes_its_mean() -> None:
    loss: dict[str, list[float]] = {}
    modes: tuple[Any, ...] = ("none", "global", "column", "exact")
    for mode in modes:
        model, compiled, _ = build(PCM.replace(compensation=mode))
        wanted = model[3].weight.detach()
        loss[mode] = []
        for seconds in (0.0, HOUR, DAY, YEAR):
            compiled.drift_to(seconds)
            loss[mode].append(float((held(compiled) - wanted).norm() / wanted.norm()))
    assert loss["none"] == sorted(loss["none"]) and loss["none"][-1] > 0.3
    for mode in ("global", "column", "exact"):
        assert loss[mode][-1] < 0.6 * loss["none"][-1]
    assert loss["exact"][-1] < loss["column"][-1]
    assert loss["global"][0] == loss["none"][0] == loss["column"][0] > loss["exact"][0]


def test_gains_are_what_a_chip_measures() -> None:
    _, bare, _ = build(PCM)
    fresh = held(bare)
    bare.drift_to(DAY)
    aged = held(bare)
    ones = torch.ones(10)
    assert torch.equal(bare.weights["3"].gain, ones)
    wanted: dict[str, Any] = {
        # Every input line alone at full scale; the scale of a column is no matter of the devices.
        "column": fresh.abs().sum(1) / aged.abs().sum(1),
        "global": None,
        "exact": None,
    }
    scale = build(PCM)[0][3].weight.detach().abs().amax(1, keepdim=True)
    w0, w1 = fresh / scale, aged / scale
    wanted["global"] = w0.abs().mean() / w1.abs().mean() * ones
    target = build(PCM)[0][3].weight.detach() / scale
    wanted["exact"] = (w1 * target).sum(1) / w1.square().sum(1)
    for mode, gain in wanted.items():
        _, compiled, _ = build(PCM.replace(compensation=mode))
        if mode != "exact":
            assert torch.equal(compiled.weights["3"].gain, ones)
        compiled.drift_to(DAY)
        torch.testing.assert_close(compiled.weights["3"].gain, gain, rtol=1e-4, atol=0)
        torch.testing.assert_close(held(compiled), aged * gain[:, None], rtol=1e-3, atol=1e-4)


def test_time_and_gain_are_printed() -> None:
    _, compiled, _ = build(PCM.replace(compensation="global"))
    assert repr(compiled.weights["3"]).endswith("programmed 1 times, 0 s ago)")
    compiled.drift_to(DAY)
    gain = float(compiled.weights["3"].gain[0])
    text = f"programmed 1 times, 86400 s ago, gain {gain:.3f} to {gain:.3f})"
    assert repr(compiled.weights["3"]).endswith(text)
    assert "s ago" not in repr(build("generic-8bit")[1].weights)


def test_a_column_of_zeros_has_gain_one() -> None:
    model = nn.Linear(8, 3)
    with torch.no_grad():
        model.weight[1] = 0
    for mode in ("column", "exact", "global"):
        target = small(device=GaussianDevice(0, drift_nu=0.1), compensation=mode)
        compiled = analogc.compile(model, (torch.randn(4, 8),), target=target, seed=0)
        compiled.drift_to(DAY)
        gain = compiled.weights["weight"].gain
        assert gain.isfinite().all() and (mode == "global" or float(gain[1]) == 1)


@pytest.mark.parametrize(("name", "latest"), [("reram-wan2022", 2 * DAY), ("sonos", 5 * DAY)])
def test_a_time_without_data_is_warned_of(name: str, latest: float) -> None:
    _, compiled, _ = build(name)
    compiled.drift_to(latest)
    then = held(compiled)
    with pytest.warns(DeviceTimeWarning, match="was measured up to"):
        compiled.drift_to(YEAR)
    torch.testing.assert_close(held(compiled), then, rtol=1e-5, atol=1e-6)


# -- faults ---------------------------------------------------------------------------------------

FAULTY = small(cell=Cell(mode="pair", g_min=1.0, stuck_on=0.05, dead_rows=0.05, dead_cols=0.05),
               device=GaussianDevice(0.01, drift_nu=0.05))  # fmt: skip


@pytest.mark.parametrize("seed", [0, None])
def test_writing_again_meets_the_same_faults(seed: int | None, tmp_path: Path) -> None:
    _, compiled, _ = build(FAULTY, seed)

    def broken(model: CompiledModel) -> Tensor:
        values = model.weights["3"].conductances().values
        return (values == 25.0) | (values == 0)

    faults, noise = broken(compiled), held(compiled)
    assert 0.05 < float(faults.float().mean()) < 0.3
    copied = copy.deepcopy(compiled)
    compiled.save(tmp_path / "model.analogc")
    loaded = analogc.load(tmp_path / "model.analogc")
    for model in (compiled, copied, loaded):
        for again in (None, 7):
            model.program(again)
            assert torch.equal(broken(model), faults)
            assert not torch.equal(held(model), noise)
            model.drift_to(DAY)
            assert torch.equal(broken(model), faults)
            weight = model.weights["3"]
            found = weight.conductances().values[:, 0] * weight.get().detach().abs().amax(1)[0] / 24
            torch.testing.assert_close(found[0] - found[1], weight.programmed()[0],
                                       rtol=0, atol=1e-3)  # fmt: skip
    other = build(FAULTY, 1)[1]
    assert not torch.equal(broken(other), faults)


def test_without_a_seed_torch_decides_which_chip_it_is() -> None:
    def chip(start: int) -> Tensor:
        model = nn.Linear(96, 10)
        with torch.no_grad():
            model.weight.copy_(torch.linspace(-1, 1, 960).view(10, 96))
        torch.manual_seed(start)
        compiled = analogc.compile(model, (torch.ones(2, 96),), target=FAULTY)
        return held(compiled, "weight")

    assert torch.equal(chip(3), chip(3)) and not torch.equal(chip(3), chip(4))


# -- copies, files, dtypes, modes -----------------------------------------------------------------

RICH = [
    PCM.replace(compensation="column"),
    FAULTY.replace(cell=Cell(mode="offset", g_min=1.0, devices=2, stuck_off=0.1)),
    PAIR.replace(compensation="exact", weight_clip=analogc.WeightClip("sigma", 2.0)),
]


@pytest.mark.parametrize("target", RICH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_and_files_hold_the_same_state(
    target: Target, dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, 10)).to(dtype).eval()
    x = torch.randn(4, 4, 6, 6, dtype=dtype)
    compiled = analogc.compile(model, (x,), target=target, seed=0)
    compiled.drift_to(DAY)
    compiled.save(tmp_path / "model.analogc")
    twins = [copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled)),
             analogc.load(tmp_path / "model.analogc")]  # fmt: skip
    names = list(compiled.weights)
    want = {name: (held(compiled, name), compiled.weights[name].gain,
                   compiled.weights[name].conductances().values) for name in names}  # fmt: skip
    with torch.no_grad():
        y = compiled(x)
        assert y.dtype == dtype and y.isfinite().all()
        for twin in twins:
            for name, found in want.items():
                weight = twin.weights[name]
                assert torch.equal(weight.programmed(), found[0])
                assert torch.equal(weight.gain, found[1])
                assert torch.equal(weight.conductances().values, found[2])
                assert weight.times_programmed == 1
            assert torch.equal(twin(x), y)
            twin.drift_to(0)
            twin.drift_to(DAY)
            torch.testing.assert_close(held(twin, names[0]), want[names[0]][0])


def test_a_file_without_the_variance_of_reads_is_refused(tmp_path: Path) -> None:
    import safetensors.torch

    from analogc.compiler import archive, archive_read, archive_write

    _, compiled, _ = build(PCM)
    data = archive.to_bytes(compiled)
    tensors = safetensors.torch.load(data)
    manifest, _ = archive_write.describe(compiled)
    lost = {k: v for k, v in tensors.items() if not k.endswith(".3.variance0")}
    assert len(lost) == len(tensors) - 1
    with pytest.raises(FormatError, match="does not fit"):
        archive_read.rebuild(manifest, lost, torch.device("cpu"), ())


def test_a_model_on_the_meta_device_has_its_devices_when_it_is_loaded() -> None:
    with torch.device("meta"):
        model = nn.Linear(96, 10)
        x = torch.empty(4, 96)
    compiled = analogc.compile(model, (x,), target=PCM, seed=0)
    assert compiled(x).is_meta
    state = {"weight": torch.randn(10, 96), "bias": torch.zeros(10)}
    compiled.load_state_dict(state, assign=True)
    compiled.calibrate([torch.randn(4, 96)])
    compiled(torch.randn(4, 96))
    assert compiled.weights["weight"].conductances().values.shape == (2, 10, 96)


@pytest.mark.parametrize("target", [PAIR, small()])
def test_a_weight_that_layers_of_other_groups_share_has_tiles_for_each(
    target: Target, tmp_path: Path
) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 2, 3))

        def forward(self, x: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
            one = nn.functional.conv1d(x, self.weight)
            return one, nn.functional.conv1d(wide, self.weight, groups=3)

    model, inputs = Shared(), (torch.randn(4, 2, 9), torch.randn(4, 6, 9))
    compiled = analogc.compile(model, inputs, target=target, seed=0, check=True)
    assert [(m.array, m.grid, m.groups) for m in compiled.tiles] == [
        ("weight", (1, 2), 1), ("weight~2", (1, 1), 3),
    ]  # fmt: skip
    assert list(compiled.weights) == ["weight", "weight@2"]
    with torch.no_grad():
        model.weight.mul_(2)
        for got, wanted in zip(compiled(*inputs), model(*inputs), strict=True):
            assert float((got - wanted).norm() / wanted.norm()) < 0.05
    compiled.save(tmp_path / "model.analogc")
    loaded = analogc.load(tmp_path / "model.analogc")
    assert torch.equal(held(loaded, "weight@2"), held(compiled, "weight@2"))


def test_training_goes_through_devices() -> None:
    model, compiled, x = build(PCM)
    compiled.train()
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (compiled(x) - 0.5).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_what_is_not_asked_for_is_not_held() -> None:
    # Where only the effective weight differs the native kernel runs as ever, on as much memory.
    _, plain, _ = build(small())
    for target in (PAIR, FAULTY, PAIR.replace(compensation="global")):
        _, compiled, _ = build(target)
        for name, array in compiled._ctx.arrays.items():
            mine, other = array.programmed, plain._ctx.arrays[name].programmed
            assert mine is not None and other is not None
            assert [b.shape for b in mine.buffers] == [b.shape for b in other.buffers]
            assert mine.read_variance is None and mine.slices is None
        assert str(compiled.backend) == str(plain.backend)
