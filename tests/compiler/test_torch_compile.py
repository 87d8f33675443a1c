"""``torch.compile(model, backend="analogc")``: graph breaks, shapes, training, shared tiles."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import analogc
from analogc.errors import InputError, UnsupportedError

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
Y = torch.randn(9, 8, generator=torch.Generator().manual_seed(4))


# torch's own warning, while dynamo traces an autograd.Function.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    """One code for all instances, cut in two."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        torch._dynamo.graph_break()
        out: Tensor = self.norm(x).relu()
        return out


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        # Written out: dynamo leaves a loop with a break in it to Python.
        x = self.blocks[0](x)
        x = self.blocks[1](x)
        out: Tensor = self.last(x)
        return out


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def compiled_by_torch(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="analogc", options=options)


def behind(model: nn.Module) -> analogc.CompiledModel:
    (found,) = analogc.compiled_models(model)
    return found


def close(got: Tensor, want: Tensor, tolerance: float = 1e-6) -> None:
    assert (got - want).abs().max() <= tolerance * want.abs().max()


def test_torch_finds_the_backend_by_its_entry_point() -> None:
    assert "analogc" in torch._dynamo.list_backends()


def test_import_of_analogc_stays_lean() -> None:
    code = "import sys, analogc; sys.exit('torch._dynamo.eval_frame' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("make", [net, Broken])
@pytest.mark.parametrize("training", [False, True])
def test_ideal_equals_eager_with_gradients_and_statistics(
    make: Callable[[], nn.Module], training: bool
) -> None:
    model = make().train(training)
    twin = copy.deepcopy(model)
    call = compiled_by_torch(model, target="ideal")
    for x in (X, Y):
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        got, want = call(a), twin(b)
        close(got, want)
        got.square().sum().backward()
        want.square().sum().backward()
        assert a.grad is not None and b.grad is not None
        close(a.grad, b.grad, 1e-5)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None, name
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
    for one, two in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, two)


def test_gradients_are_those_of_analogc_compile() -> None:
    model = net()
    whole = analogc.compile(copy.deepcopy(model), (X,), seed=0)
    call = compiled_by_torch(model, seed=0)
    call(X).square().sum().backward()
    whole(X).square().sum().backward()
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(p.grad, q.grad)


def test_equals_analogc_compile_on_a_model_without_breaks() -> None:
    model = net().eval()
    target = analogc.targets.generic_8bit_noisy()
    whole = analogc.compile(model, (X,), target=target, seed=5)
    call = compiled_by_torch(model, target=target, seed=5)
    with torch.no_grad():
        assert torch.equal(call(X), whole(X))


def test_one_graph_of_two_modules_runs_on_the_weights_of_each() -> None:
    model = Broken().eval()
    call = compiled_by_torch(model, target="ideal")
    close(call(X), model(X))
    found = behind(model)
    assert [tile.array for tile in found.tiles] == [
        "first", "blocks.0.linear", "blocks.1.linear", "last",
    ]  # fmt: skip
    assert [row.module for row in found.coverage.analog] == [
        "first", "blocks.0.linear", "blocks.1.linear", "last",
    ]  # fmt: skip
    assert found.coverage.unsupported == ()
    labels = [getattr(graph, "label", "") for graph in found.graphs]
    assert len(set(labels)) < len(labels) == 6


def test_models_of_one_class_have_their_own_tiles() -> None:
    models = [Broken().eval() for _ in range(2)]
    calls = [compiled_by_torch(model, seed=0) for model in models]
    with torch.no_grad():
        outs = [call(X) for call in calls]
        assert not torch.equal(*outs)
        assert torch.equal(calls[0](X), outs[0])
    found = [behind(model) for model in models]
    assert found[0] is not found[1]
    for each in found:
        assert [weight.times_programmed for weight in each.weights.values()] == [1, 1, 1, 1]


def test_recompiles_share_tiles_and_ranges() -> None:
    model = Broken().eval()
    call = compiled_by_torch(model, target="generic-8bit-noisy", seed=0)
    with torch.no_grad():
        call(X)
        found = behind(model)
        before = found.weights["last"].programmed()
        ranges = dict(found._root.get_submodule("_analog.ranges").named_buffers())
        call(Y)  # automatic dynamic shapes: every frame is captured again
        call(X[:4])
    model.train()
    call(X)
    model.eval()
    with torch.no_grad():
        call(Y)
    assert behind(model) is found
    assert torch.equal(found.weights["last"].programmed(), before)
    assert [weight.times_programmed for weight in found.weights.values()] == [1, 1, 1, 1]
    after = dict(found._root.get_submodule("_analog.ranges").named_buffers())
    assert list(after) == list(ranges)
    assert all(torch.equal(after[name], ranges[name]) for name in ranges)
    assert len(found.graphs) == 6


