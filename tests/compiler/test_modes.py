"""``train()`` and ``eval()`` of a compiled model do what they do on the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analogc
import analogc.compiler.model
from analogc.errors import UnsupportedError

X = torch.linspace(-1.0, 1.0, 4 * 2 * 5 * 5).reshape(4, 2, 5, 5)
VECTORS = torch.linspace(-1.0, 1.0, 64 * 8).reshape(64, 8)


class Net(nn.Module):
    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        out: Tensor = self.head(self.drop(x))
        return out


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Mode of every capture that a compiled model makes after it was compiled."""
    seen: list[bool] = []
    build = vars(analogc.compiler.model)["build"]

    def counted(source: Any, root: Any, *rest: Any) -> Any:
        seen.append(root.training)
        return build(source, root, *rest)

    monkeypatch.setattr("analogc.compiler.model.build", counted)
    return seen


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("start", [True, False])
def test_both_modes_equal_the_model_whatever_mode_it_was_compiled_in(start: bool) -> None:
    model = Net().train(start)
    twin = copy.deepcopy(model)
    compiled = analogc.compile(model, (X,), target="ideal", check=True)
    for training in (True, False, True, True, False):
        compiled.train(training)
        twin.train(training)
        close(compiled(X), twin(X))
        assert compiled.training is training
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)
    assert int(model.norm.num_batches_tracked) == 3  # type: ignore[arg-type]


def test_running_statistics_are_the_models_own_buffers() -> None:
    model = Net().eval()
    compiled = analogc.compile(model, (X,), target="ideal")
    buffer = model.norm.running_mean
    assert buffer is not None
    before = buffer.clone()
    compiled(X)
    assert torch.equal(buffer, before)
    compiled.train()(X)
    assert model.norm.running_mean is buffer
    assert compiled.get_buffer("norm.running_mean") is buffer
    assert not torch.equal(buffer, before)


def test_compiling_and_switching_do_not_touch_the_statistics() -> None:
    model = Net().train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    compiled = analogc.compile(model, (X,), target="generic-8bit", calibration_data=[X, X + 1])
    compiled.eval().train()
    compiled.calibrate([X])
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name


def test_dropout_is_active_in_training_only() -> None:
    model = nn.Sequential(nn.Linear(8, 400), nn.Dropout(0.25)).eval()
    compiled = analogc.compile(model, (VECTORS,), target="ideal")
    assert torch.equal(compiled(VECTORS), compiled(VECTORS))
    compiled.train()
    torch.manual_seed(1)
    y = compiled(VECTORS)
    share = float((y == 0).float().mean())
    assert share == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(compiled(VECTORS), y)
    torch.manual_seed(1)
    assert torch.equal(compiled(VECTORS), y)
    compiled.eval()
    assert not (compiled(VECTORS) == 0).any()


def test_dropout_draws_what_the_model_draws() -> None:
    model = nn.Sequential(nn.Linear(8, 40), nn.Dropout(0.5), nn.Linear(40, 5)).train()
    compiled = analogc.compile(model, (VECTORS,), target="ideal")
    torch.manual_seed(7)
    want = model(VECTORS)
    torch.manual_seed(7)
    close(compiled(VECTORS), want)


def test_other_mode_is_captured_on_demand_and_once(captures: list[bool]) -> None:
    compiled = analogc.compile(Net().eval(), (X,))
    assert captures == []
    compiled.eval()
    assert captures == []
    compiled.train()
    assert captures == [True]
    graph = compiled.graph
    for _ in range(3):
        compiled.eval()
        compiled.train()
    assert captures == [True]
    assert compiled.ir() == analogc.compile(Net().train(), (X,)).ir().replace("t0", "t2", 1)
    assert [n.name for n in compiled.graph.nodes] == [n.name for n in graph.nodes]


