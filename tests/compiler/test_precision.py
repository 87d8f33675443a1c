"""Dtypes, autocast around calls, and memory formats: what eager gives, the compiled model gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc.errors import SyncError

DTYPES = [torch.float64, torch.bfloat16, torch.float16]
TARGETS = ["ideal", "generic-8bit"]
X = torch.linspace(-1.0, 1.0, 6 * 8).reshape(6, 8)


class Net(nn.Module):
    """Looks at dtypes as language models do: a norm in float32, a mask of the lowest number."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.second = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        wide = h.to(torch.float32)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        mask = torch.full((8, 8), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device)
        scores = (self.scale * wide.to(h.dtype) + mask.triu(1)[3]).softmax(-1)
        out: Tensor = self.second(scores)
        return out


def check(found: Tensor, wanted: Tensor, target: str) -> None:
    assert found.dtype == wanted.dtype
    if target == "ideal":
        assert torch.equal(found, wanted)
    else:
        worst = (found.double() - wanted.double()).abs().max() / wanted.double().abs().max()
        assert worst < 0.05


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("when", ["before", "after", "own", "back"])
def test_a_model_in_another_dtype(when: str, dtype: torch.dtype, target: str) -> None:
    model = Net().eval()
    if when == "before":
        model.to(dtype)
    compiled = analogc.compile(model, (X.to(model.scale.dtype),), target=target, seed=0)
    if when != "before":
        (model if when == "own" else compiled).to(dtype)
    check(compiled(X.to(dtype)), model(X.to(dtype)), target)
    if when == "back":
        compiled.float()
        check(compiled(X), model(X), target)


def test_a_move_is_followed_by_sync_if_that_is_not_automatic() -> None:
    compiled = analogc.compile(Net().eval(), (X,))
    compiled.auto_sync = False
    compiled.double()
    with pytest.raises(SyncError, match="float32 on cpu became float64 on cpu"):
        compiled(X.double())
    compiled.sync()
    assert compiled(X.double()).dtype is torch.float64


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_of_several_dtypes(target: str) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low = nn.Linear(8, 8).bfloat16()
            self.high = nn.Linear(8, 8).double()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.high(self.low(x.to(self.low.weight.dtype)).double())
            return y

    model = Mixed().eval()
    check(analogc.compile(model, (X,), target=target)(X), model(X), target)


@pytest.mark.parametrize("target", TARGETS)
def test_autocast_around_calls_backward_and_compilation(target: str) -> None:
    model = Net().eval()
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        compiled = analogc.compile(model, (X,), target=target, seed=0, check=True)
        found, wanted = compiled(X), twin(X)
        # Not to the bit: the dtype that the model's code reads is the one without autocast.
        check(found, wanted, "bfloat16")
        found.float().square().sum().backward()
        wanted.float().square().sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and a.grad.dtype == b.grad.dtype
    check(compiled(X), twin(X), target)


def test_a_backward_inside_autocast_is_that_outside() -> None:
    compiled = analogc.compile(Net().eval(), (X,), seed=0)
    grads = []
    for inside in (False, True):
        y = compiled(X).square().sum()
        compiled.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            y.backward()
        grads.append([p.grad for p in compiled.parameters()])
    weights = [name.startswith("second") for name, _ in compiled.named_parameters()]
    for is_last, a, b in zip(weights, *grads, strict=True):
        if is_last:  # before it only analog operators ran backward
            assert torch.equal(a, b)


LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def conv(dims: int, **options: Any) -> nn.Module:
    kind = (nn.Conv2d, nn.Conv3d)[dims - 2]
    return kind(4, 8, **{"kernel_size": 3, "padding": 1, **options})


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "plain": conv,
    "grouped": lambda dims: conv(dims, groups=4),
    "strided": lambda dims: conv(dims, stride=2),
    "normed": lambda dims: nn.Sequential(conv(dims), (nn.BatchNorm2d, nn.BatchNorm3d)[dims - 2](8)),
    "pointwise": lambda dims: conv(dims, kernel_size=1, padding=0),
}


# A pointwise conv3d of torch's own has one layout on one thread and another on several.
@pytest.mark.parametrize(("layer", "dims"), [
    (name, dims) for name in LAYERS for dims in (2, 3) if (name, dims) != ("pointwise", 3)
])  # fmt: skip
@pytest.mark.parametrize("last", ["model", "input", "both", "neither"])
def test_memory_format_is_that_of_eager(layer: str, dims: int, last: str) -> None:
    model = nn.Sequential(LAYERS[layer](dims), nn.ReLU()).eval()
    x = torch.randn(2, 4, *[6] * dims)
    if last in ("model", "both"):
        model.to(memory_format=LAST[dims])  # type: ignore[call-overload]
    if last in ("input", "both"):
        x = x.to(memory_format=LAST[dims])
    with torch.no_grad():
        wanted = model(x)
        compiled = analogc.compile(model, (x,))
        found = compiled(x)
    assert found.stride() == wanted.stride()
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


def test_a_model_that_is_made_channels_last_later() -> None:
    model = nn.Sequential(conv(2), nn.BatchNorm2d(8)).eval()
    x = torch.randn(2, 4, 6, 6)
    compiled = analogc.compile(model, (x,))
    with torch.no_grad():
        before = compiled(x)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        after = compiled(x)
    assert before.is_contiguous() and after.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(before, after)
