from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analogc import Cell, GaussianDevice, Target, targets
from analogc.devices import PCMDevice, TableDevice
from analogc.errors import FormatError, InputError
from analogc.runtime import programming
from analogc.runtime.noise import NoiseKey
from analogc.runtime.programming import conductances_at, state_at
from analogc.runtime.spec import LayerSpec

KEY, CHIP = NoiseKey(0, "program/fc", 0), NoiseKey(0, "chip/fc", 0)
MODES = ["pair", "pair-two-sided", "offset"]

cells = st.integers(1, 3).flatmap(
    lambda devices: st.builds(
        Cell,
        g_min=st.floats(0, 5),
        g_max=st.floats(6, 200),
        mode=st.sampled_from(MODES),
        devices=st.just(devices),
        significances=st.tuples(*[st.floats(0.25, 8)] * devices),
        fill=st.sampled_from(["equal", "sequential"]),
    )
)


def wide(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def decoded(cell: Cell, weight: Tensor) -> Tensor:
    reference = cell.encode_reference(weight) if cell.mode == "offset" else None
    return cell.decode(cell.encode(weight), reference)


# -- encoding and decoding ------------------------------------------------------------------------


@given(cells, st.integers(0, 999))
def test_what_is_encoded_is_decoded(cell: Cell, seed: int) -> None:
    weight = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    weight[0, :3] = wide([-1, 0, 1])

    planes = cell.encode(weight)

    assert planes.shape == (len(cell.planes), 3, 5)
    assert planes.min() >= cell.g_min - 1e-9 and planes.max() <= cell.g_max + 1e-9
    torch.testing.assert_close(decoded(cell, weight), weight, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("mode", "rows"),
    [
        # CrossSim's formulae with Gmin = 0.2, in units of Gmax = 10 uS, by hand.
        ("pair", [[2.0, 2.0, 2.0, 6.0, 10.0], [10.0, 4.0, 2.0, 2.0, 2.0]]),
        ("pair-two-sided", [[2.0, 5.0, 6.0, 8.0, 10.0], [10.0, 7.0, 6.0, 4.0, 2.0]]),
        ("offset", [[2.0, 5.0, 6.0, 8.0, 10.0]]),
    ],
)
def test_conductances_by_hand(mode: Any, rows: list[list[float]]) -> None:
    cell = Cell(g_min=2.0, g_max=10.0, mode=mode)
    weight = wide([-1, -0.25, 0, 0.5, 1])
    torch.testing.assert_close(cell.encode(weight)[:, 0], wide(*rows))


def test_conductances_of_aihwkit() -> None:
    # SinglePair and NPairConductanceConverter of aihwkit 1.2.0 for these weights.
    weight = wide([-1, -0.6, 0, 0.2, 0.9])
    single = Cell(g_min=1.0, g_max=25.0, mode="pair")
    pairs = Cell(g_min=2.0, g_max=20.0, mode="pair", devices=2, significances=(1.0, 3.0),
                 fill="sequential")  # fmt: skip
    torch.testing.assert_close(
        single.encode(weight)[:, 0], wide([1, 1, 1, 5.8, 22.6], [25, 15.4, 1, 1, 1])
    )
    torch.testing.assert_close(
        pairs.encode(weight)[:, 0],
        wide([2, 2, 2, 16.4, 20], [20, 20, 2, 2, 2], [2, 2, 2, 2, 17.6], [20, 10.4, 2, 2, 2]),
    )
    assert pairs.planes == ("+0", "-0", "+1", "-1")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("levels", [2, 3, 16])
def test_levels_round_to_the_nearest(mode: Any, levels: int) -> None:
    cell = Cell(g_min=1.0, g_max=16.0, mode=mode, levels=levels)
    weight = torch.rand(40, 50, dtype=torch.float64) * 2 - 1
    grid = torch.linspace(1, 16, levels, dtype=torch.float64)

    planes = cell.encode(weight)

    assert (planes[..., None] - grid).abs().amin(-1).max() < 1e-9
    half = (1 if mode == "pair" else 2) / (levels - 1) / 2
    assert (decoded(cell, weight) - weight).abs().max() <= half * (
        2 if mode == "pair-two-sided" else 1
    )


@pytest.mark.parametrize(("significances", "levels"), [((4.0, 1.0), 4), ((1.0, 2.0, 4.0), 2)])
def test_digits_hold_every_multiple_of_the_smallest_step(
    significances: tuple[float, ...], levels: int
) -> None:
    cell = Cell(mode="pair", devices=len(significances), significances=significances,
                fill="digits", levels=levels)  # fmt: skip
    steps = round(sum(significances) * (levels - 1))
    weight = torch.linspace(-1, 1, 2 * steps + 1, dtype=torch.float64)[None]
    torch.testing.assert_close(decoded(cell, weight), weight, rtol=0, atol=1e-12)
    fine = torch.linspace(-1, 1, 4001, dtype=torch.float64)[None]
    assert (decoded(cell, fine) - fine).abs().max() <= 0.5 / steps + 1e-9


# -- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "factor"),
    [
        # One device of a pair is idle at 0: what is below 0 is cut, half of its m^2.
        (Cell(mode="pair"), 1.5),
        (Cell(mode="pair", g_min=5.0), 2 / 0.8**2),
        (Cell(mode="pair-two-sided"), 2.0),
        (Cell(mode="pair-two-sided", devices=4), 0.5),
        (Cell(mode="pair-two-sided", devices=2, significances=(1.0, 3.0)), 2 * 10 / 16),
    ],
)
def test_programming_error_has_the_closed_form(cell: Cell, factor: float) -> None:
    # 4 * 10^5 weights: the second moment is known to 0.4 % (one sigma), the bound is 2 %.
    m = 0.02
    weight = torch.full((2000, 200), 0.6, dtype=torch.float64)
    weight[1000:] *= -1
    spec = LayerSpec((0, 200), device=GaussianDevice(m), cell=cell)

    error = state_at(weight, spec, KEY, CHIP, 0.0).total - weight

    assert float(error.square().mean()) == pytest.approx(factor * m * m, rel=0.02)
    # The rectified idle device has a mean of m / sqrt(2 pi), which pulls weights towards zero.
    pull = m / math.sqrt(2 * math.pi) if cell == Cell(mode="pair") else 0.0
    bias = float((error * weight.sign()).mean())
    assert bias == pytest.approx(-pull, abs=5 * m * math.sqrt(factor / error.numel()))