def test_modes_share_parameters_ranges_and_the_tiles_of_equal_layers() -> None:
    model = Net().eval()
    compiled = analogc.compile(model, (X,), seed=0)
    head = {t.array: t for t in compiled.tiles}["head"]
    folded = next(t for t in compiled.tiles if t.array != "head")
    parameters = {name: id(p) for name, p in compiled.named_parameters()}
    written = compiled.weights["head"].times_programmed
    compiled.train()
    assert {name: id(p) for name, p in compiled.named_parameters()} == parameters
    again = {t.array: t for t in compiled.tiles}["head"]
    assert again.tile_ids == head.tile_ids
    plain = next(t for t in compiled.tiles if t.array != "head")
    # The weight of the training graph is another one: the eval graph's has the batch norm in it.
    assert not set(plain.tile_ids) & set(folded.tile_ids)
    assert compiled.weights["head"].times_programmed == written
    for _ in range(3):
        compiled.eval()(X)
        compiled.train()
    assert compiled.weights["head"].times_programmed == written


def test_calibrated_ranges_of_shared_layers_survive_a_switch() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 4)).eval()
    compiled = analogc.compile(model, (VECTORS,))
    compiled.calibrate([VECTORS * 5], method="absmax")
    ranges = {n: b.clone() for n, b in compiled.named_buffers() if ".ranges." in n}
    assert len(ranges) == 4
    compiled.train()
    compiled.eval()
    found = {n: b for n, b in compiled.named_buffers() if ".ranges." in n}
    assert all(torch.equal(found[name], value) for name, value in ranges.items())


def test_graph_of_the_other_mode_is_calibrated_when_it_is_captured() -> None:
    compiled = analogc.compile(Net().eval(), (X,), seed=0)
    compiled.train()
    assert torch.isfinite(compiled(X)).all()
    assert not any(b.isnan().any() for b in compiled.buffers())


@pytest.mark.parametrize("start", [True, False])
def test_mode_of_the_source_model_is_its_own(start: bool) -> None:
    model = Net().train(start)
    compiled = analogc.compile(model, (X,))
    for training in (True, False):
        compiled.train(training)
        assert {m.training for m in model.modules()} == {start}
    model.train(not start)
    compiled.eval()
    assert not compiled.training
    assert {m.training for m in model.modules()} == {not start}


def test_frozen_batch_norm_stays_frozen() -> None:
    model = Net().train()
    model.norm.eval()
    twin = copy.deepcopy(model)
    compiled = analogc.compile(model, (X,), target="ideal", check=True)
    before = model.state_dict()["norm.running_mean"].clone()
    close(compiled(X), twin(X))
    assert torch.equal(model.state_dict()["norm.running_mean"], before)


def test_submodule_of_the_compiled_model_can_be_switched_alone(captures: list[bool]) -> None:
    model = Net().eval()
    twin = copy.deepcopy(model)
    compiled = analogc.compile(model, (X,), target="ideal")
    compiled.train()
    compiled.get_submodule("norm").eval()
    twin.train()
    twin.norm.eval()
    close(compiled(X), twin(X))
    assert len(captures) == 2
    compiled.get_submodule("norm").train()
    twin.norm.train()
    close(compiled(X), twin(X))
    assert len(captures) == 2
    assert torch.equal(model.norm.running_mean, twin.norm.running_mean)  # type: ignore[arg-type]


def test_every_module_can_be_switched_one_by_one() -> None:
    compiled = analogc.compile(Net().train(), (X,), target="ideal")
    for module in compiled.modules():
        module.eval()
    assert not compiled.training
    assert not compiled.get_submodule("norm").training
    before = compiled.get_buffer("norm.num_batches_tracked").clone()
    compiled(X)
    assert torch.equal(compiled.get_buffer("norm.num_batches_tracked"), before)


def test_train_and_eval_return_the_model() -> None:
    compiled = analogc.compile(Net().eval(), (X,))
    assert compiled.eval() is compiled
    assert compiled.train() is compiled
    assert compiled.train(False) is compiled