def test_marked_dim_is_captured_once() -> None:
    model = net().eval()
    call = compiled_by_torch(model, target="ideal")
    x = X.clone()
    torch._dynamo.mark_dynamic(x, 0)
    close(call(x), model(X))
    close(call(Y), model(Y))
    (graph,) = behind(model).graphs
    assert getattr(graph, "label", "").endswith("/0")


def test_ranges_come_from_the_first_inputs_and_from_calibrate() -> None:
    model = Broken().eval()
    call = compiled_by_torch(model, seed=0)
    with torch.no_grad():
        call(0.01 * X)
        far = (call(X) - model(X)).abs().max()
        found = behind(model)
        assert found.calibrate([X, (Y,)]) == 2
        near = (call(X) - model(X)).abs().max()
    assert near < far / 4


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.mul_(2),
        lambda p: p.data.mul_(2),
        lambda p: p.detach().numpy().__imul__(2),
        lambda p: p.copy_(p * 2),
    ],
)
def test_tiles_follow_every_write(write: Callable[[nn.Parameter], Any]) -> None:
    model = Broken().eval()
    call = compiled_by_torch(model, seed=0)
    with torch.no_grad():
        call(X)
        weight = model.blocks[1].get_submodule("linear").get_parameter("weight")
        write(weight)
        call(X)
    found = behind(model)
    assert found.weights["blocks.1.linear"].times_programmed == 2
    assert found.weights["blocks.0.linear"].times_programmed == 1
    close(found.weights["blocks.1.linear"].programmed(), weight.detach(), 0.01)


def test_replaced_parameters_and_modules_are_followed() -> None:
    model = Broken().eval()
    call = compiled_by_torch(model, target="ideal")
    with torch.no_grad():
        call(X)
        model.first.weight = nn.Parameter(torch.randn(8, 8))
        close(call(X), model(X))
        model.last = nn.Linear(8, 5)
        close(call(X), model(X))
        model.blocks[0] = Block().eval()
        close(call(X), model(X))
        model.last.weight.mul_(2)
        close(call(X), model(X))
    found = behind(model)
    shapes = {tile.array: tile.weight_shape for tile in found.tiles}
    assert shapes["last"] == (5, 8)
    assert found.coverage.unsupported == ()


def test_program_drift_and_sync_reach_all_graphs() -> None:
    drifting = analogc.targets.generic_8bit_noisy().replace(
        device=analogc.GaussianDevice(0.02, drift_nu=0.06)
    )
    model = Broken().eval()
    call = compiled_by_torch(model, target=drifting, seed=0)
    with torch.no_grad():
        call(X)
        found = behind(model)
        fresh = {name: weight.programmed() for name, weight in found.weights.items()}
        found.drift_to(86400.0)
        for name, weight in found.weights.items():
            assert weight.programmed().norm() < 0.8 * fresh[name].norm()
        found.program(seed=0)
        for name, weight in found.weights.items():
            assert torch.equal(weight.programmed(), fresh[name])
        model.last.weight.mul_(2)
    assert found.sync() == ["last"]
    assert found.sync() == []


def test_it_is_called_and_switched_like_the_model() -> None:
    model = Broken().eval()
    call = compiled_by_torch(model, target="ideal")
    call(X)
    found = behind(model)
    close(found(X), model(X))
    assert "mode=eval" in str(found)
    found.train()
    assert model.training and "mode=train" in str(found)


def test_each_set_of_options_has_its_own_tiles() -> None:
    model = net().eval()
    for target in ("ideal", "generic-8bit", "ideal"):
        compiled_by_torch(model, target=target)(X)
    assert [found.target.name for found in analogc.compiled_models(model)] == [
        "ideal", "generic-8bit",
    ]  # fmt: skip


@pytest.mark.parametrize("select", ["0", ["2", "nothing"], lambda info: info.name == "2"])
def test_select_and_passes_are_options(select: Any) -> None:
    model = net().eval()
    steps = "inline-regions,canonicalize,select-analog,derive-weights,map-tiles,rewrite-analog"
    compiled_by_torch(model, target="ideal", select=select, passes=steps, check=True)(X)
    report = behind(model).coverage
    assert len(report.analog) == 1
    assert [row.reason for row in report.digital if row.macs] == ["kept digital by select="]


def test_functions_and_free_parameters() -> None:
    weight = nn.Parameter(torch.randn(4, 8))

    def function(x: Tensor) -> Tensor:
        y = F.linear(x, weight)
        torch._dynamo.graph_break()
        return y @ weight

    call = compiled_by_torch(function, seed=0)
    got = call(X)
    want = X @ weight.mT @ weight
    close(got, want, 0.05)
    (mine,) = [
        m for m in analogc.compiled_models() if any(p is weight for p in m._root.parameters())
    ]
    assert len(mine.graphs) == 2 and len(mine.coverage.analog) == 2


