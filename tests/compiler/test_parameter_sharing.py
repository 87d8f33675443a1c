"""Shared and tied weights: one parameter, one tile array, and so they stay."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc import CompiledModel, TileSpec

from .closeness import assert_holds


class Twice(nn.Module):
    """One module at two places of the tree, used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.again = self.first
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.tanh(self.first(x)))
        out: Tensor = self.last(torch.tanh(self.again(x)))
        return out


class LanguageModel(nn.Module):
    """The output projection is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 12)
        self.body = nn.Linear(12, 12)
        self.lm_head = nn.Linear(12, 13, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.lm_head(torch.tanh(self.body(self.embed(tokens))))
        return out


class TiedLinears(nn.Module):
    """Two modules, one weight, each its own bias."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(12, 12), nn.Linear(12, 12)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.right(torch.tanh(self.left(x)))
        return out


class TiedConvs(nn.Module):
    """One kernel at two strides."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, stride=2)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.right(torch.tanh(self.left(x)))
        return out


class Albert(nn.Module):
    """One encoder block, three times over (Lan et al., ICLR 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.norm = nn.LayerNorm(12)
        self.depth = 3

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.depth):
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
            x = x + self.down(torch.relu(self.up(self.norm(x))))
        return x


X = torch.linspace(-1.0, 1.0, 5 * 12).view(5, 12)
TOKENS = torch.arange(10).view(2, 5)
IMAGE = torch.linspace(-1.0, 1.0, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
# Model, input, tied names (first: the array's own), names and uses of the arrays.
CASES: dict[
    str, tuple[Callable[[], nn.Module], Tensor, tuple[str, ...], dict[str, int]]
] = {
    "twice": (Twice, X, ("first.weight", "again.weight"), {"first": 3, "last": 1}),
    "lm_head": (
        LanguageModel, TOKENS, ("embed.weight", "lm_head.weight"), {"body": 1, "embed": 1}
    ),
    "linears": (TiedLinears, X, ("left.weight", "right.weight"), {"left": 2}),
    "convs": (TiedConvs, IMAGE, ("left.weight", "right.weight"), {"left": 2}),
    "albert": (
        Albert, X[None], ("qkv.weight",), {"qkv": 3, "out": 3, "up": 3, "down": 3}
    ),
}  # fmt: skip
WAYS: dict[str, Callable[[CompiledModel, Path], CompiledModel]] = {
    "itself": lambda compiled, path: compiled,
    "deepcopy": lambda compiled, path: copy.deepcopy(compiled),
    "pickle": lambda compiled, path: pickle.loads(pickle.dumps(compiled)),
    "save and load": lambda compiled, path: saved(compiled, path),
    "copy of a loaded one": lambda compiled, path: copy.deepcopy(saved(compiled, path)),
    "compiled again": lambda compiled, path: compiled_again(compiled),
}


def saved(compiled: CompiledModel, path: Path) -> CompiledModel:
    compiled.save(path)
    return analogc.load(path)


def compiled_again(compiled: CompiledModel) -> CompiledModel:
    source = compiled._source
    assert source is not None and isinstance(source.model, nn.Module)
    return analogc.compile(copy.deepcopy(source.model), source.args, target=compiled.target)


def make(name: str, target: str = "generic-8bit") -> CompiledModel:
    build, x, _, _ = CASES[name]
    preset = analogc.targets.get(target).replace(tile=TileSpec(8, 8))
    return analogc.compile(build(), (x,), target=preset, seed=0)


def uses(compiled: CompiledModel) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in compiled.graph.nodes:
        if "analogc." in str(node.target):
            name = node.meta["analogc"].array
            found[name] = found.get(name, 0) + 1
    return found


def assert_tied(name: str, compiled: CompiledModel) -> None:
    _, x, tied, want = CASES[name]
    first = compiled.get_parameter(tied[0])
    assert all(compiled.get_parameter(other) is first for other in tied)
    assert sum(p is first for p in compiled.parameters()) == 1
    assert uses(compiled) == want
    assert [m.array for m in compiled.tiles] and len(compiled.tiles) == len(want)
    arrays = {a.key for _, a in compiled._arrays()}
    assert len(arrays) == len(want)
    with torch.no_grad():
        compiled(x)
    for weight in compiled.weights.values():
        held, live = weight.programmed(), weight.get().detach()
        assert_holds(held, live)


def step(compiled: CompiledModel, x: Tensor, kind: type[torch.optim.Optimizer]) -> None:
    optimizer = kind(compiled.parameters(), lr=0.01)  # type: ignore[call-arg]
    optimizer.zero_grad()
    compiled(x).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_one_array_and_tied_after_steps(name: str, way: str, tmp_path: Path) -> None:
    x = CASES[name][1]
    compiled = WAYS[way](make(name), tmp_path / "model")
    assert_tied(name, compiled)
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        before = {n: w.times_programmed for n, w in compiled.weights.items()}
        step(compiled, x, kind)
        assert_tied(name, compiled)
        after = {n: w.times_programmed for n, w in compiled.weights.items()}
        assert after == {n: count + 1 for n, count in before.items()}  # once, however often used
    with torch.no_grad():
        again = WAYS[way](compiled, tmp_path / "again")
        assert_tied(name, again)
        if way != "compiled again":  # which has ranges of its own
            assert torch.equal(again(x), compiled(x))


@pytest.mark.parametrize("name", CASES)
def test_training_is_that_of_the_tied_digital_model(name: str) -> None:
    build, x, tied, _ = CASES[name]
    model = build()
    twin = copy.deepcopy(model)
    compiled = analogc.compile(model, (x,), target="ideal", seed=0)
    for each in (compiled, twin):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.001, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            each(x).square().sum().backward()
            optimizer.step()
    for path, value in twin.state_dict().items():
        assert torch.equal(compiled.state_dict()[path], value), path
    assert_tied(name, compiled)
    assert torch.equal(compiled.get_parameter(tied[0]), twin.get_parameter(tied[-1]))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", ["twice", "lm_head", "linears", "convs"])
def test_tied_weights_load_from_a_checkpoint(name: str, assign: bool) -> None:
    compiled = make(name)
    tied = CASES[name][2]
    state = {n: torch.rand_like(v) for n, v in compiled.state_dict().items()}
    for path in tied:
        state[path] = state[tied[0]]
    compiled.load_state_dict(state, assign=assign)
    assert all(torch.equal(compiled.get_parameter(path), state[tied[0]]) for path in tied)
    if not assign:
        assert_tied(name, compiled)


def test_a_write_through_either_name_reaches_the_one_array() -> None:
    compiled = make("linears")
    with torch.no_grad():
        for path in CASES["linears"][2]:
            compiled(X)
            compiled.get_parameter(path).data.add_(0.1)
            assert_tied("linears", compiled)
    assert compiled.weights["left"].times_programmed == 3


def test_ideal_uses_share_the_parameter_s_memory() -> None:
    compiled = make("twice", "ideal")
    values = [
        compiled._value(node.args[1]) for node in compiled.graph.nodes
        if "analogc." in str(node.target)
    ]  # fmt: skip
    assert len(values) == 4
    assert len({v.data_ptr() for v in values}) == 2
