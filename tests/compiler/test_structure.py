"""Modules that are replaced and tensors that change their name are followed, or refused, never
ignored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import analogc
from analogc import CompiledModel
from analogc.errors import SyncError, UnsupportedError

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
Change = Callable[[nn.Sequential], object]


class Double(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


CHANGES: dict[str, Change] = {
    "same kind of module": lambda m: m.__setitem__(0, nn.Linear(6, 8)),
    "another activation": lambda m: m.__setitem__(1, nn.Tanh()),
    "more layers": lambda m: m.__setitem__(1, nn.Sequential(nn.Linear(8, 8), nn.ReLU())),
    "a layer less": lambda m: m.__setitem__(1, nn.Identity()),
    "without bias": lambda m: m.__setitem__(2, nn.Linear(8, 3, bias=False)),
    "pruned": lambda m: prune.l1_unstructured(m[0], "weight", amount=0.5),
    "parametrized": lambda m: parametrize.register_parametrization(m[0], "weight", Double()),
    "weight norm": lambda m: parametrizations.weight_norm(m[0]),
}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def compiled_net(target: str = "ideal") -> tuple[nn.Sequential, CompiledModel]:
    model = net()
    return model, analogc.compile(model, (X,), target=target, seed=0, check=True)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_structure_is_followed(name: str) -> None:
    model, compiled = compiled_net()
    compiled(X)
    CHANGES[name](model.eval())
    model.eval()
    torch.testing.assert_close(compiled(X), model(X), rtol=1e-5, atol=1e-6)
    assert list(compiled.state_dict()) == list(model.state_dict())
    assert [id(p) for p in compiled.parameters()] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("target", ["ideal", "generic-8bit"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_structure_is_followed_under_torch_compile(name: str, target: str) -> None:
    torch.compiler.reset()
    model, compiled = compiled_net(target)
    fast = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    fast(X)
    CHANGES[name](model.eval())
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = fast(X)
    assert torch.equal(after, compiled(X))
    assert torch.equal(fast(X), after)
    if target == "ideal":
        torch.testing.assert_close(after, model(X), rtol=1e-5, atol=1e-6)


def test_what_did_not_change_keeps_its_tiles_and_ranges() -> None:
    model, compiled = compiled_net("generic-8bit-noisy")
    ranges = {
        name: value.clone()
        for name, value in compiled.get_submodule("_analog.ranges").named_buffers()
    }
    held = compiled.weights["2"].programmed()
    model[0] = nn.Linear(6, 8)
    compiled(X)
    assert torch.equal(compiled.weights["2"].programmed(), held)
    assert compiled.weights["2"].times_programmed == 1
    assert compiled.weights["0"].times_programmed == 2
    for name, value in compiled.get_submodule("_analog.ranges").named_buffers():
        assert torch.equal(value, ranges[name])


def test_undoing_a_change_is_followed_too() -> None:
    model, compiled = compiled_net()
    before = compiled(X)
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    assert not torch.equal(compiled(X), before)
    prune.remove(model[0], "weight")
    torch.testing.assert_close(compiled(X), model(X))


def test_a_mask_that_is_written_is_followed() -> None:
    model, compiled = compiled_net("generic-8bit")
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    compiled(X)
    mask = model[0].get_buffer("weight_mask")
    mask.numpy()[:] = 0.0
    compiled(X)
    assert not compiled.weights["0"].programmed().any()


def test_without_auto_sync_it_is_an_error_until_sync() -> None:
    model, compiled = compiled_net("generic-8bit")
    compiled.auto_sync = False
    model[0] = nn.Linear(6, 8)
    with pytest.raises(SyncError, match="submodule '0' was replaced"):
        compiled(X)
    assert compiled.sync() == ["0"]
    compiled(X)


def test_a_change_that_cannot_be_captured_leaves_the_model_as_it_was() -> None:
    model, compiled = compiled_net()
    before = compiled(X)
    kept = model[0]
    model[0] = nn.Linear(7, 8)
    with pytest.raises(UnsupportedError):
        compiled(X)
    model[0] = kept
    assert torch.equal(compiled(X), before)


def test_the_mode_is_kept() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    compiled = analogc.compile(model, (X,), target="ideal")
    compiled.train()
    model.eval()
    model[0] = nn.Linear(6, 8)
    compiled(X)
    assert compiled.training and model[1].get_buffer("num_batches_tracked").item() == 1
    compiled.eval()
    torch.testing.assert_close(compiled(X), model.eval()(X), rtol=1e-5, atol=1e-6)


def test_copies_follow_their_own_model() -> None:
    model, compiled = compiled_net()
    twin = copy.deepcopy(compiled)
    before = twin(X)
    model[0] = nn.Linear(6, 8)
    assert not torch.equal(compiled(X), before)
    assert torch.equal(twin(X), before)


def test_the_mode_can_be_switched_after_a_change() -> None:
    model, compiled = compiled_net()
    model[1] = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.0))
    compiled.train()
    torch.testing.assert_close(compiled(X), model(X))
    assert compiled.training