def test_regions_of_grad_and_autocast_and_in_place_writes() -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.a(x)
            with torch.autocast("cpu", torch.bfloat16):
                z = self.b(x)
            z = z.float()
            z[:, 0] = 1.0
            out: Tensor = z.add_(y)
            return out

    model = Regions()
    twin = copy.deepcopy(model)
    got = compiled_by_torch(model, target="ideal")(X)
    want = twin(X)
    close(got, want)
    got.sum().backward()
    want.sum().backward()
    assert model.a.weight.grad is None
    assert model.b.weight.grad is not None and twin.b.weight.grad is not None
    close(model.b.weight.grad, twin.b.weight.grad, 1e-2)


def test_in_place_activations_keep_layers_analog() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(36 * 4, 8), nn.Hardtanh(inplace=True), nn.Linear(8, 2),
    ).eval()  # fmt: skip
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        close(compiled_by_torch(model, seed=0)(x), model(x), 0.1)
    report = behind(model).coverage
    assert len(report.analog) == 3 and report.analog_share == 1.0
    assert not any("batch_norm" in row.op for row in report.rows)


def test_checkpoint_and_vmap_inside() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.utils.checkpoint.checkpoint(self.a, x, use_reentrant=False)
            out: Tensor = torch.func.vmap(self.b)(y)
            return out

    model = Inside()
    twin = copy.deepcopy(model)
    call = compiled_by_torch(model, target="ideal")
    got, want = call(X), twin(X)
    close(got, want)
    got.square().sum().backward()
    want.square().sum().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(p.grad, q.grad)
    assert len(behind(model).coverage.analog) == 2


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return grads[0] @ w.mT, 2 * (x.mT @ grads[0])


def test_own_backwards_are_refused_when_gradients_are_wanted() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = Doubled.apply(x, self.w)  # type: ignore[no-untyped-call]
            return out

    model = Own()
    call = compiled_by_torch(model, target="ideal")
    with torch.no_grad():
        close(call(X), model(X))
    with pytest.raises(UnsupportedError, match=r"torch\.autograd\.Function") as info:
        call(X)
    assert "torch.compiler.disable" in str(info.value.fix)


@pytest.mark.parametrize(
    ("given", "match", "fix"),
    [
        ({"options": {"tiles": 4}}, "option 'tiles'", "target, select, passes, seed"),
        ({"options": {"calibration_data": [X]}}, "option 'calibration_data'", "calibrate"),
        ({"options": {"target": "no-such"}}, "no-such", "generic-8bit"),
        ({"options": {"seed": "1"}}, "seed must be", ""),
        ({"mode": "max-autotune"}, "mode=", "options="),
    ],
)
def test_wrong_options_are_input_errors_on_every_call(
    given: dict[str, Any], match: str, fix: str
) -> None:
    call = torch.compile(net(), backend="analogc", **given)
    for _ in range(2):
        with pytest.raises(InputError, match=match) as info:
            call(X)
        assert fix in str(info.value)


def test_strict_refuses_a_graph_with_an_unsupported_operator() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = torch.cond(x.sum() > 0, lambda x: x @ self.w, lambda x: x - 1, (x,))
            return out

    with torch.no_grad():
        compiled_by_torch(Odd(), target="ideal")(X)
        with pytest.raises(UnsupportedError, match="stored weights would stay digital"):
            compiled_by_torch(Odd(), target="ideal", strict=True)(X)


def test_what_no_graph_takes_is_reported() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.hidden = nn.Linear(8, 8), nn.Linear(8, 8)

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def python(self, x: Tensor) -> Tensor:
            out: Tensor = self.hidden(x)
            return out

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.python(self.seen(x))
            return out

    model = Hidden()
    with pytest.raises(InputError, match="made no graph of Hidden"):
        analogc.compiled_models(model)
    compiled_by_torch(model, target="ideal")(X)
    (row,) = behind(model).coverage.unsupported
    assert row.module == "hidden" and "in no graph" in row.reason


def test_nothing_keeps_a_model_that_is_gone() -> None:
    model = Broken().eval()
    call = compiled_by_torch(model, seed=0)
    call(X)
    found, gone = weakref.ref(behind(model)), weakref.ref(model)
    del model, call
    gc.collect()
    assert gone() is None and found() is None


def test_the_outermost_model_gives_the_names() -> None:
    model = net().eval()
    outer = nn.Sequential(compiled_by_torch(model, target="ideal"), nn.Tanh())
    outer(X)
    found = behind(model)
    assert behind(outer) is found
    assert [tile.array for tile in found.tiles] == ["0._orig_mod.0", "0._orig_mod.2"]
