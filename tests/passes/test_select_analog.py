from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.utils import parametrizations

from analogc import DEFAULT_PASSES, LayerInfo, targets
from analogc.passes.base import META
from analogc.passes.macs import count_macs
from analogc.passes.select_analog import ZERO, Analog, base_name, is_compute
from analogc.runtime.mapping import Digital, TileMapping

if TYPE_CHECKING:
    from tests.passes.conftest import Lower, Make

BEFORE = "inline-regions,canonicalize,fold-batch-norm"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        return y


X = torch.randn(2, 4, 7, 6)


def test_layers_are_analog_and_the_rest_has_a_reason(lower: Lower) -> None:
    lowered = lower(Net(), X)
    lowered.run(BEFORE)
    before = lowered.ir

    assert lowered.run("select-analog") is False

    records = {n.name: n.meta.get(META) for n in lowered.module.graph.nodes}
    assert lowered.ir.replace(" {analog}", "") == before
    assert isinstance(records["conv2d"], Analog) and isinstance(records["linear"], Analog)
    for name in ("relu", "mean"):
        assert records[name] == Digital("rule", "no multiply with a weight", 0, "")
    assert records["x"] is None and records["output"] is None


def test_layer_info_says_what_a_predicate_needs(lower: Lower) -> None:
    seen: list[LayerInfo] = []
    lowered = lower(Net(), X)

    def look(info: LayerInfo) -> bool:
        seen.append(info)
        return True

    lowered.ctx.select = look
    lowered.run(BEFORE, "select-analog")

    macs = 2 * 6 * 5 * 4 * (2 * 3 * 3)
    assert seen == [
        LayerInfo("conv", "conv2d", "conv", "Conv2d", (6, 2, 3, 3), 2, macs),
        LayerInfo("head", "linear", "head", "Linear", (5, 6), 1, 2 * 5 * 6),
    ]


def test_the_user_can_keep_layers_digital(lower: Lower) -> None:
    lowered = lower(Net(), X)
    lowered.ctx.select = lambda info: info.op == "linear"
    lowered.run(BEFORE, "select-analog")

    assert lowered.record("aten.conv2d") == Digital(
        "choice", "kept digital by select=", 2 * 6 * 5 * 4 * 18, "conv"
    )
    assert isinstance(lowered.record("aten.linear"), Analog)


def test_a_predicate_that_raises_is_not_hidden(lower: Lower) -> None:
    def broken(info: LayerInfo) -> bool:
        raise KeyError(info.name)

    lowered = lower(Net(), X)
    lowered.ctx.select = broken

    with pytest.raises(KeyError, match="conv"):
        lowered.run(BEFORE, "select-analog")


def test_a_graph_without_layers_gets_reasons_only(lower: Lower, make: Make) -> None:
    lowered = lower(make(lambda m, x: torch.softmax(x.relu(), -1)), torch.randn(2, 3))

    lowered.run(BEFORE, "select-analog")

    records = [n.meta[META] for n in lowered.module.graph.nodes if n.op == "call_function"]
    assert {type(record) for record in records} == {Digital}


# -- names ----------------------------------------------------------------------------------------


def analog(lowered: Any) -> list[tuple[str, str]]:
    """Layer and array of every analog node."""
    return [
        (n.meta[META].info.name, n.meta[META].array)
        for n in lowered.module.graph.nodes
        if isinstance(n.meta.get(META), Analog)
    ]


def test_a_weight_that_is_used_twice_has_one_array(lower: Lower) -> None:
    fc = nn.Linear(4, 4)
    lowered = lower(nn.Sequential(fc, nn.ReLU(), fc), torch.randn(3, 4))
    lowered.run(BEFORE, "select-analog")

    assert analog(lowered) == [("0", "0"), ("0@2", "0")]


def test_tied_weights_have_one_array(lower: Lower) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    lowered = lower(model, torch.randn(3, 4))
    lowered.run(BEFORE, "select-analog")

    assert analog(lowered) == [("0", "0"), ("0@2", "0")]