def test_a_reference_column_errs_for_all_columns_of_its_tile() -> None:
    weight = torch.zeros(6, 4000, dtype=torch.float64)
    cell = Cell(mode="offset", g_min=5.0)
    spec = LayerSpec((0, 4000), device=GaussianDevice(0.02), cell=cell, cols=(0, 3, 6))

    found = conductances_at(weight, spec, KEY, CHIP, 0.0)
    error = state_at(weight, spec, KEY, CHIP, 0.0).total

    assert found.reference is not None and found.reference.shape == (1, 2, 4000)
    assert found.values.shape == (1, 6, 4000) and found.planes == ("+",)
    torch.testing.assert_close(
        error, 2 * (found.values[0] - found.reference[0].repeat_interleave(3, 0)) / 20
    )
    shared = torch.corrcoef(error)
    same = [float(shared[0, 1]), float(shared[4, 5])]
    other = [float(shared[0, 3]), float(shared[2, 5])]
    assert same == pytest.approx([0.5, 0.5], abs=0.08) and other == pytest.approx([0, 0], abs=0.08)


@pytest.mark.parametrize("mode", MODES)
def test_noise_is_independent_across_devices_columns_tiles_and_calls(mode: Any) -> None:
    weight = torch.full((64, 512), 0.3, dtype=torch.float64)
    cell = Cell(mode=mode, g_min=5.0, devices=2)
    spec = LayerSpec((0, 256, 512), device=GaussianDevice(0.02), cell=cell, cols=(0, 32, 64))
    middle = cell.encode(weight)

    def error(key: NoiseKey) -> Tensor:
        return conductances_at(weight, spec, key, CHIP, 0.0).values - middle

    first, second = error(KEY), error(NoiseKey(0, "program/fc", 1))
    other = error(NoiseKey(0, "program/fc2", 0))
    pairs = [(first, second), (first, other), (first[:, :32], first[:, 32:]),
             (first[..., :256], first[..., 256:]), (first[:1], first[1:2]),
             (first[:, :-1], first[:, 1:])]  # fmt: skip
    for a, b in pairs:
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 5 / (
            math.sqrt(a.numel())
        )


@pytest.mark.parametrize("scaling", ["independent", "proportional", "inverse"])
def test_scalings_of_generic_noise(scaling: Any) -> None:
    g = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)[:, None].expand(-1, 100_000)
    device = GaussianDevice(0.01, scaling=scaling, read_noise=0.03)
    factor = {"independent": g**0, "proportional": g, "inverse": 1 / g}[scaling]

    spread = (device.state(g, 0.0, KEY) - g).std(1)

    torch.testing.assert_close(spread, 0.01 * factor[:, 0], rtol=0.02, atol=0)
    torch.testing.assert_close(device.read_sigma(g, g, 0.0), 0.03 * factor)


