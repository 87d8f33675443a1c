from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from analogc.passes.stationary import (
    expression_key,
    leaves,
    live_nodes,
    stationary_nodes,
    without_transpose,
)

if TYPE_CHECKING:
    from tests.passes.conftest import Lower, Lowered, Make

aten = torch.ops.aten


def fixed(lowered: Lowered) -> set[str]:
    """Names of the stationary nodes that compute something."""
    return {n.name for n in stationary_nodes(lowered.module.graph) if n.op != "get_attr"}


def test_functions_of_parameters_and_buffers_are_stationary(lower: Lower, make: Make) -> None:
    model = make(
        lambda m, x: (m.W * 2).t() + x * m.mask.sum(),
        W=torch.randn(3, 4),
        mask=torch.ones(4, 3, dtype=torch.int64),
    )
    lowered = lower(model, torch.randn(4, 3))

    assert fixed(lowered) == {"mul", "t", "sum_1"}
    live = {n.name for n in live_nodes(lowered.module.graph)}
    assert {"inputs_0", "mul_1", "add"} <= live and not live & {"mul", "t", "sum_1"}


def test_constants_are_stationary(lower: Lower, make: Make) -> None:
    lowered = lower(make(lambda m, x: x @ torch.eye(3)), torch.randn(4, 3))

    assert fixed(lowered) == {"eye"}


def test_parts_of_several_results_are_stationary(lower: Lower, make: Make) -> None:
    model = make(lambda m, x: x @ m.W.chunk(2, 1)[1], W=torch.randn(3, 4))
    lowered = lower(model, torch.randn(4, 3))

    assert {"chunk", "getitem_1"} <= fixed(lowered)


@pytest.mark.parametrize(
    "weight",
    [
        lambda m: F.dropout(m.W, 0.5, training=True),
        lambda m: m.W + torch.rand(3, 4),
        lambda m: m.W + torch.randn_like(m.W),
        lambda m: torch.bernoulli(m.W.sigmoid()),
    ],
)
def test_random_values_are_not_stationary(weight: Any, lower: Lower, make: Make) -> None:
    lowered = lower(make(lambda m, x: x @ weight(m), W=torch.randn(3, 4)), torch.randn(2, 3))

    (product,) = lowered.nodes("aten.matmul")
    assert product.args[1] not in stationary_nodes(lowered.module.graph)


def test_buffers_that_the_graph_writes_are_not_stationary(lower: Lower) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))
            self.register_buffer("steps", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.steps.add_(1)  # type: ignore[operator]
            return x * (self.weight * 2) + x * (self.steps * 2)  # type: ignore[operator]

    lowered = lower(Counter(), torch.randn(3))

    found = stationary_nodes(lowered.module.graph)
    targets = {str(n.target) for n in found if n.op == "get_attr"}
    assert targets == {"weight"}
    assert [str(n.all_input_nodes[0].target) for n in found if n.op != "get_attr"] == ["weight"]


def test_writing_a_view_is_writing_its_base(lower: Lower) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            table: Any = self.table
            table[0].copy_(x[0])
            y: Tensor = x @ table.t()
            return y

    lowered = lower(Model(), torch.randn(2, 4))

    assert stationary_nodes(lowered.module.graph) == set()


def test_writing_a_result_is_not_writing_what_it_was_computed_from() -> None:
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    scaled = graph.call_function(aten.mul.Tensor, (weight, 2))
    seen = graph.call_function(aten.view.default, (scaled, [-1]))
    graph.call_function(aten.add_.Tensor, (seen, 1))
    y = graph.call_function(aten.linear.default, (x, weight))
    z = graph.call_function(aten.view.default, (y, [-1]))
    graph.call_function(aten.relu_.default, (z,))
    graph.output((z, scaled))

    # add_ writes scaled by its view; relu_ writes y; neither writes weight.
    assert stationary_nodes(graph) == {weight}


VIEWS: dict[str, Any] = {
    "view": lambda w: w.view(-1),
    "dropout": lambda w: F.dropout(w, 0.5, training=False),
    "type_as": lambda w: w.type_as(torch.zeros(1)),
    "contiguous": lambda w: w.contiguous(),
    "einsum": lambda w: torch.einsum("ij->ji", w),
    "broadcast": lambda w: torch.broadcast_tensors(w, torch.ones(1))[0],
}


@pytest.mark.parametrize("name", VIEWS)
def test_writing_what_may_be_a_view_is_writing_its_base(name: str, lower: Lower) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            VIEWS[name](self.table).mul_(2)
            y: Tensor = x @ self.table  # type: ignore[operator]
            return y

    lowered = lower(Model(), torch.randn(2, 4))

    assert "table" not in {n.target for n in stationary_nodes(lowered.module.graph)}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3), nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), nn.Linear(6, 4),
        nn.Sequential(nn.Conv2d(2, 4, 3, padding="same"), nn.ReLU6(), nn.AdaptiveAvgPool2d(2)),
        nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)), nn.ConvTranspose2d(2, 4, 3),
    ],
)  # fmt: skip
def test_writing_a_result_leaves_the_weight_alone(layer: nn.Module, lower: Lower) -> None:
    lowered = lower(nn.Sequential(layer, nn.ReLU(inplace=True)).eval(), torch.randn(3, 2, 6, 6))

    tensors = set(lowered.module.graph.find_nodes(op="get_attr"))
    assert tensors and tensors <= stationary_nodes(lowered.module.graph)


