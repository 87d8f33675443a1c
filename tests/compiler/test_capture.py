"""Capture keeps the model: its tensors, mode, dtype and structure; what it cannot keep it says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.utils.parametrizations as parametrizations
from torch import Tensor, fx, nn

import analogc
from analogc.errors import InputError, UnsupportedError

HERE = Path(__file__).name


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.embed(tokens)))
        return out


class Extras(nn.Module):
    """An unused module, a buffer that is not persistent, a parameter that is None."""

    mask: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(6, 5, bias=False)
        self.unused = nn.Linear(6, 7)
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5]), persistent=False)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_parameter("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x) * self.mask * self.scale
        return out


def parametrized() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 5)),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(5, 4)),
    )


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )


X = torch.linspace(-1.0, 1.0, 18).reshape(3, 6)
IMAGES = torch.linspace(-1.0, 1.0, 100).reshape(2, 2, 5, 5)
TOKENS = torch.tensor([[1, 2, 3], [4, 5, 10]])

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (X,)),
    "tied": (Tied, (TOKENS,)),
    "extras": (Extras, (X,)),
    "parametrized": (parametrized, (X,)),
    "convnet": (convnet, (IMAGES,)),
    "lazy list": (lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 6)), nn.GELU()), (X,)),
}


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[Tensor, ...]]:
    make, inputs = MODELS[request.param]
    return make().eval(), inputs


@pytest.mark.parametrize("target", ["ideal", "generic-8bit"])
def test_compiled_holds_the_models_own_parameter_and_buffer_objects(
    pair: tuple[nn.Module, tuple[Tensor, ...]], target: str
) -> None:
    model, inputs = pair
    compiled = analogc.compile(model, inputs, target=target, check=True)
    ours, theirs = dict(compiled.named_parameters()), dict(model.named_parameters())
    assert list(ours) == list(theirs)
    assert all(ours[name] is theirs[name] for name in theirs)
    buffers = dict(compiled.named_buffers())
    for name, buffer in model.named_buffers():
        assert buffers[name] is buffer


def test_state_dict_has_the_models_keys_and_memory(
    pair: tuple[nn.Module, tuple[Tensor, ...]],
) -> None:
    model, inputs = pair
    compiled = analogc.compile(model, inputs)
    ours, theirs = compiled.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in theirs)


def test_compiling_leaves_the_model_as_it_was(pair: tuple[nn.Module, tuple[Tensor, ...]]) -> None:
    model, inputs = pair
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    hooks = len(model._forward_hooks)
    want = model(*inputs)
    compiled = analogc.compile(model, inputs)
    compiled(*inputs)
    assert [name for name, _ in model.named_modules()] == modules
    assert len(model._forward_hooks) == hooks
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(model(*inputs), want)


def test_graph_module_is_accepted_as_the_model() -> None:
    model = convnet().eval()
    graph = fx.symbolic_trace(model)
    compiled = analogc.compile(graph, (IMAGES,), target="ideal", check=True)
    torch.testing.assert_close(compiled(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-6)
    assert compiled.get_parameter("0.weight") is model.get_parameter("0.weight")
    assert list(compiled.state_dict()) == list(graph.state_dict())


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_exported_program_is_accepted_as_the_model(decomposed: bool, mode: str) -> None:
    model = convnet().train(mode == "train")
    exported = torch.export.export(model, (IMAGES,))
    if decomposed:
        exported = exported.run_decompositions()
    compiled = analogc.compile(exported, target="ideal", check=True)
    statistics = {n: b.clone() for n, b in model.named_buffers()}
    got = compiled(IMAGES)
    model.load_state_dict(statistics, strict=False)
    torch.testing.assert_close(got, model(IMAGES), rtol=1e-5, atol=1e-6)
    assert len(compiled.tiles) == 2
    assert list(compiled.state_dict()) == list(model.state_dict())
    assert all(p is model.get_parameter(n) for n, p in compiled.named_parameters())
    assert compiled.training is (mode == "train")


def test_exported_program_uses_its_own_example_inputs_or_the_given_ones() -> None:
    model = nn.Linear(6, 5).eval()
    exported = torch.export.export(model, (X,))
    for inputs in (None, (X * 2,)):
        compiled = analogc.compile(exported, inputs, target="generic-8bit")
        assert compiled(X).shape == (3, 5)


def test_exported_program_with_a_dynamic_dim_stays_dynamic() -> None:
    model = nn.Linear(6, 5).eval()
    exported = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("b")},))
    compiled = analogc.compile(exported, target="ideal", check=True)
    for rows in (1, 2, 9):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


def test_symbolic_trace_capture_gives_the_same_model() -> None:
    model = convnet().eval()
    traced = analogc.compile(model, (IMAGES,), target="ideal", capture="symbolic_trace")
    exported = analogc.compile(model, (IMAGES,), target="ideal")
    torch.testing.assert_close(traced(IMAGES), exported(IMAGES), rtol=1e-6, atol=1e-7)
    assert [t.array for t in traced.tiles] == [t.array for t in exported.tiles]
    assert all(p is model.get_parameter(n) for n, p in traced.named_parameters())


def test_symbolic_trace_capture_bakes_python_in_where_export_would_too() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor, steps: int = 3) -> Tensor:
            for _ in range(3):
                x = torch.tanh(self.layer(x))
            return x

    model = Loop()
    compiled = analogc.compile(model, (X,), target="ideal", capture="symbolic_trace")
    assert len(compiled.coverage.analog) == 3
    assert len(compiled.tiles) == 1
    torch.testing.assert_close(compiled(X), model(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_every_module_is_kept(training: bool) -> None:
    model = convnet().train(training)
    compiled = analogc.compile(model, (IMAGES,))
    assert compiled.training is training
    assert {m.training for m in model.modules()} == {training}


def test_mixed_mode_is_kept() -> None:
    model = convnet().train()
    norm = model.get_submodule("1")
    norm.eval()
    compiled = analogc.compile(model, (IMAGES,), target="ideal")
    assert compiled.training
    assert not compiled.get_submodule("1").training
    before = {name: value.clone() for name, value in model.named_buffers()}
    torch.testing.assert_close(compiled(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_requires_grad_is_kept_and_followed() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    model[0].weight.requires_grad_(False)
    compiled = analogc.compile(model, (X,))
    assert not compiled.get_parameter("0.weight").requires_grad
    compiled(X).sum().backward()
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None
    model[0].weight.requires_grad_(True)
    compiled(X).sum().backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).to(dtype)
    for target in ("ideal", "generic-8bit"):
        compiled = analogc.compile(model, (X.to(dtype),), target=target)
        assert {p.dtype for p in compiled.parameters()} == {dtype}
        assert compiled(X.to(dtype)).dtype == dtype


def test_input_that_the_model_writes_is_written_by_calls_but_not_by_compiling() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x.add_(1)
            out: Tensor = self.layer(x)
            return out

    model, example = Writes(), X.clone()
    compiled = analogc.compile(model, (example,), seed=0)
    compiled.calibrate()
    assert torch.equal(example, X)
    x = X.clone()
    compiled(x)
    assert torch.equal(x, X + 1)


@pytest.mark.parametrize("name", ["a-b", "my key!", "weights", "_root", "tiles", "forward_", "é"])
def test_submodules_may_have_odd_names(name: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = getattr(self, name)(x)
            return out

    model = Odd()
    compiled = analogc.compile(model, (X,), target="ideal", check=True)
    torch.testing.assert_close(compiled(X), model(X), rtol=1e-5, atol=1e-6)
    assert [t.array for t in compiled.tiles] == [name]
    assert list(compiled.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", ["class", "None", "graph", "code", "_analog"])
def test_names_that_no_graph_can_hold_are_refused_with_advice(name: str) -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = getattr(self, name)(x)
            return out

    with pytest.raises(UnsupportedError, match="name") as info:
        analogc.compile(Bad(), (X,))
    assert "rename" in str(info.value.fix)


# -- structures -----------------------------------------------------------------------------------


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Batch:
    x: Tensor
    shift: Tensor | None = None


@dataclass
class Inner:
    hidden: Tensor


@dataclass
class Result:
    """Never registered with pytree by the test: compile has to do it."""

    logits: Tensor
    inner: Inner
    loss: Tensor | None = None


class Structured(nn.Module):
    """Runs ``choose`` on its arguments, and ``build`` on the result of a linear layer."""

    def __init__(self, choose: Callable[..., Tensor], build: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.choose, self.build = choose, build

    def forward(self, batch: Any) -> Any:
        x = self.choose(batch)
        return self.build(x, self.layer(x))


INPUTS: dict[str, tuple[Any, Callable[..., Tensor]]] = {
    "tensor": (X, lambda b: b),
    "tuple": ((X, X + 1), lambda b: b[0] * b[1]),
    "list": ([X, X + 1], lambda b: b[0] * b[1]),
    "dict": ({"p": X, "q": X + 1}, lambda b: b["p"] * b["q"]),
    "nested": ({"p": [X, (X + 1,)]}, lambda b: b["p"][0] * b["p"][1][0]),
    "namedtuple": (Pair(X, X + 1), lambda b: b.first * b.second),
    "dataclass": (Batch(X, X + 1), lambda b: b.x * b.shift),
    "dataclass with None": (Batch(X), lambda b: b.x if b.shift is None else b.shift),
}

OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda x, y: y,
    "tuple": lambda x, y: (y, y + 1),
    "one-tuple": lambda x, y: (y,),
    "list": lambda x, y: [y, y + 1],
    "dict": lambda x, y: {"b": y, "a": y + 1},
    "nested": lambda x, y: {"b": [y, (y + 1, {"c": y * 2})]},
    "namedtuple": lambda x, y: Pair(y, y + 1),
    "dataclass": lambda x, y: Result(y, Inner(y + 1)),
    "dataclass in a list": lambda x, y: [Result(y, Inner(y + 1), y.sum())],
    "input too": lambda x, y: (x, y),
    "same twice": lambda x, y: (y, y),
    "None": lambda x, y: (y, None),
    "constants": lambda x, y: (y, 3, 2.5, "text", True),
}


def flat(value: Any) -> list[Any]:
    """Leaves of a structure, with the class names of its nodes."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [type(value).__name__, *(leaf for item in value for leaf in flat(item))]
    if isinstance(value, dict):
        return ["dict", *(leaf for key in value for leaf in (key, *flat(value[key])))]
    if hasattr(value, "__dataclass_fields__"):
        fields = [getattr(value, name) for name in value.__dataclass_fields__]
        return [type(value).__name__, *(leaf for item in fields for leaf in flat(item))]
    return [value]