@pytest.mark.parametrize("mode", ["direct", *MODES])
def test_read_variance_is_that_of_reads(mode: Any) -> None:
    # Reads drawn device by device, decoded one by one.
    table = TableDevice((0.0, 25.0), read_noise=(0.5, 1.5))
    device = GaussianDevice(0.0, read_noise=0.05) if mode == "direct" else table
    cell = Cell() if mode == "direct" else Cell(mode=mode, g_min=4.0, devices=2)
    weight = torch.linspace(-1, 1, 7, dtype=torch.float64)[None]
    spec = LayerSpec((0, 7), device=device, cell=cell, cols=() if mode == "direct" else (0, 1))

    state = state_at(weight, spec, KEY, CHIP, 0.0)

    assert state.variance is not None
    if mode == "direct":
        torch.testing.assert_close(state.variance[0], torch.full_like(weight, 0.0025))
        return
    found = conductances_at(weight, spec, KEY, CHIP, 0.0)

    def drawn(planes: Tensor) -> Tensor:
        sigma = 0.5 + planes / 25
        return planes[:, None] + sigma[:, None] * torch.randn(planes.shape[0], 100_000, 1, 7).to(
            torch.float64
        )

    reads = cell.decode(
        drawn(found.values).flatten(1, 2),
        None if found.reference is None else drawn(found.reference).flatten(1, 2),
    )
    torch.testing.assert_close(state.variance[0][0], reads.var(0), rtol=0.03, atol=0)


def test_large_weights_are_treated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.rand(50, 40, dtype=torch.float64) * 2 - 1
    for mode, device in (("offset", GaussianDevice(0.02, read_noise=0.01)), ("pair", PCMDevice())):
        cell = Cell(mode=mode, g_min=1.0, dead_rows=0.05, dead_cols=0.05)  # type: ignore[arg-type]
        cols = (0, 7, 20, 33, 50)
        spec = LayerSpec((0, 16, 40), device=device, cell=cell, cols=cols)
        whole = [state_at(weight, spec, KEY, CHIP, 100.0) for _ in range(2)]
        assert torch.equal(whole[0].total, whole[1].total)
        monkeypatch.setattr(programming, "_PART", 40 * 20)  # 7 + 13 columns, 13, 17
        state = state_at(weight, spec, KEY, CHIP, 100.0)
        found = conductances_at(weight, spec, KEY, CHIP, 100.0)
        monkeypatch.undo()
        assert found.values.shape == (len(cell.planes), 50, 40)
        reference = None
        if found.reference is not None:
            assert found.reference.shape == (1, 4, 40)
            reference = found.reference.repeat_interleave(torch.tensor([7, 13, 13, 17]), 1)
        torch.testing.assert_close(state.total, cell.decode(found.values, reference))
        assert state.variance is not None and state.variance[0].shape == (50, 40)
        # Noise differs from part to part.
        error = found.values - cell.encode(weight)
        assert float(torch.corrcoef(torch.stack([error[0, 0], error[0, 20]]))[0, 1]) < 0.6


# -- faults ---------------------------------------------------------------------------------------


def test_faults_have_the_stated_rates_and_belong_to_the_chip() -> None:
    weight = torch.rand(400, 600) * 1.6 - 0.8
    cell = Cell(mode="pair", g_min=1.0, stuck_on=0.02, stuck_off=0.03)
    spec = LayerSpec((0, 600), device=GaussianDevice(0.01, drift_nu=0.1), cell=cell)

    def stuck(key: NoiseKey, chip: NoiseKey, seconds: float = 0.0) -> tuple[Tensor, Tensor]:
        values = conductances_at(weight, spec, key, chip, seconds).values
        return values == 25.0, values == 1.0

    on, off = stuck(KEY, CHIP)
    n = on.numel()
    for found, rate in ((on, 0.02), (off, 0.03)):
        assert abs(int(found.sum()) - rate * n) < 5 * math.sqrt(rate * (1 - rate) * n)
    assert not (on & off).any()
    again = stuck(NoiseKey(0, "program/fc", 1), CHIP, 1e6)
    assert torch.equal(on, again[0]) and torch.equal(off, again[1])
    for other in (NoiseKey(1, "chip/fc", 0), NoiseKey(0, "chip/fc2", 0)):
        assert not torch.equal(on, stuck(KEY, other)[0])


