"""Time: a state of the tiles is a function of their programming and of the time since."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc import CompiledModel, GaussianDevice
from analogc.errors import InputError, SyncError

DAY = 86400.0
DEVICE = GaussianDevice(0.02, drift_nu=0.06, drift_nu_sigma=0.02)
TARGET = analogc.targets.generic_8bit().replace(device=DEVICE)
X = torch.linspace(-1, 1, 30).view(5, 6)


def make(seed: int | None = 0) -> CompiledModel:
    torch.manual_seed(1)
    middle = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()
    return analogc.compile(nn.Sequential(*middle, nn.Linear(8, 4)).eval(), (X,), target=TARGET,
                           seed=seed)  # fmt: skip


def held(compiled: CompiledModel) -> list[Tensor]:
    return [weight.programmed() for weight in compiled.weights.values()]


def at(compiled: CompiledModel, seconds: float) -> list[Tensor]:
    compiled.drift_to(seconds)
    return held(compiled)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


def test_weights_shrink_with_time_and_outputs_follow() -> None:
    compiled = make()
    fresh, y = held(compiled), compiled(X)
    later = at(compiled, 30 * DAY)
    for a, b in zip(later, fresh, strict=True):
        assert 0.3 < (a.norm() / b.norm()).item() < 0.7  # 0.494 at nu = 0.06
    assert not torch.equal(compiled(X), y)


@pytest.mark.parametrize("seed", [0, None])
def test_times_may_come_in_any_order(seed: int | None) -> None:
    compiled = make(seed)
    fresh = held(compiled)
    day, year = at(compiled, DAY), at(compiled, 365 * DAY)
    assert not same(day, year)
    assert same(at(compiled, DAY), day)
    assert same(at(compiled, 0), fresh)
    assert same(at(compiled, 365 * DAY), year)
    assert all(w.times_programmed == 1 for w in compiled.weights.values())


def test_time_does_not_pile_up() -> None:
    one, two = make(), make()
    at(one, DAY)
    assert same(at(one, 2 * DAY), at(two, 2 * DAY))


def test_a_written_weight_is_fresh_and_the_others_stay_old() -> None:
    compiled, other = make(), make()
    first, last = at(compiled, DAY)
    with torch.no_grad():
        compiled.get_parameter("3.weight").mul_(0.5)
        other.get_parameter("3.weight").mul_(0.5)
    compiled(X)
    now = held(compiled)
    assert torch.equal(now[0], first)
    other(X)
    assert torch.equal(now[1], held(other)[1])
    assert not torch.equal(now[1], last / 2)


def test_program_makes_the_tiles_fresh_from_the_present_weights() -> None:
    compiled = make()
    at(compiled, DAY)
    with torch.no_grad():
        compiled.get_parameter("3.weight").mul_(0.5)
    compiled.program(seed=5)
    written = compiled.get_parameter("3.weight")
    assert (held(compiled)[1] - written).norm() < 0.1 * written.norm()


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "file"])
def test_copies_are_as_old_and_age_alike(how: str, tmp_path: Path) -> None:
    compiled = make()
    at(compiled, DAY)
    if how == "deepcopy":
        other = copy.deepcopy(compiled)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(compiled))
    else:
        compiled.save(tmp_path / "m")
        other = analogc.load(tmp_path / "m")
    assert same(held(other), held(compiled))
    assert same(at(other, 9 * DAY), at(compiled, 9 * DAY))
    assert same(at(other, 0), at(compiled, 0))


def test_time_is_nothing_to_devices_that_do_not_drift() -> None:
    model = nn.Linear(6, 4)
    for target in ("ideal", "generic-8bit", "generic-8bit-noisy"):
        compiled = analogc.compile(model, (X,), target=target, seed=0)
        before = held(compiled)
        assert same(at(compiled, DAY), before)


def test_stale_tiles_do_not_age_without_auto_sync() -> None:
    compiled = make()
    compiled.auto_sync = False
    with torch.no_grad():
        compiled.get_parameter("0.weight").mul_(0.5)
    with pytest.raises(SyncError, match="layer '0'"):
        compiled.drift_to(DAY)
    compiled.sync()
    compiled.drift_to(DAY)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "1 day", None, True])
def test_times_that_are_none_are_refused(seconds: object) -> None:
    with pytest.raises(InputError, match="drift_to"):
        make().drift_to(seconds)  # type: ignore[arg-type]


def test_a_target_that_drifts_goes_through_json() -> None:
    assert analogc.Target.from_json(TARGET.to_json()) == TARGET