def assert_same(got: Any, want: Any) -> None:
    ours, theirs = flat(got), flat(want)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert type(a) is type(b)
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        else:
            assert a == b


@pytest.mark.parametrize("kind", INPUTS)
def test_input_structures_are_kept(kind: str) -> None:
    batch, choose = INPUTS[kind]
    model = Structured(choose, lambda x, y: y)
    compiled = analogc.compile(model, (batch,), target="ideal", check=True)
    assert_same(compiled(batch), model(batch))


@pytest.mark.parametrize("kind", OUTPUTS)
def test_output_structures_are_kept(kind: str) -> None:
    model = Structured(lambda b: b, OUTPUTS[kind])
    compiled = analogc.compile(model, (X,), target="ideal", check=True)
    assert_same(compiled(X), model(X))


def test_output_that_is_an_input_is_that_very_tensor() -> None:
    model = Structured(lambda b: b, lambda x, y: (x, y))
    compiled = analogc.compile(model, (X,), target="ideal")
    x = torch.randn(3, 6)
    assert compiled(x)[0] is x


def test_model_without_layers_compiles_to_no_tiles() -> None:
    compiled = analogc.compile(nn.ReLU(), (X,), check=True)
    assert torch.equal(compiled(X), torch.relu(X))
    assert len(compiled.tiles) == 0
    assert compiled.coverage.macs == 0


