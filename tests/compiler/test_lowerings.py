"""``lowerings=``: a user's own operators, modules and functions in terms of torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import analogc
from analogc.errors import InputError, UnsupportedError

HERE = Path(__file__).name


@torch.library.custom_op("analogc_test::scaled_linear", mutates_args=())
def scaled_linear(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    """A body that nothing can look into."""
    return torch.from_numpy(x.detach().numpy() @ weight.detach().numpy().T) * scale


@scaled_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("analogc_test::both", mutates_args=())
def both(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two results."""
    y = x @ weight.t()
    return y, y.sum(-1)


@both.register_fake
def _(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    return y, y.new_empty(x.shape[:-1])


OPERATOR = torch.ops.analogc_test.scaled_linear.default


def in_torch(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    return F.linear(x, weight) * scale


class Own(nn.Module):
    """Calls the operator in a submodule's forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = scaled_linear(x, self.weight, 0.5)
        return out


class Opaque(nn.Module):
    """A forward that leaves torch, so that nothing can trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        y = torch.from_numpy(x.detach().numpy() @ self.weight.detach().numpy().T)
        return 2 * y if twice else y


class Keeps(Opaque):
    """Has the forward of Opaque."""


class Overrides(Opaque):
    """Computes something else."""

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        return F.linear(x, self.weight).relu()


def opaque(module: Opaque, x: Tensor, *, twice: bool = False) -> Tensor:
    y = F.linear(x, module.weight)
    return 2 * y if twice else y


X = torch.linspace(-1, 1, 18).reshape(3, 6)


def exact(model: nn.Module, *inputs: Any, **options: Any) -> analogc.CompiledModel:
    """Compile for ideal tiles; the result equals the model's."""
    compiled = analogc.compile(model, inputs, target="ideal", check=True, **options)
    torch.testing.assert_close(compiled(*inputs), model(*inputs))
    return compiled


@pytest.mark.parametrize(
    "key", [scaled_linear, torch.ops.analogc_test.scaled_linear, OPERATOR],
    ids=["custom_op", "packet", "overload"],
)  # fmt: skip
@pytest.mark.parametrize("dynamic", [None, "batch"])
def test_operator_goes_analog_by_its_lowering(key: Any, dynamic: Any) -> None:
    model = nn.Sequential(Own(), nn.ReLU(), nn.Linear(5, 2)).eval()
    before = analogc.compile(model, (X,), target="ideal")
    assert [r.op for r in before.coverage.unsupported] == ["analogc_test.scaled_linear"]
    assert "lowerings=" in before.coverage.unsupported[0].reason

    compiled = exact(model, X, lowerings={key: in_torch}, dynamic_shapes=dynamic, strict=True)

    assert list(compiled.weights) == ["0", "2"]
    row = compiled.coverage.analog[0]
    assert row.module == "0" and HERE in str(row.line)
    if dynamic:
        torch.testing.assert_close(compiled(X[:2]), model(X[:2]))


def test_lowered_operator_has_a_gradient_and_follows_its_parameter() -> None:
    model = Own().eval()
    compiled = exact(model, X, lowerings={OPERATOR: in_torch})
    compiled(X).sum().backward()
    torch.testing.assert_close(model.weight.grad, 0.5 * X.sum(0).expand(5, 6))
    with torch.no_grad():
        model.weight.mul_(2)
    torch.testing.assert_close(compiled(X), model(X))


def test_operator_with_several_results_is_lowered() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 6))

        def forward(self, x: Tensor) -> Tensor:
            y, total = both(x, self.weight)
            out: Tensor = y + total.unsqueeze(-1)
            return out

    def lowered(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y = F.linear(x, weight)
        return y, y.sum(-1)

    exact(Two().eval(), X, lowerings={both: lowered}, strict=True)


def test_tensors_that_a_lowering_holds_stay_live() -> None:
    model = Own().eval()
    turn = torch.eye(5).flip(0)

    def lowered(x: Tensor, weight: Tensor, scale: float) -> Tensor:
        assert weight is not model.weight
        return F.linear(x, model.weight) @ (turn @ turn) * scale

    compiled = exact(model, X, lowerings={OPERATOR: lowered})
    assert list(compiled.weights)[0] == "weight"
    with torch.no_grad():
        model.weight.add_(1)
    torch.testing.assert_close(compiled(X), model(X))
    assert dict(compiled.named_parameters()).keys() == {"weight"}


@pytest.mark.parametrize("kind", [Opaque, Keeps])
def test_module_class_is_lowered_in_subclasses_that_keep_its_forward(kind: type[Opaque]) -> None:
    model = nn.Sequential(kind(), nn.Linear(5, 2)).eval()
    compiled = exact(model, X, lowerings={Opaque: opaque}, strict=True)
    assert list(compiled.weights) == ["0", "1"]
    assert "forward" not in model[0].__dict__
    with torch.no_grad():
        model[0].weight.add_(1)  # type: ignore[operator]
    torch.testing.assert_close(compiled(X), model(X))


def test_subclass_with_a_forward_of_its_own_is_another_layer() -> None:
    model = nn.Sequential(Overrides()).eval()
    with pytest.raises(InputError, match="never calls Opaque"):
        analogc.compile(model, (X,), lowerings={Opaque: opaque})


def test_keyword_inputs_reach_the_lowering_of_a_module() -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Opaque()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x, twice=True)
            return out

    exact(Calls().eval(), X, lowerings={Opaque: opaque})