@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_stationary_in_eval_mode_only(training: bool, lower: Lower) -> None:
    lowered = lower(nn.BatchNorm1d(3).train(training), torch.randn(4, 3))

    found = {str(n.target) for n in stationary_nodes(lowered.module.graph)}
    assert ("running_var" in found) is not training
    assert "weight" in found


# -- keys and leaves ------------------------------------------------------------------------------


def test_equal_expressions_have_equal_keys(lower: Lower, make: Make) -> None:
    model = make(
        lambda m, x: [x * m.W.t(), x * m.W.t(), x * m.V.t(), x * m.W.t().contiguous()],
        W=torch.randn(3, 4),
        V=torch.randn(3, 4),
    )
    lowered = lower(model, torch.randn(4, 3))

    keys = [expression_key(node.args[1]) for node in lowered.nodes("aten.mul.Tensor")]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda w: w.sum(0), lambda w: w.sum(1)),
        (lambda w: w[0], lambda w: w[1]),
        (lambda w: w * 2, lambda w: w * 2.5),
        (lambda w: w.chunk(2)[0], lambda w: w.chunk(2)[1]),
        (lambda w: torch.add(w, w), lambda w: torch.add(w, w, alpha=2)),
    ],
)
def test_other_arguments_are_other_keys(one: Any, other: Any, lower: Lower, make: Make) -> None:
    model = make(lambda m, x: [x - one(m.W), x - other(m.W)], W=torch.randn(4, 4))
    lowered = lower(model, torch.randn(()))

    keys = [expression_key(node.args[1]) for node in lowered.nodes("aten.sub.Tensor")]
    assert len(set(keys)) == 2


def test_leaves_are_the_tensors_of_an_expression_once_each(lower: Lower, make: Make) -> None:
    model = make(
        lambda m, x: x * (m.A + m.B * m.A).sum(),
        A=torch.randn(3),
        B=torch.randn(3),
        C=torch.ones(1),
    )
    lowered = lower(model, torch.randn(3))

    (total,) = lowered.nodes("aten.sum")
    assert sorted(str(leaf.target) for leaf in leaves(total)) == ["A", "B"]


@pytest.mark.parametrize(
    ("turn", "found"),
    [
        (lambda w: w.t(), True),
        (lambda w: w.T, True),
        (lambda w: w.mT, True),
        (lambda w: w.transpose(0, 1), True),
        (lambda w: w.transpose(-2, -1), True),
        (lambda w: w.transpose(-2, 1), True),
        (lambda w: w.transpose(-1, 1), False),
        (lambda w: w.permute(1, 0), True),
        (lambda w: w.permute(-1, 0), True),
        (lambda w: w.permute(0, 1), False),
        (lambda w: w[None].transpose(1, 2), False),
        (lambda w: w.contiguous(), False),
    ],
)
def test_transposes_are_seen_through(turn: Any, found: bool, lower: Lower, make: Make) -> None:
    lowered = lower(make(lambda m, x: x * turn(m.W), W=torch.randn(3, 3)), torch.randn(3, 3))

    (node,) = lowered.nodes("aten.mul.Tensor")
    operand = node.args[1]
    assert isinstance(operand, fx.Node)
    base = without_transpose(operand)
    assert (base is not None and str(base.target) == "W") is found