# -- arguments ------------------------------------------------------------------------------------


class Arguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, gain: float = 2.0, z: Tensor | None = None
    ) -> Tensor:
        out: Tensor = self.layer(x) * gain
        if y is not None:
            out = out + y
        return out if z is None else out - z


CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "one positional": ((X,), {}),
    "two positional": ((X, X), {}),
    "None given": ((X, None), {}),
    "keyword tensor": ((X,), {"z": X + 1}),
    "keyword for a positional": ((X,), {"y": X + 1}),
    "all keywords": ((), {"x": X, "y": X + 1, "z": X}),
    "constant": ((X,), {"gain": 3.0}),
}


@pytest.mark.parametrize("how", CALLS)
def test_arguments_are_kept(how: str) -> None:
    args, kwargs = CALLS[how]
    model = Arguments()
    compiled = analogc.compile(model, args, kwargs, target="ideal", check=True)
    torch.testing.assert_close(compiled(*args, **kwargs), model(*args, **kwargs))


def test_positional_arguments_may_be_called_by_keyword_and_the_other_way_round() -> None:
    model = Arguments()
    want = model(X, X + 1)
    positional = analogc.compile(model, (X, X + 1), target="ideal")
    keyword = analogc.compile(model, (), {"x": X, "y": X + 1}, target="ideal")
    for compiled in (positional, keyword):
        for got in (
            compiled(X, X + 1),
            compiled(X, y=X + 1),
            compiled(x=X, y=X + 1),
            compiled(y=X + 1, x=X),
            compiled(X, X + 1, gain=2.0),
            compiled(X, X + 1, z=None),
        ):
            torch.testing.assert_close(got, want)