def test_lowering_may_call_what_it_replaces() -> None:
    def twice(module: nn.Linear, x: Tensor) -> Tensor:
        out: Tensor = module(2 * x) - module.forward(x)
        return out

    model = nn.Sequential(nn.Linear(6, 5, bias=False)).eval()
    exact(model, X, lowerings={nn.Linear: twice})


def outside(x: Tensor, weight: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy() @ weight.detach().numpy().T)


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return outside(x, weight)


class Calls(nn.Module):
    def __init__(self, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call
        self.weight = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight)


@pytest.mark.parametrize(
    ("key", "call"),
    [
        (outside, outside),
        (outside, lambda x, w: outside(x, w)),
        (Function, lambda x, w: Function.apply(x, w)),  # type: ignore[no-untyped-call]
    ],
    ids=["held", "global", "autograd"],
)
def test_python_function_is_lowered(key: Any, call: Any) -> None:
    exact(Calls(call).eval(), X, lowerings={key: F.linear}, strict=True)
    assert globals()["outside"] is outside and "apply" not in Function.__dict__


def test_other_mode_and_replaced_modules_are_lowered_too() -> None:
    model = nn.Sequential(Opaque(), nn.BatchNorm1d(5)).eval()
    compiled = exact(model, X, lowerings={Opaque: opaque})
    compiled.train()(X)
    assert list(compiled.weights) == ["0"]
    model.eval()
    compiled.eval()
    model[0] = Keeps()
    torch.testing.assert_close(compiled(X), model(X))
    both_ways = copy.deepcopy(compiled)
    torch.testing.assert_close(both_ways(X), model(X))


def test_file_needs_no_lowering(tmp_path: Path) -> None:
    compiled = exact(nn.Sequential(Own()).eval(), X, lowerings={OPERATOR: in_torch})
    compiled.save(tmp_path / "m.analogc")
    torch.testing.assert_close(analogc.load(tmp_path / "m.analogc")(X), compiled(X))


def test_exported_program_is_lowered_by_operator() -> None:
    exported = torch.export.export(Own().eval(), (X,))
    compiled = analogc.compile(exported, target="ideal", lowerings={OPERATOR: in_torch})
    assert len(compiled.coverage.analog) == 1


# -- wrong lowerings ------------------------------------------------------------------------------


