from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analogc import Calibration
from analogc.runtime.converters import to_codes
from analogc.runtime.histogram import Histogram

CPU = torch.device("cpu")
Method = Literal["mse", "percentile", "absmax"]


def choose(
    batches: list[Tensor], method: Method, levels: int = 127, percentile: float = 99.99
) -> list[float]:
    """Range of each series, from batches ``[series, M]``."""
    histogram = Histogram(len(batches[0]), CPU)
    for batch in batches:
        histogram.add(batch)
    found: list[float] = histogram.choose(Calibration(method, percentile), levels).tolist()
    return found


def draw(kind: str, count: int = 40_000) -> Tensor:
    rng = np.random.default_rng(1)
    samples: dict[str, Callable[[], Any]] = {
        "gaussian": lambda: rng.normal(size=count),
        "uniform": lambda: rng.uniform(-3, 3, size=count),
        "laplace": lambda: rng.laplace(size=count),
        "student": lambda: rng.standard_t(3, size=count),
        "relu": lambda: np.maximum(rng.normal(size=count), 0),
        "sparse": lambda: rng.normal(size=count) * (rng.random(count) < 0.02),
        "two": lambda: rng.choice([-0.7, 0.7], size=count),
    }
    return torch.from_numpy(samples[kind]())


def error(x: Tensor, full: float, levels: int) -> float:
    """Mean squared error of the converter itself."""
    back = to_codes(x, torch.tensor(full, dtype=x.dtype), levels) * (full / levels)
    return float((back - x).square().mean())


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("kind", ["gaussian", "uniform", "laplace", "student", "relu", "sparse"])
def test_mse_range_is_close_to_the_best_of_a_search(kind: str, bits: int) -> None:
    x, levels = draw(kind), 2 ** (bits - 1) - 1
    peak = float(x.abs().max())

    (full,) = choose([x[None]], "mse", levels)

    best = min(error(x, float(c), levels) for c in np.geomspace(peak / 300, peak, 400))
    assert error(x, full, levels) <= best * 1.06


def test_mse_range_clips_heavy_tails_and_spares_flat_ones() -> None:
    (heavy,) = choose([draw("student")[None]], "mse", 7)
    (flat,) = choose([draw("uniform")[None]], "mse", 7)

    assert heavy < 0.3 * float(draw("student").abs().max())
    assert flat > 0.9 * float(draw("uniform").abs().max())


@pytest.mark.parametrize("percentile", [50, 90, 99, 99.9, 100])
@pytest.mark.parametrize("kind", ["gaussian", "uniform", "student"])
def test_percentile_is_that_of_numpy_to_one_bin(kind: str, percentile: float) -> None:
    x = draw(kind)

    (found,) = choose([x[None]], "percentile", percentile=percentile)

    exact = np.percentile(x.abs().numpy(), percentile)
    assert abs(found - exact) <= float(x.abs().max()) / 2048 * 1.01


@pytest.mark.parametrize("percentile", [90.0, 99.9])
def test_percentile_is_that_of_numpy_after_the_bins_have_grown(percentile: float) -> None:
    batches = [draw("gaussian")[None, i::7] * (i + 1) for i in range(7)]

    (found,) = choose(batches, "percentile", percentile=percentile)

    whole = torch.cat(batches, 1).abs()
    # Bins double in width, so the last limit is less than twice the peak.
    assert abs(found - np.percentile(whole.numpy(), percentile)) <= 2 * float(whole.max()) / 2048


@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8), min_size=1, max_size=4
    )
)
def test_absmax_is_exact_in_any_order(batches: list[list[float]]) -> None:
    peak = max(abs(value) for batch in batches for value in batch)

    for order in itertools.permutations(batches):
        assert choose([torch.tensor([b], dtype=torch.float64) for b in order], "absmax") == [peak]


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_order_of_batches_hardly_matters(method: Method) -> None:
    batches = [draw("laplace")[None, i::5] * 2.0**i for i in range(5)]

    ways = [
        choose([batches[i] for i in order], method)[0] for order in itertools.permutations(range(5))
    ]

    assert max(ways) / min(ways) < 1.03


@pytest.mark.parametrize("method", ["mse", "percentile", "absmax"])
def test_series_do_not_mix(method: Method) -> None:
    rows = [draw("gaussian"), 100 * draw("uniform"), draw("two")]

    together = choose([torch.stack(rows)], method)

    assert together == [choose([row[None]], method)[0] for row in rows]


@pytest.mark.parametrize("method", ["mse", "percentile", "absmax"])
def test_a_range_is_never_beyond_the_peak_and_zero_only_for_zeros(method: Method) -> None:
    x = torch.stack([draw("sparse"), torch.zeros(40_000, dtype=torch.float64)])

    alive, dead = choose([x], method, 7)

    assert 0 < alive <= float(x.abs().max())
    assert dead == 0