def test_different_parts_of_one_parameter_have_arrays_of_their_own(
    lower: Lower, make: Make
) -> None:
    def run(m: Any, x: Tensor) -> list[Tensor]:
        q, k, _ = m.W.chunk(3)
        return [F.linear(x, q), F.linear(x, k), F.linear(x, q), x @ m.W.t()[:, :2]]

    lowered = lower(make(run, W=torch.randn(9, 4)), torch.randn(2, 4))
    lowered.run(BEFORE, "select-analog")

    assert analog(lowered) == [("W", "W"), ("W~2", "W~2"), ("W@2", "W"), ("W~3", "W~3")]


def test_arrays_keep_their_names_in_the_other_graph_of_a_model(lower: Lower) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    first = lower(model.eval(), X, target=targets.generic_8bit())
    first.run(BEFORE, "select-analog")
    first.ctx.root.train()
    second = lower(model, X, like=first)
    second.run(BEFORE, "select-analog")

    # Folded in one, plain in the other: not the same weight. Each is layer "0" of its graph.
    assert analog(first) == [("0", "0")]
    assert analog(second) == [("0", "0~2")]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5))), "0"),
        (nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 5))), "0"),
        (nn.Sequential(nn.Sequential(nn.Linear(4, 5))), "0.0"),
        (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), "0"),
    ],
)
def test_layers_are_named_after_their_largest_parameter(
    model: nn.Module, name: str, lower: Lower
) -> None:
    lowered = lower(model.eval(), torch.randn(3, 4))
    lowered.run(BEFORE, "select-analog")

    assert analog(lowered) == [(name, name)]


def test_a_weight_without_parameters_is_a_constant(lower: Lower, make: Make) -> None:
    lowered = lower(make(lambda m, x: x @ torch.ones(4, 5)), torch.randn(3, 4))
    lowered.run(BEFORE, "select-analog")

    assert analog(lowered) == [("constant", "constant")]


def test_a_parameter_named_weight_keeps_its_name(lower: Lower) -> None:
    lowered = lower(nn.Linear(4, 5), torch.randn(3, 4))
    lowered.run(BEFORE)

    (node,) = lowered.nodes("aten.linear")
    assert isinstance(node.args[1], fx.Node)
    assert base_name(node.args[1]) == "weight"


# -- reasons --------------------------------------------------------------------------------------

NOTHING_TO_STORE = "activation x activation: nothing to store"


@pytest.mark.parametrize(
    ("function", "shapes", "weights", "op", "expected"),
    [
        (
            lambda m, x, y: x @ y,
            ((3, 4), (4, 5)),
            {},
            "aten.matmul",
            ("rule", NOTHING_TO_STORE, 60),
        ),
        (
            lambda m, x, y: F.linear(x, y),
            ((3, 4), (5, 4)),
            {},
            "aten.linear",
            ("rule", NOTHING_TO_STORE, 60),
        ),
        (
            lambda m, x, y: F.conv1d(x, y),
            ((2, 4, 9), (6, 4, 3)),
            {},
            "aten.conv1d",
            ("rule", NOTHING_TO_STORE, 2 * 6 * 7 * 12),
        ),
        (
            lambda m, x: F.scaled_dot_product_attention(x, x, x),
            ((2, 3, 4),),
            {},
            "aten.scaled_dot_product_attention",
            ("rule", NOTHING_TO_STORE, 2 * 3 * 4 * 3 * 2),
        ),
        (
            lambda m, x: torch.bmm(x, m.W),
            ((2, 3, 4),),
            {"W": (2, 4, 5)},
            "aten.bmm",
            ("unsupported", "aten.bmm has no analog form yet", 2 * 3 * 5 * 4),
        ),
        (
            lambda m, x: torch.einsum("ij,jk->ik", x, m.W),
            ((3, 4),),
            {"W": (4, 5)},
            "aten.einsum",
            ("unsupported", "aten.einsum has no analog form yet", 60),
        ),
        (
            lambda m, x: F.conv_transpose1d(x, m.W),
            ((2, 4, 9),),
            {"W": (4, 6, 3)},
            "aten.conv_transpose1d",
            ("unsupported", "aten.conv_transpose1d has no analog form yet", 2 * 4 * 9 * 6 * 3),
        ),
        (
            lambda m, x: x * (m.W @ m.W).sum(),
            ((3, 4),),
            {"W": (4, 4)},
            "aten.mul.Tensor",
            ("rule", "no multiply with a weight", 0),
        ),
        (
            lambda m, x: x @ F.dropout(m.W, 0.5, training=True),
            ((3, 4),),
            {"W": (4, 4)},
            "aten.matmul",
            None,
        ),
    ],
)
def test_reasons(
    function: Any,
    shapes: tuple[tuple[int, ...], ...],
    weights: dict[str, tuple[int, ...]],
    op: str,
    expected: tuple[str, str, int] | None,
    lower: Lower,
    make: Make,
) -> None:
    model = make(function, **{name: torch.randn(shape) for name, shape in weights.items()})
    lowered = lower(model, *(torch.randn(shape) for shape in shapes))

    lowered.run(BEFORE, "select-analog")

    record = lowered.record(op)
    assert isinstance(record, Digital)
    if expected is not None:
        assert (record.rule, record.reason, record.macs) == expected