def test_keyword_order_does_not_matter() -> None:
    model = Arguments()
    compiled = analogc.compile(model, (X,), {"y": X, "z": X + 1}, target="ideal")
    torch.testing.assert_close(compiled(X, z=X + 1, y=X), model(X, y=X, z=X + 1))


def test_variadic_forward_is_captured() -> None:
    class Variadic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, *xs: Tensor, **more: Tensor) -> Tensor:
            out: Tensor = self.layer(sum(xs, torch.zeros(())))
            return out + sum(more.values(), torch.zeros(()))

    model = Variadic()
    compiled = analogc.compile(model, (X, X + 1), {"a": X}, target="ideal")
    torch.testing.assert_close(compiled(X, X + 1, a=X), model(X, X + 1, a=X))
    with pytest.raises(InputError):
        compiled(X)


# -- dynamic shapes -------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("target", ["ideal", "generic-8bit"])
def test_batch_makes_the_first_dim_dynamic_whatever_the_example(rows: int, target: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    compiled = analogc.compile(
        model, (X[:rows],), target=target, dynamic_shapes="batch", check=True
    )
    whole = torch.cat([X, -X])
    together = compiled(whole)
    for size in (1, 2, 3, 5):
        torch.testing.assert_close(compiled(whole[:size]), together[:size], rtol=1e-5, atol=1e-6)


def test_batch_covers_every_tensor_of_nested_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, a: dict[str, Tensor], b: Tensor, scale: float = 1.0) -> Tensor:
            out: Tensor = self.layer(a["x"]) + b * scale
            return out

    model = Two()
    compiled = analogc.compile(model, ({"x": X},), {"b": X}, target="ideal", dynamic_shapes="batch")
    for rows in (1, 4):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(compiled({"x": x}, b=x), model({"x": x}, x))


def test_batch_keeps_other_dims_fixed() -> None:
    compiled = analogc.compile(convnet().eval(), (IMAGES,), dynamic_shapes="batch")
    assert compiled(torch.randn(7, 2, 5, 5)).shape == (7, 3)
    with pytest.raises(InputError, match=r"\[any, 2, 5, 5\]"):
        compiled(torch.randn(7, 2, 6, 6))


def test_batch_works_with_batch_norm_in_training() -> None:
    model = convnet().train()
    compiled = analogc.compile(model, (IMAGES[:1],), target="ideal", dynamic_shapes="batch")
    assert compiled(torch.randn(5, 2, 5, 5)).shape == (5, 3)


def test_explicit_dims_are_passed_to_export() -> None:
    model = nn.Conv1d(2, 3, 3).eval()
    x = torch.randn(2, 2, 9)
    dims = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("time", min=4, max=64)},)
    compiled = analogc.compile(model, (x,), target="ideal", dynamic_shapes=dims, check=True)
    for shape in ((1, 2, 5), (4, 2, 64)):
        y = torch.randn(*shape)
        torch.testing.assert_close(compiled(y), model(y), rtol=1e-5, atol=1e-6)


def test_without_dynamic_shapes_another_batch_is_an_input_error() -> None:
    compiled = analogc.compile(nn.Linear(6, 2), (X,))
    with pytest.raises(InputError, match="dynamic_shapes='batch'"):
        compiled(X[:2])


def test_model_that_fixes_the_batch_cannot_have_a_dynamic_one() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x).view(3, 2, 3)
            return out

    with pytest.raises(UnsupportedError, match="fixes the size of its first dim") as info:
        analogc.compile(Fixed(), (X,), dynamic_shapes="batch")
    assert "view(-1" in str(info.value.fix)
    compiled = analogc.compile(Fixed(), (X,))
    assert compiled(X).shape == (3, 2, 3)