@pytest.mark.parametrize("method", ["mse", "percentile", "absmax"])
def test_zeros_first_do_not_spoil_what_follows(method: Method) -> None:
    x = draw("gaussian")[None]

    (late,) = choose([torch.zeros(1, 100), x], method)

    assert late == pytest.approx(choose([x], method)[0], rel=0.02)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e20])
def test_range_follows_the_scale_of_the_data(scale: float) -> None:
    x = draw("laplace")[None]

    assert choose([x * scale], "mse", 31)[0] == pytest.approx(
        scale * choose([x], "mse", 31)[0], rel=1e-3
    )


def test_very_many_values_are_sampled_with_the_peak_exact() -> None:
    x = torch.randn(1, 1_000_003, dtype=torch.float64)
    x[0, 12_345] = 77.0
    histogram = Histogram(1, CPU)

    histogram.add(x)

    assert float(histogram.counts.sum()) < 300_000
    assert float(histogram.choose(Calibration("absmax"), 127)) == 77.0


def test_an_empty_batch_counts_nothing() -> None:
    histogram = Histogram(2, CPU)

    histogram.add(torch.empty(2, 0))

    assert float(histogram.counts.sum()) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["mse", "percentile", "absmax"])
def test_values_that_are_not_finite_are_left_out(method: Method, bad: float) -> None:
    x = draw("gaussian")[None]
    spoilt = torch.cat([x, torch.tensor([[bad]])], dim=1)
    histogram = Histogram(1, CPU)

    histogram.add(spoilt)

    assert not histogram.finite
    found = float(histogram.choose(Calibration(method), 127))
    assert found == pytest.approx(choose([x], method)[0], rel=1e-3)


def test_adding_leaves_the_values_alone() -> None:
    x = torch.tensor([[-1.0, float("nan"), 3.0]])
    before = x.clone()

    Histogram(1, CPU).add(x)

    torch.testing.assert_close(x, before, equal_nan=True)


def columns(kind: str, count: int, seed: int) -> Tensor:
    """64 series alike but for their scale, ``count`` values of each."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(40_000, (64, count), generator=generator)
    return draw(kind)[index] * torch.logspace(-3, 3, 64, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("kind", ["gaussian", "laplace", "student"])
@pytest.mark.parametrize("count", [64, 300])
def test_series_of_few_values_learn_from_their_family(kind: str, count: int) -> None:
    few, unseen = columns(kind, count, 0), columns(kind, 4000, 1)
    histogram, plenty = Histogram(64, CPU, 256), Histogram(64, CPU, 256)
    histogram.add(few)
    plenty.add(columns(kind, 20_000, 2))

    def error(found: Tensor) -> float:
        full = found[:, None]
        converted = to_codes(unseen, full, 127) * full / 127
        return float(((converted - unseen) / unseen.std(1, keepdim=True)).square().mean())

    alone = error(histogram.choose(Calibration("mse"), 127))
    family = error(histogram.choose(Calibration("mse"), 127, 64))
    best = error(plenty.choose(Calibration("mse"), 127))
    assert family < 0.3 * alone
    assert family < (10 if kind == "student" else 2) * best


def test_series_of_many_values_keep_what_they_would_choose_alone() -> None:
    histogram = Histogram(64, CPU, 256)
    histogram.add(columns("laplace", 40_000, 0))
    alone = histogram.choose(Calibration("mse"), 127)
    torch.testing.assert_close(
        histogram.choose(Calibration("mse"), 127, 64), alone, rtol=0.02, atol=0
    )


@pytest.mark.parametrize("method", ["mse", "percentile", "absmax"])
def test_families_do_not_mix_and_silent_series_stay_zero(method: Method) -> None:
    first, second = columns("gaussian", 50, 0), columns("student", 50, 1)
    second[3] = 0
    both, one = Histogram(128, CPU, 256), Histogram(64, CPU, 256)
    both.add(torch.cat([first, second]))
    one.add(first)
    found = both.choose(Calibration(method), 127, 64)
    torch.testing.assert_close(found[:64], one.choose(Calibration(method), 127, 64))
    assert found[67] == 0 and bool((found > 0).sum() == 127)
    if method != "mse":
        assert torch.equal(found, both.choose(Calibration(method), 127))


@pytest.mark.parametrize("method", ["mse", "percentile", "absmax"])
def test_no_values_at_all_have_range_zero(method: Method) -> None:
    assert choose([torch.zeros(2, 0)], method) == [0.0, 0.0]