def test_a_weight_that_the_forward_writes_is_no_weight(lower: Lower) -> None:
    class Hebbian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("W", torch.zeros(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            weight: Any = self.W
            weight.add_(1)
            return F.linear(x, weight)

    lowered = lower(Hebbian(), torch.randn(3, 4))
    lowered.run(BEFORE, "select-analog")

    record = lowered.record("aten.linear")
    assert (record.rule, record.reason) == ("rule", "its weight changes within a forward")


def test_a_stored_operand_that_the_forward_writes_is_no_activation(lower: Lower) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.keys = nn.Parameter(torch.randn(2, 4, 5))

        def forward(self, x: Tensor) -> Tensor:
            keys = self.keys * 2
            keys /= 3
            return torch.bmm(x, keys)

    lowered = lower(Scaled(), torch.randn(2, 3, 4))
    lowered.run(BEFORE, "select-analog")

    record = lowered.record("aten.bmm")
    assert (record.rule, record.reason) == ("rule", "its weight changes within a forward")


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        (torch.complex64, "its weight is complex64: tiles hold real numbers"),
        (torch.int64, "its weight is int64: tiles hold real numbers"),
    ],
)
def test_weights_that_are_no_real_numbers_stay_digital(
    dtype: torch.dtype, reason: str, lower: Lower, make: Make
) -> None:
    weight = torch.ones(4, 5, dtype=dtype)
    lowered = lower(make(lambda m, x: x @ m.W, W=weight), torch.ones(3, 4, dtype=dtype))

    lowered.run(BEFORE, "select-analog")

    record = lowered.record("aten.linear")
    assert record.rule == "unsupported" and record.reason.startswith(reason)
    assert torch.equal(lowered(torch.ones(3, 4, dtype=dtype)), torch.full((3, 5), 4, dtype=dtype))


@pytest.mark.parametrize("shape", [(0, 4), (5, 0)])
def test_empty_weights_stay_digital(shape: tuple[int, int], lower: Lower, make: Make) -> None:
    model = make(lambda m, x: F.linear(x, m.W), W=torch.empty(shape))
    lowered = lower(model, torch.randn(3, shape[1]))

    lowered.run(BEFORE, "select-analog")

    assert lowered.record("aten.linear").reason == "its weight is empty"


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x + m.W.type_as(x),
        lambda m, x: x.type_as(m.W) * 2,
        lambda m, x: torch.isclose(x, m.W),
        lambda m, x: x.greater(m.W),
        lambda m, x: x.diff(dim=0, prepend=m.W),
        lambda m, x: m.W.repeat_interleave(x[0].abs().long() + 1, output_size=12, dim=1),
    ],
    ids=["type_as", "as-type", "isclose", "greater", "diff", "repeat_interleave"],
)
def test_what_multiplies_by_no_matrix_is_digital_by_rule(
    function: Any, lower: Lower, make: Make
) -> None:
    lowered = lower(make(function, W=torch.randn(3, 4)), torch.randn(3, 4))

    lowered.run(BEFORE, "select-analog")

    records = [node.meta.get(META) for node in lowered.module.graph.nodes]
    found = [record for record in records if isinstance(record, Digital)]
    assert found and all(record.rule == "rule" and not record.macs for record in found)


