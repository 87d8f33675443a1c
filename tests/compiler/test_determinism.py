"""One seed, one result: on any number of threads, in any order; and noise of the right size."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc import Converter, GaussianDevice, Target, TileSpec

X = torch.linspace(-1.0, 1.0, 8 * 3 * 9 * 9).reshape(8, 3, 9, 9)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, stride=2)
        self.body = nn.Linear(96, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.tanh(self.body(self.depthwise(x).flatten(1)))
        out: Tensor = self.head(x)
        return out


def net() -> nn.Module:
    torch.manual_seed(2)
    return Net().eval()


def make(seed: int | None = 3, **changes: object) -> analogc.CompiledModel:
    target = analogc.targets.generic_8bit_noisy().replace(tile=TileSpec(20, 20), **changes)
    return analogc.compile(net(), (X,), target=target, seed=seed)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- the same numbers -----------------------------------------------------------------------------


def outputs(calls: int = 3) -> list[Tensor]:
    compiled = make()
    with torch.no_grad():
        return [compiled(X) for _ in range(calls)]


def test_same_seed_gives_the_same_outputs_on_one_thread_and_on_two() -> None:
    with threads(1):
        one = outputs()
    with threads(2):
        two = outputs()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_noise_itself_is_bit_for_bit_the_same_on_any_number_of_threads() -> None:
    x = torch.zeros(64, 96)
    target = Target("noise", TileSpec(20, 20), None, None, output_noise=0.1,
                    device=GaussianDevice(0.1))  # fmt: skip
    found = []
    for number in (1, 2):
        with threads(number):
            compiled = analogc.compile(nn.Linear(96, 200, bias=False), (x,), target=target, seed=1)
            with torch.no_grad():
                compiled.get_parameter("weight").zero_()
                found.append((compiled(x), compiled(x)))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
        assert float(a.abs().max()) > 0


def test_same_seed_gives_the_same_outputs_in_another_process() -> None:
    script = (
        f"import sys; sys.path.insert(0, {__file__.rpartition('/')[0]!r})\n"
        "import torch; torch.set_num_threads(1)\n"
        "import test_determinism as t\n"
        "print([y.double().sum().item() for y in t.outputs()])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([y.double().sum().item() for y in outputs()])


def test_seed_makes_results_independent_of_torchs_generator() -> None:
    torch.manual_seed(1)
    first = outputs()
    torch.manual_seed(2)
    torch.rand(100)
    for a, b in zip(first, outputs(), strict=True):
        assert torch.equal(a, b)


def test_forward_with_a_seed_leaves_torchs_generator_alone() -> None:
    compiled = make()
    state = torch.get_rng_state()
    compiled(X)
    compiled.program()
    assert torch.equal(torch.get_rng_state(), state)


def test_other_seed_gives_other_outputs() -> None:
    with torch.no_grad():
        assert not torch.equal(make(3)(X), make(4)(X))


def test_without_a_seed_torchs_generator_decides() -> None:
    def run(seed: int) -> list[Tensor]:
        model = net()
        torch.manual_seed(seed)
        compiled = analogc.compile(model, (X,), target="generic-8bit-noisy")
        with torch.no_grad():
            return [compiled(X) for _ in range(2)]

    first, again, other = run(10), run(10), run(11)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_manual_seed_repeats_the_noise_of_a_call() -> None:
    compiled = make(None)
    with torch.no_grad():
        torch.manual_seed(5)
        first = compiled(X)
        assert not torch.equal(compiled(X), first)
        torch.manual_seed(5)
        assert torch.equal(compiled(X), first)


def test_noise_differs_between_calls_layers_and_rows() -> None:
    target = Target("noise", TileSpec(), None, None, output_noise=0.1)
    model = nn.ModuleList([nn.Linear(6, 6, bias=False) for _ in range(2)])

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: Tensor) -> list[Tensor]:
            return [layer(x) for layer in self.layers]

    x = torch.zeros(3, 6)
    with torch.no_grad():
        for layer in model:
            layer.get_parameter("weight").fill_(1.0)
    compiled = analogc.compile(Both(), (x,), target=target, seed=0)
    with torch.no_grad():
        draws = [*compiled(x), *compiled(x)]
    rows = [row for draw in draws for row in draw]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


def test_order_of_layers_in_time_does_not_change_their_noise() -> None:
    first, second = make(), make()
    with torch.no_grad():
        want = [first(X), first(X)]
        # Programming one layer again in between does not touch the streams of the others.
        head = second.get_parameter("head.weight")
        got = [second(X)]
        head.add_(1e-3)
        later = second(X)
    assert torch.equal(got[0], want[0])
    assert not torch.equal(later, want[1])
    with torch.no_grad():
        third = make(device=analogc.IdealDevice())
        fourth = make(device=analogc.IdealDevice())
        want = [third(X), third(X)]
        fourth(X)
        fourth.get_parameter("head.weight").add_(0)
        assert torch.equal(fourth(X), want[1])


def test_without_noise_every_call_is_equal_whatever_the_seed() -> None:
    results = []
    for seed in (0, 1, None):
        compiled = analogc.compile(net(), (X,), seed=seed)
        with torch.no_grad():
            results += [compiled(X), compiled(X)]
    assert all(torch.equal(y, results[0]) for y in results)


def test_rows_of_a_batch_do_not_influence_each_other_without_noise() -> None:
    compiled = analogc.compile(net(), (X,), dynamic_shapes="batch", seed=0)
    with torch.no_grad():
        together = compiled(X)
        alone = torch.cat([compiled(x[None]) for x in X])
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
        order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
        torch.testing.assert_close(compiled(X[order]), together[order], rtol=1e-4, atol=1e-4)


# -- the statistics -------------------------------------------------------------------------------


def wide(sigma: float, scale: str = "column") -> tuple[analogc.CompiledModel, Tensor, Tensor]:
    """A large layer on tiles with programming noise, its weight, and the error of each device."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 400, bias=False))
    target = Target("noisy", TileSpec(128, 128), None, None, weight_scale=scale,  # type: ignore[arg-type]
                    device=GaussianDevice(sigma))  # fmt: skip
    compiled = analogc.compile(model, (torch.randn(2, 300),), target=target, seed=0)
    weight = model.get_parameter("0.weight").detach()
    peak = weight.abs().amax(1, keepdim=True) if scale == "column" else weight.abs().max()
    return compiled, weight, (compiled.weights["0"].programmed() - weight) / peak