class NoTraining(Net):
    """Cannot be captured in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.training and y.sum() > 0:
            return -y
        return y


def all_modes(module: nn.Module) -> list[bool]:
    return [m.training for m in module.modules()]


@pytest.mark.parametrize(
    "switch",
    [
        lambda c: c.train(),
        lambda c: (c.get_submodule("drop").train(), c.train()),
    ],
)
def test_failed_switch_leaves_the_model_as_it_was(
    switch: Callable[[analogc.CompiledModel], Any],
) -> None:
    compiled = analogc.compile(NoTraining().eval(), (X,), seed=0)
    want, modes, text = compiled(X), all_modes(compiled), compiled.ir()
    with pytest.raises(UnsupportedError, match="branch depends on tensor values"):
        compiled.train()
    assert all_modes(compiled) == modes
    assert not compiled.training
    assert compiled.ir() == text
    assert torch.equal(compiled(X), want)
    assert compiled.eval() is compiled


def exported(training: bool) -> analogc.CompiledModel:
    program = torch.export.export(Net(0.5).train(training), (X,))
    return analogc.compile(program, target="ideal")


@pytest.mark.parametrize("training", [True, False])
def test_exported_program_cannot_switch_and_says_why(training: bool) -> None:
    compiled = exported(training)
    assert compiled.training is training
    compiled.train(training)
    mode = "training" if training else "eval"
    with pytest.raises(UnsupportedError, match=f"captured in {mode} mode only") as info:
        compiled.train(not training)
    assert "compile the nn.Module" in str(info.value.fix)
    assert compiled.training is training
    assert compiled(X).shape == (4, 3)


def test_loaded_model_switches_between_the_modes_that_it_was_saved_with(tmp_path: Any) -> None:
    compiled = analogc.compile(Net().eval(), (X,), target="ideal")
    compiled.save(tmp_path / "eval.analogc")
    one = analogc.load(tmp_path / "eval.analogc")
    with pytest.raises(UnsupportedError, match="eval mode only"):
        one.train()
    compiled.train()
    compiled.save(tmp_path / "both.analogc")
    both = analogc.load(tmp_path / "both.analogc")
    assert both.training
    for training in (False, True):
        close(both.train(training)(X), compiled.train(training)(X))


def norm(kind: type[nn.Module], *rest: nn.Module, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(2, 4, 3), kind(4, **options), *rest)


TRAINED: dict[str, Callable[[], nn.Module]] = {
    "batch norm": norm(nn.BatchNorm2d),
    "cumulative": norm(nn.BatchNorm2d, momentum=None),
    "without statistics": norm(nn.BatchNorm2d, track_running_stats=False),
    "without weights": norm(nn.BatchNorm2d, affine=False),
    "sync": norm(nn.SyncBatchNorm),
    "cumulative sync": norm(nn.SyncBatchNorm, momentum=None),
    "instance": norm(nn.InstanceNorm2d, affine=True),
    "instance with statistics": norm(nn.InstanceNorm2d, affine=True, track_running_stats=True),
    "group": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)),
    "dropout2d": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout2d(0.3)),
    "alpha dropout": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.AlphaDropout(0.3)),
    "rrelu": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.RReLU()),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_training_layers_do_what_they_do_in_eager(kind: str) -> None:
    model = TRAINED[kind]().train()
    twin = copy.deepcopy(model)
    compiled = analogc.compile(model, (X,), target="ideal", check=True)
    for seed in range(3):
        for net in (compiled, twin):
            torch.manual_seed(seed)
            net(X + seed).square().mean().backward()
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    close(compiled.eval()(X), twin.eval()(X))


@pytest.mark.parametrize("kind", ["cumulative", "cumulative sync"])
def test_capture_leaves_the_modules_forward_alone(kind: str) -> None:
    model = TRAINED[kind]().train()
    analogc.compile(model, (X,))
    assert all("forward" not in part.__dict__ for part in model.modules())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_batch_norm_after_a_transposed_conv_is_folded(dims: int, groups: int) -> None:
    layer = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    after = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](6)
    model = nn.Sequential(layer(4, 6, 3, stride=2, groups=groups), after).eval()
    after.running_mean, after.running_var = torch.randn(6), torch.rand(6) + 0.5
    exact = analogc.targets.ideal().replace(name="fine", dac=analogc.Converter(bits=16))
    x = torch.randn(2, 4, *[5] * dims)
    compiled = analogc.compile(model, (x,), target=exact, check=True, dynamic_shapes="batch")
    assert "batch_norm" not in compiled.ir().replace("derive", "")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        after.weight.mul_(2)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("target", ["ideal", "generic-8bit"])
def test_vmap_over_a_recurrent_layer_with_an_open_batch(target: str) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(8, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.rnn(x)[0]
            return y

    x = torch.randn(2, 3, 4, 8)
    compiled = analogc.compile(Recurrent().eval(), (x[0],), target=target, dynamic_shapes="batch")
    with torch.no_grad():
        close(torch.func.vmap(compiled)(x), torch.stack([compiled(part) for part in x]))