def _state_in_steps(m: Any, x: Tensor) -> Tensor:
    """A linear attention's scan: the first state is zeros, the others are activations."""
    state = torch.zeros(2, 5, 4)
    out = []
    for step in x.unbind(1):
        q = F.linear(step, m.W)[:, None]
        out.append(q @ state.mT.to(q.dtype).mT.reshape(2, 5, 4))
        state = state + q.mT @ step[:, None]
    return torch.cat(out, 1)


@pytest.mark.parametrize(
    "function",
    [
        _state_in_steps,
        lambda m, x: F.linear(x, m.W) @ torch.zeros(5, 4),
        lambda m, x: F.scaled_dot_product_attention(
            x, torch.zeros(2, 6, 4), torch.ones(2, 6, 4) * x.sum()
        ),
        lambda m, x: F.conv1d(x, torch.zeros_like(m.W)[:3, :3, None]),
    ],
    ids=["state", "matmul", "attention", "conv"],
)
def test_zeros_that_the_graph_makes_stay_digital(function: Any, lower: Lower, make: Make) -> None:
    model, x = make(function, W=torch.randn(5, 4)), torch.randn(2, 3, 4)
    lowered = lower(model, x)

    lowered.run(*DEFAULT_PASSES)

    records = [node.meta.get(META) for node in lowered.module.graph.nodes]
    assert any(isinstance(r, Digital) and r.macs and r.reason == ZERO for r in records)
    assert all(r.array == "W" for r in records if isinstance(r, TileMapping))
    assert not any(isinstance(r, Digital) and r.rule == "unsupported" for r in records)
    torch.testing.assert_close(lowered(x), model(x))


def test_attention_products_stay_digital_and_projections_do_not(lower: Lower, make: Make) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = make(lambda m, x: attention(x, x, x, need_weights=False)[0], attention=attention)
    lowered = lower(model, torch.randn(2, 3, 8))

    lowered.run(BEFORE, "select-analog")

    assert analog(lowered) == [
        ("attention.in_proj_weight", "attention.in_proj_weight"),
        ("attention.out_proj", "attention.out_proj"),
    ]
    assert lowered.record("aten.scaled_dot_product_attention").reason == NOTHING_TO_STORE


def test_products_inside_a_region_are_reported(lower: Lower, make: Make) -> None:
    fc = nn.Linear(4, 4)

    def run(m: Any, x: Tensor) -> Any:
        start = (torch.tensor(0), x)
        return while_loop(lambda i, t: i < 3, lambda i, t: (i + 1, m.fc(t)), start)

    lowered = lower(make(run, fc=fc), torch.randn(3, 4))
    lowered.run(BEFORE, "select-analog")

    (record,) = [
        r
        for n in lowered.module.graph.nodes
        if isinstance(r := n.meta.get(META), Digital) and r.macs
    ]
    assert record.rule == "unsupported"
    assert record.reason.startswith("1 products inside a while_loop")
    assert record.macs == 48


