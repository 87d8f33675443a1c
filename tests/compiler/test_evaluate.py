"""Measurements over seeds and times: the numbers, the table, and that nothing is left behind."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc import CompiledModel, EvaluationResult, GaussianDevice
from analogc.compiler.evaluation import EvaluationRow, student_t, time_text
from analogc.errors import InputError, SyncError

HOUR, DAY, YEAR = 3600.0, 86400.0, 365 * 86400.0
DEVICE = GaussianDevice(0.02, drift_nu=0.06, drift_nu_sigma=0.02)
NOISY = analogc.targets.generic_8bit().replace(device=DEVICE, output_noise=0.05)
X = torch.linspace(-1, 1, 48).view(8, 6)


def make(target: analogc.Target = NOISY, seed: int | None = 0, **options: Any) -> CompiledModel:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()
    return analogc.compile(model, (X,), target=target, seed=seed, **options)


def measure(model: CompiledModel) -> dict[str, float]:
    y = model(X)
    return {"mean": float(y.mean()), "norm": float(y.norm())}


def total(model: CompiledModel) -> Tensor:
    out: Tensor = model(X).sum()
    return out


def cells(result: EvaluationResult) -> dict[tuple[str, int, float, str], float]:
    return {(r.variant, r.seed, r.time, r.metric): r.value for r in result.rows}


# -- numbers --------------------------------------------------------------------------------------


def test_a_cell_is_what_one_gets_by_hand() -> None:
    target = NOISY.replace(output_noise=0.0)
    result = analogc.evaluate(make(target), measure, times=(0, DAY), seeds=(5, 6))
    by_hand = make(target)
    for seed in (5, 6):
        by_hand.program(seed)
        for time in (0.0, DAY):
            by_hand.drift_to(time)
            with torch.no_grad():
                want = measure(by_hand)
            got = {r.metric: r.value for r in result.rows if (r.seed, r.time) == (seed, time)}
            assert got == want


def test_read_noise_at_time_0_is_that_of_a_fresh_model() -> None:
    result = analogc.evaluate(make(), total, seeds=(7,))
    fresh = make()
    fresh.program(7)
    with torch.no_grad():
        assert result.rows[0].value == float(total(fresh))


@pytest.mark.parametrize("seed", [0, None])
def test_the_table_is_repeatable_in_any_order(seed: int | None) -> None:
    model = make(seed=seed)
    want = cells(analogc.evaluate(model, measure, times=(0, HOUR, DAY), seeds=3))
    model(X)
    torch.manual_seed(99)
    again = cells(analogc.evaluate(model, measure, times=(DAY, 0, HOUR), seeds=(2, 0, 1)))
    assert again == want
    some = cells(analogc.evaluate(model, measure, times=[HOUR], seeds=[1]))
    assert some.items() <= want.items()
    assert len(set(want.values())) == len(want)  # each cell has noise of its own


def test_random_numbers_of_the_measurement_are_of_the_seed() -> None:
    result = analogc.evaluate(make(), lambda _: torch.rand(()), times=(0, DAY), seeds=2)
    by_seed = {(r.seed, r.time): r.value for r in result.rows}
    assert by_seed[0, 0.0] == by_seed[0, DAY] != by_seed[1, 0.0]


def test_drift_is_the_power_law() -> None:
    device = GaussianDevice(0.0, drift_nu=0.06, t0=20.0)
    target = analogc.Target(dac=None, adc=None, device=device)
    model = analogc.compile(nn.Linear(6, 8, bias=False), (X,), target=target, seed=0)
    with torch.no_grad():
        model.drift_to(0)
        fresh = float(model(X).norm())
    times = (0.0, 20.0, HOUR, DAY, 30 * DAY, YEAR)
    result = analogc.evaluate(model, lambda m: m(X).norm() / fresh, times=times, seeds=3)
    for time in times:
        found = result.at(time)
        assert found.mean == pytest.approx(((time + 20) / 20) ** -0.06, rel=1e-5)
        assert found.std == pytest.approx(0, abs=1e-6)
    rounded = [round(result.at(t).mean, 3) for t in times[2:]]
    assert rounded == [0.732, 0.605, 0.493, 0.425]


def test_programming_noise_has_its_mean_and_its_spread() -> None:
    device = GaussianDevice(0.1)
    target = analogc.Target(dac=None, adc=None, device=device)
    layer = nn.Linear(64, 32, bias=False)
    model = analogc.compile(layer, (torch.randn(4, 64),), target=target, seed=0)
    peak = layer.weight.detach().abs().amax(1, keepdim=True)

    def errors(m: CompiledModel) -> dict[str, Tensor]:
        error = (m.weights["weight"].programmed() - layer.weight) / peak
        return {"mean": error.mean(), "std": error.std()}

    result = analogc.evaluate(model, errors, seeds=20)
    mean, std = result.at(0, "mean"), result.at(0, "std")
    # Of 20 draws of 2048 numbers each; 4 standard errors.
    assert abs(mean.mean) < 4 * 0.1 / math.sqrt(20 * 2048)
    assert mean.std == pytest.approx(0.1 / math.sqrt(2048), rel=4 / math.sqrt(2 * 19))
    assert std.mean == pytest.approx(0.1, rel=4 / math.sqrt(2 * 20 * 2048))
    assert mean.low < mean.mean < mean.high


def test_variants_meet_the_same_seeds() -> None:
    device = GaussianDevice(0.02, drift_nu=0.06)
    column = analogc.Target(dac=None, adc=None, device=device)
    pair = {"column": make(column), "tensor": make(column.replace(weight_scale="tensor"))}
    result = analogc.evaluate(pair, measure, times=(0, DAY), seeds=2)
    assert result.variants == ("column", "tensor") and len(result.rows) == 2 * 2 * 2 * 2
    alone = analogc.evaluate(pair["tensor"], measure, times=(0, DAY), seeds=2)
    assert [r.value for r in alone.rows] == [r.value for r in result.rows if r.variant == "tensor"]
    twice = analogc.evaluate({"a": pair["column"], "b": pair["column"]}, measure, seeds=2)
    assert [r.value for r in twice.rows[:4]] == [r.value for r in twice.rows[4:]]


def test_progress_is_shown_cell_by_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str]] = []

    def bar(items: list[Any], what: str) -> list[Any]:
        seen.append((len(items), what))
        return items

    monkeypatch.setattr("analogc.compiler.evaluate.with_progress", bar)
    analogc.evaluate({"a": make(), "b": make()}, total, times=(0, DAY), seeds=3)
    assert seen == [(2 * 2 * 3, "evaluating")]


# -- nothing is left behind -----------------------------------------------------------------------


def state(model: CompiledModel) -> list[Any]:
    arrays = model._ctx.arrays.values()
    return [
        model.seed, model.training,
        *[(a.programmed, a.times_programmed, a.calls) for a in arrays],
        *[value.clone() for value in (*model.parameters(), *model.buffers())],
    ]  # fmt: skip


def same(a: list[Any], b: list[Any]) -> bool:
    def one(x: Any, y: Any) -> bool:
        return torch.equal(x, y) if isinstance(x, Tensor) else bool(x == y)

    return all(one(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("seed", [0, None])
def test_the_model_is_as_before(seed: int | None) -> None:
    model, twin = make(seed=seed), make(seed=seed)
    for each in (model, twin):
        torch.manual_seed(3)
        each.program()
        each.drift_to(DAY)
        each(X)
    torch.manual_seed(4)
    before, rng = state(model), torch.get_rng_state()
    analogc.evaluate(model, measure, times=(0, HOUR), seeds=2)
    assert same(state(model), before)
    assert torch.equal(torch.get_rng_state(), rng)
    torch.manual_seed(4)
    after = model(X)
    torch.manual_seed(4)
    assert torch.equal(after, twin(X))
    assert [w.times_programmed for w in model.weights.values()] == [
        w.times_programmed for w in twin.weights.values()
    ]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_the_model_is_as_before_an_error(stop: type[BaseException]) -> None:
    model = make()
    before = state(model)

    def fail(m: CompiledModel) -> float:
        m.get_buffer("1.running_mean").add_(1)
        raise stop("no")

    with pytest.raises(stop):
        analogc.evaluate(model, fail, times=(DAY,))
    assert same(state(model), before)
    assert torch.equal(model(X), make()(X))


def test_statistics_that_a_measurement_moves_are_restored() -> None:
    model = make()
    model.train()
    before = state(model)
    result = analogc.evaluate(model, measure, seeds=(0, 1))
    assert same(state(model), before)
    assert cells(analogc.evaluate(model, measure, seeds=(1,))).items() <= cells(result).items()


def test_a_stale_weight_is_programmed_for_the_measurement_and_stale_after_it() -> None:
    model = make()
    model.auto_sync = False
    with torch.no_grad():
        model.get_parameter("3.weight").mul_(2)
    fresh = analogc.evaluate(model, total, seeds=1).rows[0].value
    with pytest.raises(SyncError):
        model(X)
    assert model.sync() == ["3"]
    model.program(0)
    with torch.no_grad():
        assert float(total(model)) == fresh


def test_a_measurement_that_changes_weights_is_refused() -> None:
    model = make()

    def train(m: CompiledModel) -> float:
        m.get_parameter("0.weight").mul_(0.5)
        return 0.0

    with pytest.raises(InputError, match="changed the weights") as failure:
        analogc.evaluate(model, train, seeds=(3,), times=(HOUR,))
    assert failure.value.__notes__ == ["while evaluating seed 3, 1 h (3600 s)"]
    other = make()
    with torch.no_grad():
        other.get_parameter("0.weight").mul_(0.5)
    got = [w.programmed() for w in model.weights.values()]  # follows what was written
    for a, b in zip(got, other.weights.values(), strict=True):
        assert a.shape == b.programmed().shape
    assert model.weights["0"].times_programmed == 2

    def work_on_copy(m: CompiledModel) -> Tensor:
        return total(copy.deepcopy(m))

    analogc.evaluate(model, work_on_copy, seeds=1)


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.left, self.right = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        z: Tensor = self.left(y) if x.mean() > 0 else self.right(y)
        return z


def test_a_branch_that_is_captured_meanwhile_has_drifted_too() -> None:
    torch.manual_seed(0)
    device = GaussianDevice(0.0, drift_nu=0.06)
    target = analogc.Target(dac=None, adc=None, device=device)
    router = Router().eval()
    model = analogc.compile(router, (X.abs(),), target=target, capture="dynamo", seed=0)
    assert len(model.graphs) == 2
    below = -X.abs()
    (row,) = analogc.evaluate(model, lambda m: m(below).norm(), times=(DAY,), seeds=1).rows
    factor = ((DAY + 20) / 20) ** -0.06
    with torch.no_grad():
        enter = factor * (below @ router.enter.weight.T) + router.enter.bias
        want = factor * (enter @ router.right.weight.T) + router.right.bias
        assert row.value == pytest.approx(float(want.norm()), rel=1e-5)
        torch.testing.assert_close(model(below), router(below))  # fresh again


def test_an_ideal_model_has_no_spread() -> None:
    result = analogc.evaluate(make(analogc.targets.ideal()), measure, times=(0, DAY), seeds=3)
    assert {s.std for s in result.statistics} == {0.0}


# -- the table ------------------------------------------------------------------------------------


def table(values: dict[float, list[float]], variant: str = "") -> EvaluationResult:
    return EvaluationResult(
        tuple(
            EvaluationRow(variant, seed, time, "accuracy", value)
            for time, column in values.items()
            for seed, value in enumerate(column)
        )
    )


def test_statistics_of_a_column() -> None:
    found = table({0.0: [1.0, 2.0, 4.0, 5.0]}).at(0)
    assert (found.count, found.mean) == (4, 3.0)
    assert found.std == pytest.approx(np.std([1, 2, 4, 5], ddof=1))
    half = 3.182446 * found.std / 2  # t of 3 degrees of freedom, from a printed table
    assert found.low == pytest.approx(3 - half, abs=1e-5)
    assert found.high == pytest.approx(3 + half, abs=1e-5)
    single = table({0.0: [1.5]}).at(0)
    assert single.mean == 1.5 and math.isnan(single.std) and str(single) == "1.5"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0], "1"), ([0.123456], "0.1235"), ([1.0, 1.0], "1 ± 0"),
        ([0.82, 0.84], "0.830 ± 0.014"), ([100.0, 400.0], "250 ± 212"),
        ([1e9, 3e9], "2e+09 ± 1.4e+09"), ([1e-12, 3e-12], "2e-12 ± 1.4e-12"),
        ([math.nan, 1.0], "nan"), ([math.inf, 1.0], "inf"),
    ],
)  # fmt: skip
def test_a_statistic_shows_two_figures_of_its_deviation(values: list[float], text: str) -> None:
    assert str(table({0.0: values}).at(0)) == text


@pytest.mark.parametrize(
    ("confidence", "freedom", "t"),
    [
        (0.95, 1, 12.7062), (0.95, 2, 4.30265), (0.95, 4, 2.77645), (0.95, 9, 2.26216),
        (0.95, 30, 2.04227), (0.95, 120, 1.97993), (0.99, 1, 63.6567), (0.99, 7, 3.49948),
        (0.5, 5, 0.726687), (0.8, 10, 1.37218),
    ],
)  # fmt: skip
def test_quantiles_of_students_t_are_those_of_the_tables(
    confidence: float, freedom: int, t: float
) -> None:
    assert student_t(confidence, freedom) == pytest.approx(t, rel=2e-5)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    draw = np.random.RandomState(0)
    hits = 0
    for _ in range(2000):
        found = table({0.0: draw.normal(size=5).tolist()}).at(0)
        hits += found.low <= 0 <= found.high
    assert hits / 2000 == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))


def test_forms_of_the_table(tmp_path: Path) -> None:
    result = analogc.evaluate(
        {"a": make(), "b": make()}, measure, times=(DAY, 0, 90), seeds=2, confidence=0.9
    )
    text = result.to_csv(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["value"]) for row in rows] == [row.value for row in result.rows]
    data = json.loads(json.dumps(result.to_dict()))
    assert data["rows"][0] == {
        "variant": "a", "seed": 0, "time": DAY, "metric": "mean", "value": result.rows[0].value,
    }  # fmt: skip
    assert data["confidence"] == 0.9 and len(data["statistics"]) == 2 * 2 * 3
    lines = str(result).splitlines()
    assert lines[0].split() == ["variant", "metric", "0", "s", "90", "s", "1", "d"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["a", "mean"], ["a", "norm"], ["b", "mean"], ["b", "norm"],
    ]  # fmt: skip
    assert " ± " in lines[1]
    rich = pytest.importorskip("rich.console")
    out = io.StringIO()
    rich.Console(file=out, width=120).print(result)
    assert "seeds: 2" in out.getvalue()


def test_one_model_needs_no_column_for_its_name() -> None:
    assert str(table({0.0: [1.0, 2.0]})).splitlines()[0].split() == ["metric", "0", "s"]


def test_dataframe_is_tidy() -> None:
    pandas = pytest.importorskip("pandas")
    result = analogc.evaluate(make(), measure, times=(0, DAY), seeds=3)
    frame = result.dataframe()
    assert list(frame.columns) == ["variant", "seed", "time", "metric", "value"]
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 12
    means = frame.groupby(["metric", "time"])["value"].mean()
    for found in result.statistics:
        assert means[found.metric, found.time] == pytest.approx(found.mean)


@pytest.mark.parametrize("times", [(0, HOUR, YEAR), (20, DAY), (0,)])
def test_plot_shows_the_means_and_writes_a_file(times: tuple[float, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pair = {"a": make(), "b": make()}
    result = analogc.evaluate(pair, measure, times=times, seeds=3)
    figure = result.plot(tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().lstrip().startswith("<?xml")
    assert [axes.get_ylabel() for axes in figure.axes] == ["mean", "norm"]
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines[:2]] == ["a", "b"]
    assert np.asarray(lines[0].get_ydata()).tolist() == [
        result.at(t, "mean", "a").mean for t in sorted(times)
    ]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == [
        time_text(t) for t in sorted(times)
    ]
    assert len(result.plot(metric="norm").axes) == 1
    with pytest.raises(InputError, match="no metric 'loss'"):
        result.plot(metric="loss")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (20, "20 s"), (90, "90 s"), (120, "2 min"), (HOUR, "1 h"), (DAY, "1 d"),
     (30 * DAY, "30 d"), (YEAR, "1 y"), (0.5, "0.5 s"), (1.5 * HOUR, "90 min")],
)  # fmt: skip
def test_times_are_written_in_their_unit(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_a_cell_that_is_not_there_is_named() -> None:
    result = table({0.0: [1.0], 60.0: [2.0]})
    with pytest.raises(InputError, match="nothing was measured at 5 s"):
        result.at(5)
    with pytest.raises(InputError, match="no metric 'loss'"):
        result.at(0, "loss")
    both = EvaluationResult((*table({0.0: [1.0]}, "a").rows, *table({0.0: [1.0]}, "b").rows))
    with pytest.raises(InputError, match="several variants"):
        both.at(0)


# -- faults ---------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"times": (0,), "seeds": 1}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "time below 0": ({"times": (-1,)}, "times are numbers >= 0"),
    "time NaN": ({"times": (math.nan,)}, "times are numbers >= 0"),
    "time is text": ({"times": "1h"}, "times are numbers >= 0"),
    "times twice": ({"times": (0, 0.0)}, "times are given twice"),
    "no times": ({"times": ()}, "there are no times"),
    "no seeds": ({"seeds": 0}, "there are no seeds"),
    "seeds twice": ({"seeds": (1, 1)}, "seeds are given twice"),
    "seed is no int": ({"seeds": (0.5,)}, "seeds are whole numbers"),
    "seed below 0": ({"seeds": (-1,)}, "seeds are whole numbers"),
    "confidence": ({"confidence": 95}, "confidence must be between 0 and 1"),
    "no function": ({"fn": 3}, "takes a function"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_arguments_are_refused(fault: str) -> None:
    options, message = FAULTS[fault]
    with pytest.raises(InputError, match=message):
        analogc.evaluate(make(), **{"fn": total, **GOOD, **options})


def test_what_is_no_model_is_refused() -> None:
    for wrong in (nn.Linear(2, 2), {"a": nn.Linear(2, 2)}, {}, {3: make()}):
        with pytest.raises(InputError, match=r"evaluate\(\)"):
            analogc.evaluate(wrong, total)  # type: ignore[arg-type]


RESULTS: dict[str, tuple[Callable[[CompiledModel], Any], str]] = {
    "text": (lambda m: "good", "must return a number"),
    "nothing": (lambda m: None, "must return a number"),
    "tensor": (lambda m: torch.ones(2), "must return a number"),
    "array": (lambda m: np.ones(2), "must return a number"),
    "complex": (lambda m: 1j, "must return a number"),
    "name": (lambda m: {1: 2.0}, "must return a number"),
    "in a dict": (lambda m: {"a": "b"}, "got 'b' for 'a'"),
    "empty": (lambda m: {}, "returned no number"),
}


@pytest.mark.parametrize("what", RESULTS)
def test_results_that_are_no_numbers_are_refused_with_their_place(what: str) -> None:
    fn, message = RESULTS[what]
    with pytest.raises(InputError, match=message) as failure:
        analogc.evaluate({"mine": make()}, fn, times=(HOUR,), seeds=(4,))
    assert failure.value.where == "'mine', seed 4, 1 h (3600 s)"


def test_results_of_any_kind_of_number_are_taken() -> None:
    def all_kinds(_: CompiledModel) -> dict[str, Any]:
        return {"int": 2, "bool": True, "tensor": torch.tensor([2]), "numpy": np.float32(2),
                "array": np.array([2]), "nan": math.nan}  # fmt: skip

    rows = analogc.evaluate(make(), all_kinds, seeds=1).rows
    assert [row.value for row in rows[:5]] == [2, 1, 2, 2, 2] and math.isnan(rows[5].value)


def test_other_metrics_than_before_are_refused() -> None:
    names = iter("ab")
    with pytest.raises(InputError, match="returned b; before: a") as failure:
        analogc.evaluate(make(), lambda m: {next(names): 1.0}, seeds=2)
    assert failure.value.where == "seed 1, 0 s"


def test_an_error_of_the_measurement_names_seed_and_time() -> None:
    def fail(_: CompiledModel) -> float:
        raise ZeroDivisionError("oops")

    with pytest.raises(ZeroDivisionError) as failure:
        analogc.evaluate(make(), fail, times=(DAY,), seeds=(8,))
    assert failure.value.__notes__ == ["while evaluating seed 8, 1 d (86400 s)"]