def fails(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    raise KeyError("nothing here")


def no_gradient(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    with torch.no_grad():
        return in_torch(x, weight, scale)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, weight, scale: F.linear(x, weight)[:1], r"\[1, 5\] in place of .* \[3, 5\]"),
        (lambda x, weight, scale: F.linear(x, weight).double(), r"float64 \[3, 5\] in place of"),
        (lambda x, weight, scale: (x, weight), "tuple of 2 in place of a tensor"),
        (lambda x, weight, scale: None, "None in place of a tensor"),
        (lambda x, weight: x, r"takes \(x, weight\), but is called with"),
        (fails, "fails: KeyError"),
        (no_gradient, "_set_grad_enabled"),
    ],
    ids=["shape", "dtype", "tuple", "none", "arity", "raises", "no_grad"],
)  # fmt: skip
def test_wrong_lowering_of_an_operator_says_what_is_wrong(function: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as info:
        analogc.compile(nn.Sequential(Own()), (X,), lowerings={OPERATOR: function})
    assert "analogc_test.scaled_linear.default" in info.value.message
    assert HERE in str(info.value.where) and info.value.fix


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda module, x: F.linear(x, module.weight)[:1], r"float32 \[1, 5\] in place of"),
        (lambda module, x: module.weight.double(), "float64"),
        (lambda module: module.weight, r"takes \(\), but is called with"),
    ],
    ids=["shape", "dtype", "arity"],
)
def test_wrong_lowering_of_a_module_names_the_module(function: Any, message: str) -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(6, 5))
    with pytest.raises(InputError, match=message) as info:
        analogc.compile(model, (X,), lowerings={nn.Linear: function})
    assert info.value.where == "1" and "Linear" in info.value.message


@pytest.mark.parametrize(
    ("lowerings", "message"),
    [
        ([1], "takes a dict"),
        ({Own: 3}, "Own must be lowered by a function, got int"),
        ({5: in_torch}, "5 cannot be lowered"),
        ({nn.Module: in_torch}, "class of every module"),
        ({nn.functional.softmax: in_torch}, "softmax is a function of torch's own"),
        ({OPERATOR: in_torch}, "never calls analogc_test.scaled_linear.default"),
        ({scaled_linear: in_torch, Own: opaque}, "never calls .*scaled_linear, Own"),
        ({in_torch: in_torch}, "never calls in_torch"),
    ],
)
def test_wrong_key_is_named(lowerings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        analogc.compile(nn.Linear(6, 5), (X,), lowerings=lowerings)


def test_operator_that_writes_cannot_be_lowered() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu_(x + 1)

    with pytest.raises(InputError, match="writes one of its operands"):
        analogc.compile(Writes(), (X,), lowerings={torch.ops.aten.relu_.default: torch.relu})


class Branches(nn.Module):
    """No single graph: a Python ``if`` on values."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.own = nn.Linear(6, 6), Own()

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        if y.mean() > 0:
            y = y + 1
        out: Tensor = self.own(y)
        return out


def test_operators_are_lowered_in_every_graph_of_dynamo() -> None:
    x, model = torch.randn(3, 6), Branches().eval()
    compiled = analogc.compile(
        model, (x,), target="ideal", capture="dynamo", lowerings={OPERATOR: in_torch}, strict=True
    )
    assert len(compiled.graphs) == 2 and len(compiled.coverage.analog) == 2
    torch.testing.assert_close(compiled(x), model(x))
    with pytest.raises(InputError, match="the model never calls analogc_test::both"):
        analogc.compile(model, (x,), capture="dynamo", lowerings={both: lambda x, w: (x, w)})


def test_modules_are_lowered_in_one_graph_only() -> None:
    lowerings = {nn.Linear: lambda m, x: x @ m.weight.t() + m.bias}
    with pytest.raises(InputError, match="modules and functions are replaced in one graph"):
        analogc.compile(Branches(), (torch.randn(3, 6),), capture="dynamo", lowerings=lowerings)
    with pytest.raises(UnsupportedError, match="a Python branch depends on tensor values"):
        analogc.compile(Branches(), (torch.randn(3, 6),), lowerings=lowerings)
