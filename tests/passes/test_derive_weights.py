from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from analogc import targets
from analogc.passes.base import META
from analogc.passes.select_analog import Analog
from analogc.runtime.derived import DerivedWeight

if TYPE_CHECKING:
    from tests.passes.conftest import Lower, Lowered, Make

BEFORE = "inline-regions,canonicalize,fold-batch-norm,select-analog"


@pytest.fixture
def lower(lower: Lower) -> Lower:
    """For a target that folds: an ideal one keeps its batch norms."""
    return partial(lower, target=targets.generic_8bit())


def derived(lowered: Lowered) -> dict[str, DerivedWeight]:
    """All modules that the pass made, by name."""
    home = lowered.ctx.root.get_submodule("_analog.derived")
    return {name: m for name, m in home.named_children() if isinstance(m, DerivedWeight)}


def test_printed_form(lower: Lower) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)).eval()
    lowered = lower(model, torch.randn(3, 4))
    lowered.run(BEFORE)

    assert lowered.run("derive-weights") is True

    assert lowered.ir.splitlines() == [
        "%input_1: f32[3, 4] = input",
        "%derived_0_weight: f32[5, 4] = derive(@0.weight, @1.weight, @1.running_var)",
        "%derived_0_bias: f32[5] = derive(@0.weight, @0.bias, @1.weight, @1.bias, "
        "@1.running_mean, @1.running_var)",
        "%linear: f32[3, 5] = aten.linear(%input_1, %derived_0_weight, %derived_0_bias) {analog}",
        "output = (%linear)",
    ]
    assert set(derived(lowered)) == {"0_weight", "0_bias"}


def test_values_and_gradients_are_those_of_the_model(lower: Lower) -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6), nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(6 * 12, 5), dim=1),
    )  # fmt: skip
    model, x = model.double().eval(), torch.randn(2, 4, 6, 5).double()
    lowered = lower(model, x)
    lowered.run(BEFORE, "derive-weights")

    found, expected = lowered(x), model(x)

    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    parameters, grad = list(model.parameters()), torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, parameters, grad),
        torch.autograd.grad(expected, parameters, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_an_expression_is_evaluated_once_until_a_parameter_changes(lower: Lower) -> None:
    norm = nn.BatchNorm1d(5)
    model = nn.Sequential(nn.Linear(4, 5), norm).eval()
    x = torch.randn(3, 4)
    lowered = lower(model, x)
    lowered.run(BEFORE, "derive-weights")

    for _ in range(3):
        lowered(x)
    assert [m.evaluations for m in derived(lowered).values()] == [1, 1]

    with torch.no_grad():
        norm.bias.add_(1)
    torch.testing.assert_close(lowered(x), model(x))
    assert {name: m.evaluations for name, m in derived(lowered).items()} == {
        "0_weight": 1,
        "0_bias": 2,
    }


def test_plain_parameters_are_left_alone(lower: Lower) -> None:
    lowered = lower(nn.Sequential(nn.Linear(4, 5), nn.Conv1d(3, 2, 2)), torch.randn(3, 4))
    lowered.run(BEFORE)
    before = lowered.ir

    assert lowered.run("derive-weights") is False
    assert lowered.ir == before
    assert derived(lowered) == {}


def test_expressions_under_digital_layers_are_left_alone(lower: Lower, make: Make) -> None:
    model = make(
        lambda m, x: F.linear(x, m.W.tanh()) + m.b.exp(), W=torch.randn(5, 4), b=torch.ones(5)
    )
    lowered = lower(model, torch.randn(3, 4))
    lowered.ctx.select = lambda info: False
    lowered.run(BEFORE)

    assert lowered.run("derive-weights") is False


def test_a_bias_that_comes_from_an_input_is_left_alone(lower: Lower, make: Make) -> None:
    model = make(lambda m, x, b: F.linear(x, m.W, b), W=torch.randn(5, 4))
    lowered = lower(model, torch.randn(3, 4), torch.randn(5))
    lowered.run(BEFORE)

    assert lowered.run("derive-weights") is False


def test_equal_expressions_share_one_module_and_one_node(lower: Lower, make: Make) -> None:
    model = make(lambda m, x: F.linear(F.linear(x, m.W.tanh()), m.W.tanh()), W=torch.randn(4, 4))
    lowered = lower(model, torch.randn(3, 4))
    lowered.run(BEFORE, "derive-weights")

    first, second = lowered.nodes("aten.linear")
    assert first.args[1] is second.args[1]
    assert list(derived(lowered)) == ["W_weight"]


def test_parts_of_one_parameter_are_modules_of_their_own(lower: Lower, make: Make) -> None:
    def run(m: Any, x: Tensor) -> list[Tensor]:
        return [F.linear(x, part) for part in m.W.chunk(3)]

    model, x = make(run, W=torch.randn(9, 4)), torch.randn(2, 4)
    lowered = lower(model, x)
    lowered.run(BEFORE, "derive-weights")

    assert list(derived(lowered)) == ["W_weight", "W_2_weight", "W_3_weight"]
    torch.testing.assert_close(lowered(x), model(x))


def test_names_that_meet_are_told_apart(lower: Lower, make: Make) -> None:
    # "a.b" and "a_b" are both "a_b" as an attribute.
    inner = nn.Module()
    inner.b = nn.Parameter(torch.randn(4, 4))
    model = make(lambda m, x: x @ m.a.b @ m.a_b, a=inner, a_b=torch.randn(4, 4))
    x = torch.randn(2, 4)
    lowered = lower(model, x)
    lowered.run(BEFORE, "derive-weights")

    assert len(derived(lowered)) == 2
    torch.testing.assert_close(lowered(x), model(x))


def test_the_other_graph_of_a_model_uses_the_same_modules(lower: Lower, make: Make) -> None:
    model, x = make(lambda m, x: x @ m.W, W=torch.randn(4, 5)), torch.randn(2, 4)
    first = lower(model, x)
    first.run(BEFORE, "derive-weights")
    second = lower(model, x, like=first)
    second.run(BEFORE, "derive-weights")

    assert list(derived(first)) == ["W_weight"]
    first(x), second(x)
    assert derived(first)["W_weight"].evaluations == 1


def test_derived_nodes_carry_shape_and_the_record_stays(lower: Lower, make: Make) -> None:
    lowered = lower(make(lambda m, x: x @ m.W, W=torch.randn(4, 5)), torch.randn(2, 4))
    lowered.run(BEFORE, "derive-weights")

    (node,) = [n for n in lowered.module.graph.nodes if n.op == "call_module"]
    assert tuple(node.meta["val"].shape) == (5, 4)
    assert isinstance(lowered.nodes("aten.linear")[0].meta[META], Analog)


def test_derived_modules_hold_no_parameters(lower: Lower) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)).eval()
    lowered = lower(model, torch.randn(3, 4))
    lowered.run(BEFORE, "derive-weights")

    assert lowered.ctx.root.state_dict().keys() == model.state_dict().keys()