def test_a_dead_row_is_one_of_a_tile_and_a_dead_column_too() -> None:
    weight = torch.full((200, 300), 0.5)
    spec = LayerSpec((0, 100, 300), cols=(0, 50, 200), cell=Cell(mode="pair", g_min=1.0,
                     dead_rows=0.1))  # fmt: skip
    held = state_at(weight, spec, KEY, CHIP, 0.0).total
    for columns in (slice(0, 50), slice(50, 200)):
        dead = held[columns] == 0
        assert torch.equal(dead.all(0), dead.any(0)) and 10 < int(dead.all(0).sum()) < 55
    assert not torch.equal(held[0] == 0, held[199] == 0)

    cell = Cell(mode="pair", g_min=1.0, dead_cols=0.1)
    spec = LayerSpec((0, 100, 300), cols=(0, 200), cell=cell)
    values = conductances_at(weight, spec, KEY, CHIP, 0.0).values
    lost = values == 0
    for rows in (slice(0, 100), slice(100, 300)):
        assert torch.equal(lost[..., rows].all(-1), lost[..., rows].any(-1))
        assert 10 < int(lost[..., rows].all(-1).sum()) < 75
    assert not torch.equal(lost[..., 0], lost[..., 299])


def test_a_dead_line_has_no_noise() -> None:
    weight = torch.full((6, 50), 0.5)
    cell = Cell(mode="offset", g_min=1.0, dead_rows=0.5)
    spec = LayerSpec((0, 50), device=GaussianDevice(0.1, read_noise=0.1), cell=cell, cols=(0, 6))
    state = state_at(weight, spec, KEY, CHIP, 0.0)
    assert state.variance is not None
    dead = state.total == 0
    assert torch.equal(state.variance[0] == 0, dead) and 5 < int(dead[0].sum()) < 45


def test_all_devices_may_be_faulty() -> None:
    weight = torch.rand(5, 6) * 2 - 1
    for name, level in (("stuck_on", 25.0), ("stuck_off", 1.0), ("dead_rows", 0.0)):
        cell = Cell(mode="offset", g_min=1.0, **{name: 1.0})  # type: ignore[arg-type]
        spec = LayerSpec((0, 6), cell=cell, cols=(0, 5))
        found = conductances_at(weight, spec, KEY, CHIP, 0.0)
        assert (found.values == level).all()
    assert found.reference is not None and (found.reference == 0).all()


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"g_min": -1.0}, "g_min"),
        ({"g_max": math.inf}, "g_max"),
        ({"g_max": 1.0, "g_min": 2.0}, "must be above"),
        ({"mode": "triple"}, "Cell.mode"),
        ({"fill": "random"}, "Cell.fill"),
        ({"fill": "digits"}, "needs levels"),
        ({"devices": 0}, "devices"),
        ({"devices": True}, "devices"),
        ({"devices": 2, "significances": (1.0, 2.0, 3.0)}, "significances"),
        ({"significances": (-1.0,)}, "significances"),
        ({"significances": 3}, "significances"),
        ({"levels": 1}, "levels"),
        ({"stuck_on": 1.5}, "stuck_on"),
        ({"stuck_on": 0.6, "stuck_off": 0.6}, "at most 1"),
        ({"dead_rows": "x"}, "dead_rows"),
        ({"mode": "direct", "devices": 2}, "no conductances"),
        ({"mode": "direct", "levels": 4}, "no conductances"),
        ({"mode": "direct", "dead_cols": 0.1}, "no conductances"),
    ],
)
def test_cells_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Cell(**{"mode": "pair", **fields})


def test_targets_that_make_no_sense_are_refused() -> None:
    plain = targets.generic_8bit()
    with pytest.raises(InputError, match="the cell has none") as caught:
        plain.replace(device=PCMDevice())
    assert "Cell(mode='pair'" in str(caught.value.fix)
    with pytest.raises(InputError, match="from 0 to 25 uS"):
        plain.replace(device=PCMDevice(), cell=Cell(mode="pair", g_max=30.0))
    with pytest.raises(InputError, match="inverse"):
        plain.replace(device=GaussianDevice(0.1, scaling="inverse"))


@given(cells)
def test_cells_survive_json(cell: Cell) -> None:
    target = Target(cell=cell)
    assert Target.from_json(target.to_json()) == target
    spec = LayerSpec.of(target, (0, 4), (0, 2, 5))
    assert spec.cols == (0, 2, 5) and LayerSpec.of(Target(), (0, 4), (0, 5)).cols == ()
    data = json.loads(target.to_json())
    data["cell"]["colour"] = "red"
    with pytest.raises(FormatError, match="colour"):
        Target.from_dict(data)
