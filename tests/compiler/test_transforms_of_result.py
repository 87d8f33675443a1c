"""The result of compile is a module like any other to torch's own transforms."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc import Converter
from analogc.errors import UnsupportedError

X = torch.linspace(-1.0, 1.0, 4 * 2 * 6 * 6).reshape(4, 2, 6, 6)
TARGETS = ["ideal", "generic-8bit", "dynamic"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.depthwise = nn.Conv2d(3, 3, 3, groups=3, stride=2)
        self.body = nn.Linear(12, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = self.body(torch.relu(self.depthwise(x)).flatten(1))
        out: Tensor = self.head(torch.tanh(x))
        return out


def target(name: str) -> analogc.Target:
    if name == "dynamic":
        return analogc.targets.generic_8bit().replace(dac=Converter(8, "dynamic"))
    return analogc.targets.get(name)


def make(name: str, **options: Any) -> analogc.CompiledModel:
    return analogc.compile(Net().eval(), (X,), target=target(name), seed=1, **options)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    yield
    torch.compiler.reset()


def close(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


# -- torch.export ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("strict", [False, True])
def test_export_of_the_result_runs_equal(name: str, strict: bool) -> None:
    compiled = make(name)
    exported = torch.export.export(compiled, (X,), strict=strict)
    targets = {str(node.target) for node in exported.graph.nodes}
    if name != "ideal":
        assert {"analogc.linear.default", "analogc.conv2d.default"} <= targets
    close(exported.module()(X), compiled(X), 1e-6)


def test_export_keeps_a_dynamic_batch() -> None:
    compiled = make("generic-8bit", dynamic_shapes="batch")
    exported = torch.export.export(
        compiled, (X,), dynamic_shapes=({0: torch.export.Dim("b", min=1, max=64)},)
    )
    x = torch.cat([X, -X])
    close(exported.module()(x), compiled(x), 1e-6)


def test_export_follows_weight_writes() -> None:
    compiled = make("generic-8bit")
    module = torch.export.export(compiled, (X,)).module()
    with torch.no_grad():
        compiled.get_parameter("head.weight").mul_(2)
    close(module(X), compiled(X), 1e-6)


# -- torch.compile --------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", TARGETS)
def test_torch_compile_runs_equal_and_follows_weight_writes(name: str, grad: bool) -> None:
    compiled = make(name)
    fast = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        close(fast(X), compiled(X))
        for _ in range(2):
            with torch.no_grad():
                for parameter in compiled.parameters():
                    parameter.mul_(1.3)
            close(fast(X), compiled(X))


def test_torch_compile_follows_an_optimizer() -> None:
    compiled = make("generic-8bit")
    twin = copy.deepcopy(compiled)
    fast = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for each, run in ((compiled, fast), (twin, twin)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            run(X).square().sum().backward()
            optimizer.step()
    for ours, theirs in zip(compiled.parameters(), twin.parameters(), strict=True):
        close(ours, theirs)
    close(fast(X), twin(X))


def test_torch_compile_does_not_recompile_for_new_weights_or_inputs() -> None:
    compiled = make("generic-8bit")
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    fast = torch.compile(compiled, fullgraph=True, backend=counter)
    with torch.no_grad():
        for _ in range(3):
            fast(X)
            fast(X + 1)
            compiled.get_parameter("head.weight").mul_(2)
    assert counter.frame_count == 1


def test_torch_compile_gives_the_gradients_of_the_eager_model() -> None:
    compiled = make("generic-8bit")
    fast = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    found = []
    for run in (compiled, fast):
        x = X.clone().requires_grad_()
        run(x).square().sum().backward()
        found.append([x.grad, *(p.grad for p in compiled.parameters())])
        compiled.zero_grad()
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and theirs is not None
        close(ours, theirs)


def test_torch_compile_of_two_models_of_one_architecture_keeps_them_apart() -> None:
    first, second = make("generic-8bit"), make("generic-8bit")
    both = [torch.compile(m, fullgraph=True, backend="aot_eager") for m in (first, second)]
    close(both[0](X), first(X))
    close(both[1](X), second(X))


@pytest.mark.parametrize("training", [False, True])
def test_torch_compile_in_either_mode(training: bool) -> None:
    model = Net().train(training)
    compiled = analogc.compile(model, (X,), seed=1)
    twin = copy.deepcopy(compiled)
    fast = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    close(fast(X), twin(X))
    for ours, theirs in zip(compiled.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_inductor_runs_equal_and_follows_weight_writes(name: str) -> None:
    compiled = make(name)
    fast = torch.compile(compiled, fullgraph=True)
    with torch.no_grad():
        close(fast(X), compiled(X), 1e-4)
        compiled.get_parameter("head.weight").mul_(2)
        compiled.get_parameter("conv.weight").mul_(2)
        close(fast(X), compiled(X), 1e-4)


# -- torch.func -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ideal", "generic-8bit"])
def test_vmap_over_inputs_equals_a_loop(name: str) -> None:
    compiled = make(name)
    xs = torch.stack([X, X + 0.5, -X])
    got = torch.func.vmap(compiled)(xs)
    close(got, torch.stack([compiled(x) for x in xs]))
    moved = torch.func.vmap(compiled, in_dims=2, out_dims=1)(xs.movedim(0, 2))
    close(moved.movedim(1, 0), got)


def test_vmap_over_unbatched_examples() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(0), nn.Linear(48, 4))
    compiled = analogc.compile(model, (X[0],))
    close(torch.func.vmap(compiled)(X), torch.stack([compiled(x) for x in X]))


@pytest.mark.parametrize("name", ["ideal", "generic-8bit"])
def test_functional_call_uses_the_given_parameters(name: str) -> None:
    compiled = make(name)
    doubled = {n: p.detach() * 2 for n, p in compiled.named_parameters()}
    got = torch.func.functional_call(compiled, doubled, (X,))
    before = compiled(X)
    with torch.no_grad():
        for parameter in compiled.parameters():
            parameter.mul_(2)
    close(got, compiled(X))
    assert not torch.equal(got, before)


def test_grad_of_torch_func_equals_autograd() -> None:
    compiled = make("generic-8bit")
    parameters = {n: p.detach() for n, p in compiled.named_parameters()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        out: Tensor = torch.func.functional_call(compiled, values, (X,)).square().sum()
        return out

    found = torch.func.grad(loss)(parameters)
    compiled(X).square().sum().backward()
    for name, parameter in compiled.named_parameters():
        assert parameter.grad is not None
        close(found[name], parameter.grad)


# -- autocast and dtypes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_autocast_gives_bfloat16_near_the_full_result(name: str) -> None:
    compiled = make(name)
    want = compiled(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = compiled(X)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.1)


def test_autocast_programs_nothing_anew() -> None:
    compiled = make("generic-8bit")
    compiled(X)
    counts = [w.times_programmed for w in compiled.weights.values()]
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            compiled(X).float().sum().backward()
        compiled(X)
    assert [w.times_programmed for w in compiled.weights.values()] == counts
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in compiled.parameters())


@pytest.mark.parametrize("name", TARGETS)
def test_double_of_the_result_runs_in_double(name: str) -> None:
    compiled = make(name)
    want = compiled(X)
    compiled.double()
    got = compiled(X.double())
    assert got.dtype == torch.float64
    torch.testing.assert_close(got.float(), want, rtol=0.02, atol=0.02)


def test_requires_grad_and_zero_grad_work_as_on_any_module() -> None:
    compiled = make("generic-8bit")
    compiled.requires_grad_(False)
    assert not compiled(X).requires_grad
    compiled.requires_grad_(True)
    compiled(X).sum().backward()
    assert torch.nn.utils.clip_grad_norm_(compiled.parameters(), 1e-3) > 0
    compiled.zero_grad()
    assert all(p.grad is None for p in compiled.parameters())


def test_inference_mode_equals_no_grad() -> None:
    compiled = make("generic-8bit")
    with torch.no_grad():
        want = compiled(X)
    with torch.inference_mode():
        assert torch.equal(compiled(X), want)


def test_hooks_on_the_compiled_model_run() -> None:
    compiled = make("generic-8bit")
    seen: list[Any] = []
    handle = compiled.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    compiled(X)
    handle.remove()
    compiled(X)
    assert seen == [(4, 4)]


def test_as_part_of_another_module() -> None:
    compiled = make("generic-8bit")
    whole = nn.Sequential(compiled, nn.Linear(4, 2))
    assert whole(X).shape == (4, 2)
    assert [n for n, _ in whole.named_parameters()][-1] == "1.bias"
    whole.train()
    assert compiled.training


@pytest.mark.parametrize("inside", [False, True])
def test_compiling_a_compiled_model_is_refused(inside: bool) -> None:
    compiled = make("generic-8bit")
    model = nn.Sequential(compiled, nn.Linear(4, 2)) if inside else compiled
    with pytest.raises(UnsupportedError, match="is a compiled model|is compiled") as info:
        analogc.compile(model, (X,))
    assert "model that it was made from" in str(info.value.fix)


def test_signature_of_forward_is_that_of_the_model() -> None:
    class Keywords(Net):
        def forward(self, x: Tensor, shift: Tensor | None = None, *, gain: float = 1.0) -> Tensor:
            out = super().forward(x) * gain
            return out if shift is None else out + shift

    model = Keywords().eval()
    compiled = analogc.compile(model, (X,), {"shift": torch.ones(4)})
    for each in (compiled, copy.deepcopy(compiled), compiled.train()):
        assert inspect.signature(each.forward) == inspect.signature(model.forward)


def test_other_ways_to_pass_an_argument_can_be_compiled_by_torch_too() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor, y: Tensor | None = None, gain: float = 2.0) -> Tensor:
            out: Tensor = self.layer(x) * gain
            return out if y is None else out + y

    x = torch.randn(3, 6)
    compiled = analogc.compile(Two(), (x,), {"y": x}, seed=0)
    fast = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    want = compiled(x, y=x)
    for args, kwargs in (((x, x), {}), ((x,), {"y": x}), ((), {"y": x, "x": x})):
        close(fast(*args, **kwargs), want)
