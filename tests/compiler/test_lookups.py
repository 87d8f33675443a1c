"""A graph's function finds the model's tensors, wherever they went since it was made."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import analogc


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.register_buffer("gain", torch.full((4,), 2.0))
        self.offset = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gain = self.gain
        assert isinstance(gain, torch.Tensor)
        y: torch.Tensor = self.fc(x) * gain + self.offset
        return y


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def to_parameter(model: nn.Module) -> None:
    gain = model.get_buffer("gain").clone()
    del model.gain
    model.gain = nn.Parameter(gain * 3)


def to_buffer(model: nn.Module) -> None:
    offset = model.get_parameter("offset").detach().clone()
    del model.offset
    model.register_buffer("offset", offset * 3)


def replaced(model: nn.Module) -> None:
    model.get_submodule("fc").bias = nn.Parameter(torch.full((4,), 5.0))


def parametrised(model: nn.Module) -> None:
    parametrize.register_parametrization(model.get_submodule("fc"), "weight", Double())


def pruned(model: nn.Module) -> None:
    prune.l1_unstructured(model.get_submodule("fc"), "bias", 2)


CHANGES = (to_parameter, to_buffer, replaced, parametrised, pruned)


@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_that_left_its_table_is_found(change: Callable[[nn.Module], None]) -> None:
    model = Scaled().eval()
    x = torch.randn(3, 6)
    compiled = analogc.compile(model, (x,), target="ideal")
    change(model)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("change", [to_parameter, to_buffer, replaced])
def test_a_change_through_the_compiled_model_is_seen(change: Callable[[nn.Module], None]) -> None:
    model = Scaled().eval()
    x = torch.randn(3, 6)
    compiled = analogc.compile(model, (x,), target="ideal")
    change(compiled)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("change", CHANGES)
def test_a_loaded_model_has_no_other_to_follow(change: Callable[[nn.Module], None]) -> None:
    model = Scaled().eval()
    x = torch.randn(3, 6)
    loaded = pickle.loads(pickle.dumps(analogc.compile(model, (x,), target="ideal")))
    change(loaded)
    change(model)
    torch.testing.assert_close(loaded(x), model(x))


def test_what_runs_has_no_attribute_access() -> None:
    model = Scaled().eval()
    compiled = analogc.compile(model, (torch.randn(3, 6),), target="generic-8bit")
    calls: list[str] = []
    root = compiled._root

    class Watched(type(root)):  # type: ignore[misc]
        def __getattr__(self, name: str) -> object:
            calls.append(name)
            return super().__getattr__(name)

    for module in root.modules():
        module.__class__ = Watched if isinstance(module, type(root)) else module.__class__
    compiled(torch.randn(3, 6))
    assert not calls
