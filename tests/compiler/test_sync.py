"""The tiles follow the weights: the next forward is that of a fresh compile, at no more cost."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.parametrizations as parametrizations
from torch import Tensor, nn

import analogc
from analogc.errors import InputError, SyncError, UnsupportedError
from analogc.runtime.derived import DerivedWeight

X = torch.linspace(-1.0, 1.0, 4 * 2 * 6 * 6).reshape(4, 2, 6, 6)
LAYERS = ["conv", "body", "head"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.body = nn.Linear(12, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        out: Tensor = self.head(torch.tanh(self.body(x)))
        return out


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(self.embed(tokens))))
        return out


@pytest.fixture
def model() -> nn.Module:
    return Net().eval()


@pytest.fixture
def compiled(model: nn.Module) -> analogc.CompiledModel:
    return analogc.compile(model, (X,), seed=5)


def fresh(compiled: analogc.CompiledModel, model: nn.Module, *inputs: Any) -> Tensor:
    """What a new compile of ``model`` gives with the ranges of ``compiled``."""
    twin = copy.deepcopy(model).train(compiled.training)
    new = analogc.compile(twin, inputs, target=compiled.target, seed=5)
    theirs = dict(new.named_buffers())
    with torch.no_grad():
        for name, value in compiled.named_buffers():
            if ".ranges." in name:
                theirs[name].copy_(value)
        out: Tensor = new(*inputs)
    return out


def written(compiled: analogc.CompiledModel) -> dict[str, int]:
    return {name: weight.times_programmed for name, weight in compiled.weights.items()}


@contextmanager
def programs(compiled: analogc.CompiledModel, *layers: str) -> Iterator[None]:
    """Check that a forward inside programs ``layers``, each once, and no others."""
    before = written(compiled)
    yield
    after = written(compiled)
    assert {name for name in after if after[name] != before[name]} == set(layers)
    assert all(after[name] - before[name] == 1 for name in layers)


def assert_synced(
    compiled: analogc.CompiledModel, model: nn.Module, layers: list[str], *inputs: Any
) -> None:
    """The next forward writes ``layers``, gives what a fresh compile gives, and is then stable."""
    inputs = inputs or (X,)
    with programs(compiled, *layers), torch.no_grad():
        got = compiled(*inputs)
    assert torch.equal(got, fresh(compiled, model, *inputs))
    with programs(compiled), torch.no_grad():
        assert torch.equal(compiled(*inputs), got)


def test_forward_without_a_change_programs_nothing(compiled: analogc.CompiledModel) -> None:
    with programs(compiled):
        for _ in range(3):
            compiled(X)
            with torch.no_grad():
                compiled(X)
    assert written(compiled) == dict.fromkeys(LAYERS, 1)
    assert compiled.sync() == []


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda ps: torch.optim.SGD(ps, lr=0.1, foreach=False),
    "SGD momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "SGD foreach": lambda ps: torch.optim.SGD(ps, lr=0.1, foreach=True),
    "SGD fused": lambda ps: torch.optim.SGD(ps, lr=0.1, fused=True),
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=0.01, foreach=False),
    "AdamW foreach": lambda ps: torch.optim.AdamW(ps, lr=0.01, foreach=True),
    "AdamW fused": lambda ps: torch.optim.AdamW(ps, lr=0.01, fused=True),
    "Adam fused": lambda ps: torch.optim.Adam(ps, lr=0.01, fused=True),
    "Adagrad fused": lambda ps: torch.optim.Adagrad(ps, lr=0.01, fused=True),
    "RMSprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01),
}


@pytest.mark.parametrize("of_model", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step_of_an_optimizer_is_followed(
    name: str, of_model: bool, model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    optimizer = OPTIMIZERS[name]((model if of_model else compiled).parameters())
    before = compiled(X).detach()
    for _ in range(2):
        optimizer.zero_grad()
        compiled(X).square().sum().backward()
        optimizer.step()
        assert_synced(compiled, model, LAYERS)
    assert not torch.equal(compiled(X).detach(), before)


def test_step_programs_only_the_layers_that_have_a_gradient(
    model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    for kind in ("SGD", "AdamW fused"):
        optimizer = OPTIMIZERS[kind](model.parameters())
        compiled(X).sum().backward()
        optimizer.step()
        assert_synced(compiled, model, ["head"])


def test_training_the_digital_model_is_followed(
    model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    model(X).sum().backward()
    optimizer.step()
    model.eval()
    assert_synced(compiled, model, LAYERS)


def test_running_statistics_that_the_digital_model_updates_are_followed(
    model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    with torch.no_grad():
        model.train()(X + 1)
    model.eval()
    assert_synced(compiled, model, ["conv"])


def other(model: nn.Module) -> nn.Module:
    torch.manual_seed(99)
    twin = type(model)()
    for norm in twin.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean)  # type: ignore[arg-type]
    return twin.eval()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("into", ["model", "compiled"])
def test_load_state_dict_is_followed(
    into: str, assign: bool, model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    state = other(model).state_dict()
    holder = model if into == "model" else compiled
    assert holder.load_state_dict(state, assign=assign).missing_keys == []
    assert_synced(compiled, model, LAYERS)
    for name, value in state.items():
        assert torch.equal(model.state_dict()[name], value)
        assert torch.equal(compiled.state_dict()[name], value)
    assert all(p is model.get_parameter(n) for n, p in compiled.named_parameters())


WRITES: dict[str, Callable[[nn.Parameter], Any]] = {
    "mul_": lambda p: p.mul_(1.5),
    "copy_": lambda p: p.copy_(torch.ones_like(p)),
    "index": lambda p: p.view(-1)[0].add_(1.0),
    "row": lambda p: p[0].zero_(),
    "init": lambda p: nn.init.normal_(p),
    "lerp": lambda p: p.lerp_(torch.zeros_like(p), 0.5),
    "foreach": lambda p: torch._foreach_mul_([p], 0.5),
    "sub through detach": lambda p: p.detach().sub_(0.5),
    "assign data": lambda p: setattr(p, "data", p.data * 2),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("write", WRITES)
def test_write_in_place_is_followed_in_its_layer_only(
    write: str, layer: str, model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    parameter = model.get_parameter(f"{layer}.weight")
    with torch.no_grad():
        WRITES[write](parameter)
    assert_synced(compiled, model, [layer])


def test_bias_is_digital_and_programs_nothing(
    model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    with torch.no_grad():
        model.get_parameter("head.bias").add_(1.0)
    assert_synced(compiled, model, [])


@pytest.mark.parametrize("where", ["model", "compiled"])
@pytest.mark.parametrize("layer", LAYERS)
def test_replaced_parameter_is_followed(
    layer: str, where: str, model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    module = (model if where == "model" else compiled).get_submodule(layer)
    old = module.weight
    assert isinstance(old, nn.Parameter)
    new = nn.Parameter(torch.randn_like(old))
    module.weight = new
    assert model.get_parameter(f"{layer}.weight") is new
    assert compiled.get_parameter(f"{layer}.weight") is new
    assert_synced(compiled, model, [layer])
    compiled(X).sum().backward()
    assert new.grad is not None and old.grad is None


@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
def test_folded_batch_norm_follows_its_statistics_and_parameters(
    name: str, model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    with torch.no_grad():
        getattr(model.get_submodule("norm"), name).add_(0.2)
    # Only the scale goes into the weight; mean and bias go into the digital bias.
    assert_synced(compiled, model, ["conv"] if name in ("running_var", "weight") else [])


def test_batch_norm_in_another_buffer_is_followed(
    model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    model.get_submodule("norm").register_buffer("running_var", torch.full((3,), 4.0))
    assert_synced(compiled, model, ["conv"])


def test_derived_weight_is_evaluated_only_when_a_source_changed(
    model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    modules = [m for m in compiled.modules() if isinstance(m, DerivedWeight)]
    assert modules
    with torch.no_grad():
        compiled(X)
        counts = [m.evaluations for m in modules]
        for _ in range(3):
            compiled(X)
            compiled(X + 1)
        assert [m.evaluations for m in modules] == counts
        model.get_parameter("conv.weight").add_(1)
        for _ in range(3):
            compiled(X)
    assert [m.evaluations for m in modules] == [count + 1 for count in counts]


def test_weight_norm_follows_both_its_parameters() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.Linear(5, 2)).eval()
    x = torch.randn(3, 6)
    compiled = analogc.compile(model, (x,), seed=5)
    parts = [p for n, p in model.named_parameters() if "original" in n]
    assert len(parts) == 2
    for part in parts:
        with torch.no_grad():
            part.mul_(torch.rand_like(part) + 0.5)
        with programs(compiled, "0"):
            got = compiled(x).detach()
        assert torch.equal(got, fresh(compiled, model, x))


@pytest.mark.parametrize("where", ["model", "compiled"])
def test_change_of_dtype_is_followed(
    where: str, model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    (model if where == "model" else compiled).double()
    assert {p.dtype for p in compiled.parameters()} == {torch.float64}
    x = X.double()
    with programs(compiled, *LAYERS), torch.no_grad():
        got = compiled(x)
    assert got.dtype == torch.float64
    assert torch.equal(got, fresh(compiled, model, x))
    (model if where == "model" else compiled).to(torch.bfloat16)
    assert compiled(x.bfloat16()).dtype == torch.bfloat16


def test_ranges_keep_their_dtype_and_values_when_the_model_changes_its_own(
    compiled: analogc.CompiledModel,
) -> None:
    before = {n: b.clone() for n, b in compiled.named_buffers() if ".ranges." in n}
    compiled.half()
    compiled.double()
    after = dict(compiled.named_buffers())
    for name, value in before.items():
        assert after[name].dtype == torch.float32
        assert torch.equal(after[name], value)


# -- shared weights -------------------------------------------------------------------------------


def test_tied_weight_has_one_array_and_follows_the_embedding() -> None:
    tokens = torch.tensor([[1, 2, 3], [4, 5, 8]])
    model = Tied().eval()
    compiled = analogc.compile(model, (tokens,), seed=5)
    assert [t.array for t in compiled.tiles] == ["body", "embed"]
    with torch.no_grad():
        model.embed.weight[1].mul_(3)
    assert_synced(compiled, model, ["embed"], tokens)
    assert model.head.weight is model.embed.weight


def test_layer_used_twice_is_programmed_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(torch.tanh(self.layer(x)))
            return out

    x, model = torch.randn(3, 6), Twice()
    compiled = analogc.compile(model, (x,), seed=5)
    assert len(compiled.tiles) == 1
    assert [n.target for n in compiled.graph.nodes].count(torch.ops.analogc.linear.default) == 2
    with torch.no_grad():
        model.layer.weight.add_(0.1)
    assert_synced(compiled, model, ["layer"], x)


def test_untying_by_replacement_is_followed_where_the_name_points() -> None:
    tokens = torch.tensor([[1, 2, 3]])
    model = Tied().eval()
    compiled = analogc.compile(model, (tokens,), seed=5)
    model.embed.weight = nn.Parameter(model.embed.weight.detach() * 2)
    model.head.weight = model.embed.weight
    assert_synced(compiled, model, ["embed"], tokens)


# -- auto_sync, sync, program ---------------------------------------------------------------------


def test_stale_tile_is_an_error_without_auto_sync(
    model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    compiled.auto_sync = False
    compiled(X)
    with torch.no_grad():
        model.get_parameter("body.weight").add_(1)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(SyncError, match="'body'") as info:
            compiled(X)
        assert "written in place" in info.value.message
        assert info.value.where == "layer body"
        assert "compiled.sync()" in str(info.value.fix)
    assert compiled.sync() == ["body"]
    with torch.no_grad():
        assert torch.equal(compiled(X), fresh(compiled, model, X))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.double(), "float32 on cpu became float64 on cpu"),
        (lambda m: setattr(m.head, "weight", nn.Parameter(m.head.weight * 2)), "replaced"),
        (lambda m: m.head.weight.detach().add_(1), "written in place"),
    ],
)
def test_sync_error_says_what_changed(
    change: Callable[[Any], Any], words: str, model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    compiled.auto_sync = False
    change(model)
    x = X.to(next(model.parameters()).dtype)
    with pytest.raises(SyncError, match=words):
        compiled(x)


def test_sync_names_the_layers_that_it_programs(
    model: nn.Module, compiled: analogc.CompiledModel
) -> None:
    assert compiled.sync() == []
    with torch.no_grad():
        model.get_parameter("head.weight").add_(1)
        model.get_parameter("conv.weight").add_(1)
    with programs(compiled, "conv", "head"):
        assert compiled.sync() == ["conv", "head"]
    assert compiled.sync() == []
    assert_synced(compiled, model, [])


def test_ideal_tiles_are_never_stale(model: nn.Module) -> None:
    compiled = analogc.compile(model, (X,), target="ideal")
    compiled.auto_sync = False
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(compiled(X), model(X), rtol=1e-5, atol=1e-6)
    assert compiled.sync() == []


def test_program_draws_fresh_noise_and_a_seed_repeats_it(model: nn.Module) -> None:
    target = analogc.targets.generic_8bit().replace(device=analogc.GaussianDevice(0.05))
    compiled = analogc.compile(model, (X,), target=target, seed=5)
    first = compiled(X)
    compiled.program()
    second = compiled(X)
    assert not torch.equal(first, second)
    compiled.program(seed=5)
    assert torch.equal(compiled(X), first)
    compiled.program()
    assert torch.equal(compiled(X), second)
    compiled.program(seed=6)
    assert not torch.equal(compiled(X), first)
    assert compiled.seed == 6
    with pytest.raises(InputError, match="seed"):
        compiled.program(seed=1.5)  # type: ignore[arg-type]


def test_program_counts_in_every_layer(compiled: analogc.CompiledModel) -> None:
    with programs(compiled, *LAYERS):
        compiled.program()


# -- the weights of the layers --------------------------------------------------------------------


def test_weights_are_live_and_can_be_set(model: nn.Module, compiled: analogc.CompiledModel) -> None:
    weight = compiled.weights["head"]
    assert weight.parameter is model.get_parameter("head.weight")
    assert weight.get() is weight.parameter
    weight.set(torch.ones(4, 8))
    assert bool((model.get_parameter("head.weight") == 1).all())
    assert_synced(compiled, model, ["head"])
    torch.testing.assert_close(weight.programmed(), torch.ones(4, 8))
    for bad in (torch.ones(4, 7), torch.ones(4, 8).double()):
        with pytest.raises(InputError, match="head"):
            weight.set(bad)


def test_folded_weight_can_be_read_but_not_set(compiled: analogc.CompiledModel) -> None:
    weight = compiled.weights["conv"]
    assert weight.get().shape == (3, 2, 3, 3)
    with pytest.raises(UnsupportedError, match="computed from parameters"):
        weight.set(torch.zeros(3, 2, 3, 3))


def test_unknown_weight_lists_the_known_ones(compiled: analogc.CompiledModel) -> None:
    assert list(compiled.weights) == LAYERS
    with pytest.raises(InputError, match="'tail'") as info:
        compiled.weights["tail"]
    assert "conv, body, head" in str(info.value.fix)


def test_programmed_weight_shows_the_error_of_programming(model: nn.Module) -> None:
    target = analogc.targets.ideal().replace(device=analogc.GaussianDevice(0.05))
    compiled = analogc.compile(model, (X,), target=target, seed=5)
    weight = compiled.weights["body"]
    error = weight.programmed() - weight.get().detach()
    scale = weight.get().detach().abs().amax(1, keepdim=True)
    assert 0.03 < float((error / scale).std()) < 0.07


# -- copies ---------------------------------------------------------------------------------------


def independent(copied: analogc.CompiledModel, compiled: analogc.CompiledModel) -> None:
    want = compiled(X).detach()
    assert torch.equal(copied(X).detach(), want)
    assert copied.ir() == compiled.ir()
    ours = {p.data_ptr() for p in compiled.parameters()}
    assert not ours & {p.data_ptr() for p in copied.parameters()}
    counts = written(compiled)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    assert not torch.equal(copied(X).detach(), want)
    assert written(compiled) == counts
    assert torch.equal(compiled(X).detach(), want)
    with torch.no_grad():
        compiled.get_parameter("head.weight").zero_()
    changed = copied(X).detach()
    compiled.program()
    assert torch.equal(copied(X).detach(), changed)


@pytest.mark.parametrize("target", ["ideal", "generic-8bit"])
def test_deepcopy_is_equal_and_independent(target: str, model: nn.Module) -> None:
    compiled = analogc.compile(model, (X,), target=target, seed=5)
    independent(copy.deepcopy(compiled), compiled)


@pytest.mark.parametrize("target", ["ideal", "generic-8bit"])
def test_pickle_round_trip_is_equal_and_independent(target: str, model: nn.Module) -> None:
    compiled = analogc.compile(model, (X,), target=target, seed=5)
    independent(pickle.loads(pickle.dumps(compiled)), compiled)


def test_copies_go_on_with_the_same_noise(model: nn.Module, tmp_path: Path) -> None:
    compiled = analogc.compile(model, (X,), target="generic-8bit-noisy", seed=5)
    compiled(X)
    compiled.save(tmp_path / "model.analogc")
    copies = [
        copy.deepcopy(compiled),
        pickle.loads(pickle.dumps(compiled)),
        analogc.load(tmp_path / "model.analogc"),
    ]
    want = [compiled(X) for _ in range(2)]
    for copied in copies:
        assert all(torch.equal(copied(X), y) for y in want)


def test_copy_has_a_seed_of_its_own(model: nn.Module) -> None:
    compiled = analogc.compile(model, (X,), target="generic-8bit-noisy", seed=5)
    twin = analogc.compile(model, (X,), target="generic-8bit-noisy", seed=5)
    copied = copy.deepcopy(compiled)
    copied.program(seed=9)
    assert (copied.seed, compiled.seed) == (9, 5)
    assert torch.equal(compiled(X), twin(X))
    copied.auto_sync = False
    assert compiled.auto_sync


def test_deepcopy_keeps_what_the_tiles_hold(model: nn.Module) -> None:
    target = analogc.targets.generic_8bit().replace(device=analogc.GaussianDevice(0.05))
    compiled = analogc.compile(model, (X,), target=target)
    copied = copy.deepcopy(compiled)
    assert torch.equal(copied(X), compiled(X))
    assert written(copied) == written(compiled)
    for name, weight in compiled.weights.items():
        assert torch.equal(copied.weights[name].programmed(), weight.programmed())


def test_deepcopy_of_a_model_that_holds_a_compiled_one(model: nn.Module) -> None:
    compiled = analogc.compile(model, (X,), seed=5)
    holder = nn.Sequential(compiled, nn.Softmax(-1))
    copied = copy.deepcopy(holder)
    assert torch.equal(copied(X), holder(X))
    assert copied[0] is not compiled


def test_deepcopy_can_switch_modes(model: nn.Module) -> None:
    compiled = analogc.compile(model, (X,), target="ideal")
    copied = copy.deepcopy(compiled)
    copied.train()(X)
    assert not compiled.training
    assert int(model.get_buffer("norm.num_batches_tracked")) == 0
    assert int(copied.get_buffer("norm.num_batches_tracked")) == 1


def test_shallow_copy_is_refused(compiled: analogc.CompiledModel) -> None:
    with pytest.raises(UnsupportedError, match="deepcopy"):
        copy.copy(compiled)