@pytest.mark.parametrize("scale", ["column", "tensor"])
@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2])
def test_programming_noise_is_gaussian_with_the_stated_deviation(sigma: float, scale: str) -> None:
    _, weight, error = wide(sigma, scale)
    number = error.numel()
    spread = float(error.std())
    assert spread == pytest.approx(sigma, rel=5 / (2 * number) ** 0.5)
    assert abs(float(error.mean())) < 5 * sigma / number**0.5
    z = error / sigma
    assert float((z**4).mean()) == pytest.approx(3.0, abs=5 * (96 / number) ** 0.5)
    assert float((z.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.01)
    correlation = torch.corrcoef(torch.stack([error.flatten(), weight.flatten()]))[0, 1]
    assert abs(float(correlation)) < 5 / number**0.5
    neighbours = torch.corrcoef(torch.stack([error.flatten()[1:], error.flatten()[:-1]]))[0, 1]
    assert abs(float(neighbours)) < 5 / number**0.5


def test_each_programming_draws_noise_of_its_own() -> None:
    compiled, weight, first = wide(0.05)
    compiled.program()
    peak = weight.abs().amax(1, keepdim=True)
    second = (compiled.weights["0"].programmed() - weight) / peak
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(float(correlation)) < 5 / first.numel() ** 0.5
    assert float(second.std()) == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_output_noise_has_the_stated_deviation_for_each_row_block(noise: float) -> None:
    x = torch.ones(4000, 30)
    model = nn.Linear(30, 20, bias=False)
    target = Target("noise", TileSpec(10, 512), None, None, output_noise=noise)
    compiled = analogc.compile(model, (x,), target=target, seed=0)
    with torch.no_grad():
        error = compiled(x) - model(x)
        peak = model.weight.abs().amax(1)
    # Three row blocks: three conversions, each with noise in units of one full-scale product.
    spread = error.std(0) / (peak * noise * 3**0.5)
    torch.testing.assert_close(spread, torch.ones(20), rtol=0, atol=5 / (2 * 4000) ** 0.5)
    assert float(error.mean().abs()) < 5 * float(error.std()) / error.numel() ** 0.5


def test_output_noise_scales_with_the_input_range_of_the_dac() -> None:
    x = torch.ones(4000, 10)
    model = nn.Linear(10, 20, bias=False)
    spreads = []
    for full in (1.0, 4.0):
        target = Target("noise", TileSpec(), Converter(16, full), None, output_noise=0.1)
        compiled = analogc.compile(model, (x,), target=target, seed=0)
        with torch.no_grad():
            spreads.append(float((compiled(x) - compiled(x)).std()))
    assert spreads[1] / spreads[0] == pytest.approx(4.0, rel=0.05)


def test_same_seed_gives_two_models_different_tiles_only_where_layers_differ() -> None:
    first = make()
    second = copy.deepcopy(first)
    second.program(seed=3)
    for name, weight in first.weights.items():
        assert torch.equal(second.weights[name].programmed(), weight.programmed()), name