def test_unknown_dynamic_shapes_are_an_input_error() -> None:
    with pytest.raises(InputError, match="dynamic_shapes"):
        analogc.compile(nn.Linear(6, 2), (X,), dynamic_shapes="rows")


# -- dead code ------------------------------------------------------------------------------------


def test_dead_code_gets_no_tile() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.live, self.dead = nn.Linear(6, 6), nn.Linear(6, 600)

        def forward(self, x: Tensor) -> Tensor:
            self.dead(x).sum()
            out: Tensor = self.live(x)
            return out

    model = Dead()
    compiled = analogc.compile(model, (X,), check=True)
    assert [t.array for t in compiled.tiles] == ["live"]
    assert "dead" not in compiled.ir()
    assert compiled.coverage.macs == 3 * 6 * 6
    assert compiled.get_parameter("dead.weight") is model.dead.weight


# -- what cannot be captured ----------------------------------------------------------------------


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        if y.sum() > 0:  # the branch
            return y
        return -y


class Raises(Branch):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y @ torch.zeros(7, 7)  # the mistake


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.rstrip().endswith(text))


@pytest.mark.parametrize(
    ("model", "message", "line", "fix"),
    [
        (Branch, "branch depends on tensor values", "# the branch", "torch.where"),
        (Raises, "could not capture Raises", "# the mistake", r"model(*example_inputs) runs"),
    ],
)
def test_error_of_capture_names_the_source_line_and_a_fix(
    model: type[nn.Module], message: str, line: str, fix: str
) -> None:
    with pytest.raises(UnsupportedError, match=message) as info:
        analogc.compile(model(), (X,), capture="export")
    assert f"{HERE}:{line_of(line)}" in str(info.value.where)
    assert fix in str(info.value.fix)
    assert info.value.__cause__ is not None


def test_torch_does_not_log_what_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnsupportedError):
        analogc.compile(Raises(), (X,))
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_failed_capture_leaves_no_hook_on_the_model() -> None:
    model = Raises()
    with pytest.raises(UnsupportedError):
        analogc.compile(model, (X,))
    assert not model._forward_hooks
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("whole", [True, False])
def test_script_module_is_refused_with_advice(whole: bool) -> None:
    scripted = torch.jit.script(nn.Linear(6, 6))
    model = scripted if whole else nn.Sequential(nn.Tanh(), scripted)
    with pytest.raises(UnsupportedError, match="TorchScript") as info:
        analogc.compile(model, (X,))
    assert "nn.Module that it was made from" in str(info.value.fix)
    if not whole:
        assert info.value.where == "module 1"


@pytest.mark.parametrize("dynamic", [None, "batch"])
@pytest.mark.parametrize("inputs", [(), (X, X), (X, X, X)])
def test_wrong_number_of_example_inputs_is_an_input_error(
    inputs: tuple[Tensor, ...], dynamic: str | None
) -> None:
    with pytest.raises(InputError, match="example inputs do not fit"):
        analogc.compile(nn.Linear(6, 6), inputs, dynamic_shapes=dynamic)


def test_example_input_of_the_wrong_shape_is_explained() -> None:
    with pytest.raises(UnsupportedError, match="could not capture Linear") as info:
        analogc.compile(nn.Linear(6, 6), (torch.randn(3, 5),))
    assert info.value.where is None or "<" not in info.value.where


@pytest.mark.parametrize("model", [lambda x: x, nn.functional.linear, "model", None, nn.Linear])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="model must be an nn.Module"):
        analogc.compile(model, (X,))


def test_example_inputs_must_be_a_tuple_and_must_be_there() -> None:
    with pytest.raises(InputError, match="tuple"):
        analogc.compile(nn.Linear(6, 6), X)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="missing"):
        analogc.compile(nn.Linear(6, 6))


def test_unknown_capture_method_is_refused() -> None:
    with pytest.raises(InputError, match="capture must be"):
        analogc.compile(nn.Linear(6, 6), (X,), capture="jit")  # type: ignore[arg-type]
    exported = torch.export.export(nn.Linear(6, 6), (X,))
    with pytest.raises(InputError, match="needs a module"):
        analogc.compile(exported, (X,), capture="symbolic_trace")