# -- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "shapes", "op", "macs"),
    [
        (lambda m, x, y: x @ y, ((7, 3, 4), (4, 5)), "aten.matmul", 7 * 3 * 5 * 4),
        (lambda m, x, y: torch.bmm(x, y), ((7, 3, 4), (7, 4, 5)), "aten.bmm", 7 * 3 * 5 * 4),
        (lambda m, x: x @ x, ((4, 4),), "aten.matmul", 4 * 4 * 4),
        (lambda m, x: torch.einsum("ij,jk->ik", x, x), ((4, 4),), "aten.einsum", 4 * 4 * 4),
        (
            lambda m, c, x, y: torch.addmm(c, x, y),
            ((3, 5), (3, 4), (4, 5)),
            "aten.addmm",
            3 * 4 * 5,
        ),
        (
            lambda m, x, y: F.conv2d(x, y, groups=2),
            ((2, 4, 5, 5), (6, 2, 3, 3)),
            "aten.conv2d",
            2 * 6 * 9 * 18,
        ),
        (
            lambda m, x, y: F.conv_transpose2d(x, y, groups=2),
            ((2, 4, 5, 5), (4, 3, 3, 3)),
            "aten.conv_transpose2d.input",
            2 * 4 * 25 * 3 * 9,
        ),
        (
            lambda m, x, y: torch.einsum("...ij,kj->...ik", x, y),
            ((7, 3, 4), (5, 4)),
            "aten.einsum",
            7 * 3 * 5 * 4,
        ),
        (
            lambda m, x, y, w: F.bilinear(x, y, w),
            ((3, 4), (3, 5), (6, 4, 5)),
            "aten.bilinear",
            3 * 6 * 4 * 5,
        ),
        (lambda m, x, y: x + y, ((3, 4), (3, 4)), "aten.add.Tensor", 0),
    ],
)
def test_multiply_accumulates(
    function: Any,
    shapes: tuple[tuple[int, ...], ...],
    op: str,
    macs: int,
    lower: Lower,
    make: Make,
) -> None:
    lowered = lower(make(function), *(torch.randn(shape) for shape in shapes))

    (node,) = lowered.nodes(op)
    assert count_macs(node) == macs


# torch.export's own remark on how torch's recurrent modules keep their weights.
@pytest.mark.filterwarnings("ignore:.*were assigned during export.*:UserWarning")
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.LSTM(4, 5, num_layers=2, bidirectional=True), (7, 3, 4)),
        (nn.GRU(4, 5, batch_first=True), (3, 7, 4)),
        (nn.RNN(4, 5), (7, 3, 4)),
        (nn.LSTMCell(4, 5), (3, 4)),
    ],
    ids=["lstm", "gru", "rnn", "lstm-cell"],
)
def test_recurrent_layers_are_unsupported_products_of_all_their_matrices(
    model: nn.Module, shape: tuple[int, ...], lower: Lower
) -> None:
    lowered = lower(model, torch.randn(shape))
    lowered.run(BEFORE, "select-analog")

    (record,) = [
        r
        for n in lowered.module.graph.nodes
        if isinstance(r := n.meta.get(META), Digital) and r.macs
    ]
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert record.rule == "unsupported"
    assert record.macs == torch.Size(shape[:-1]).numel() * matrices


def test_multiply_accumulates_of_a_dynamic_batch_are_those_of_the_example(lower: Lower) -> None:
    lowered = lower(nn.Linear(4, 5), torch.randn(3, 4), dynamic_shapes="batch")

    (node,) = lowered.nodes("aten.linear")
    assert count_macs(node) == 60


def test_views_and_bookkeeping_compute_nothing(lower: Lower, make: Make) -> None:
    model = make(lambda m, x: x.t().reshape(-1).view(4, 3).contiguous().to(torch.float32)[None] * 2)
    lowered = lower(model, torch.randn(3, 4))

    assert [n.name for n in lowered.module.graph.nodes if is_compute(n)] == ["mul"]


@pytest.mark.parametrize(
    "product",
    [
        lambda m, x: F.scaled_dot_product_attention(x, x, x, attn_mask=m.W),
        lambda m, x: torch.addmm(m.W, x[0], x[0].t()),
        lambda m, x: torch.baddbmm(m.W, x, x.mT),
    ],
)
def test_what_is_only_added_to_a_product_is_no_stored_operand(
    product: Any, lower: Lower, make: Make
) -> None:
    lowered = lower(make(product, W=torch.randn(6, 6)), torch.randn(2, 6, 4))
    lowered.run("inline-regions,lower-products", BEFORE, "select-analog")

    (record,) = (
        record
        for node in lowered.module.graph.nodes
        if isinstance(record := node.meta.get(META), Digital) and record.macs
    )
    assert record.rule == "rule"
    assert record.reason == "activation x activation: nothing to store"
