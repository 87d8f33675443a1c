"""No write to a weight goes unseen: after each way of writing, the next forward is that of a fresh
compile from the current weights, with the same converter ranges, bit for bit.
"""

from __future__ import annotations

import copy
import multiprocessing
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc import CompiledModel

from .write_routes import ROUTES, weight

RANGES = "_analog.ranges"


def compile_like(model: nn.Module, x: Tensor, other: CompiledModel) -> CompiledModel:
    """A fresh compile with the converter ranges of ``other``."""
    fresh = analogc.compile(model, (x,), target=other.target, seed=0)
    for name, ranges in fresh.get_submodule(RANGES).named_buffers():
        ranges.copy_(other.get_submodule(RANGES).get_buffer(name))
    return fresh


def build(size: int, folded: bool) -> tuple[Any, Tensor]:
    middle = [nn.BatchNorm1d(size)] if folded else []
    model = nn.Sequential(nn.Linear(size, size), *middle, nn.ReLU(), nn.Linear(size, 5))
    return model.eval(), torch.randn(6, size)


@pytest.mark.parametrize("folded", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize("size", [12, 192], ids=["small", "watched"])
@pytest.mark.parametrize("name", ROUTES)
def test_every_write_is_seen(name: str, size: int, folded: bool) -> None:
    model, x = build(size, folded)
    compiled = analogc.compile(model, (x,), seed=0)
    with torch.no_grad():
        for _ in range(3):  # a weight that stands still is watched from its second call on
            compiled(x)
    assert compiled.weights["0"].times_programmed == 1
    ROUTES[name](model)
    with torch.no_grad():
        after = compiled(x)
        expected = compile_like(model, x, compiled)(x)
    assert torch.equal(after, expected)
    assert compiled.weights["0"].times_programmed == 2


@pytest.mark.parametrize("size", [12, 192])
def test_nothing_is_programmed_again_without_a_write(size: int) -> None:
    model, x = build(size, True)
    compiled = analogc.compile(model, (x,), target="generic-8bit-noisy", seed=0)
    with torch.no_grad():
        for _ in range(5):
            compiled(x)
            for p in model.parameters():
                p.norm(), (p > 10).any(), p.nonzero(), p.detach().numpy().sum()
    assert all(w.times_programmed == 1 for w in compiled.weights.values())


@pytest.mark.parametrize("how", ["same values", "moved"])
def test_the_same_content_is_not_programmed_again(how: str) -> None:
    model, x = build(192, False)
    compiled = analogc.compile(model, (x,), seed=0)
    with torch.no_grad():
        if how == "moved":
            model[0].weight.data = model[0].weight.data.clone()
        else:
            model[0].weight.copy_(model[0].weight.clone())
        compiled(x)
    assert compiled.weights["0"].times_programmed == 1


def test_a_write_through_an_alias_made_before_compile_is_seen() -> None:
    flat = torch.randn(192 * 192)
    array = flat.numpy()
    model, x = build(192, False)
    model[0].weight = nn.Parameter(flat.view(192, 192))
    compiled = analogc.compile(model, (x,), seed=0)
    with torch.no_grad():
        compiled(x), compiled(x)
        array[::3] = 0.125
        assert torch.equal(compiled(x), compile_like(model, x, compiled)(x))


def _write_shared(w: Tensor) -> None:
    w.mul_(2.0)


def test_a_write_by_another_process_is_seen() -> None:
    model, x = build(192, False)
    shared = torch.randn(192, 192).share_memory_()
    model[0].weight = nn.Parameter(shared, requires_grad=False)
    compiled = analogc.compile(model, (x,), seed=0)
    with torch.no_grad():
        compiled(x), compiled(x)
        worker = multiprocessing.get_context("fork").Process(target=_write_shared, args=(shared,))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
        assert torch.equal(compiled(x), compile_like(model, x, compiled)(x))


@pytest.mark.parametrize("name", ROUTES)
def test_every_write_is_seen_under_torch_compile(name: str) -> None:
    torch.compiler.reset()
    model, x = build(192, True)
    compiled = analogc.compile(model, (x,), seed=0)
    fast = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        fast(x), fast(x)
    ROUTES[name](model)
    with torch.no_grad():
        assert torch.equal(fast(x), compile_like(model, x, compiled)(x))


# Whoever looks first has the pages watched anew, which forgets that they were written; and the
# bytes outside whole pages are compared anyway, so the write is inside one.


@torch.no_grad()
def test_a_write_is_seen_by_every_compiled_model_of_a_model() -> None:
    model, x = build(300, True)
    first, second, third = (analogc.compile(model, (x,), seed=0) for _ in range(3))
    for _ in range(4):
        first(x), second(x), third(x)
    weight(model).numpy()[150] *= -1
    expected = compile_like(model, x, first)(x)
    for compiled in (first, first, second, first, third):
        assert torch.equal(compiled(x), expected)


@torch.no_grad()
def test_a_write_is_seen_by_the_graphs_of_both_modes() -> None:
    model, x = build(300, True)
    compiled = analogc.compile(model, (x,), seed=0)
    for training in (True, False) * 2:
        compiled.train(training)
        compiled(x), compiled(x), compiled(x)
    weight(model).numpy()[150] *= -1
    compiled(x), compiled(x)
    compiled.train()
    held = compiled(x)  # batch statistics: the same whatever ran before
    compiled.program()
    assert torch.equal(compiled(x), held)


def test_stale_tiles_say_how_the_weight_was_written() -> None:
    model, x = build(192, False)
    compiled = analogc.compile(model, (x,), seed=0)
    compiled.auto_sync = False
    with torch.no_grad():
        compiled(x), compiled(x)
        weight(model).data.add_(1.0)
        with pytest.raises(analogc.errors.SyncError, match=r"layer '0'.*\.data, NumPy"):
            compiled(x)
        assert compiled.sync() == ["0"]
        compiled(x)


def test_stale_tiles_stay_stale_through_a_change_of_mode_or_a_copy() -> None:
    model, x = build(12, True)
    compiled = analogc.compile(model, (x,), seed=0)
    compiled.auto_sync = False
    compiled.train()
    compiled(x)
    weight(model).data.add_(1.0)
    for stale in (compiled, copy.deepcopy(compiled).eval().train()):
        assert not stale.auto_sync
    compiled.eval().train()
    with pytest.raises(analogc.errors.SyncError, match="stale"):
        compiled(x)  # the array of this mode's graph was made after auto_sync was set
    compiled.sync()
    compiled(x)
