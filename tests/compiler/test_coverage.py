"""The coverage report: what went analog, what did not and why, and how much work each is."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

import analogc
from analogc import LayerInfo
from analogc.compiler.coverage import CoverageReport, CoverageRow
from analogc.errors import InputError, UnsupportedError
from analogc.passes.lower_recurrent import LowerRecurrent

HERE = Path(__file__).name


class Use(nn.Module):
    """A module and a function that uses it."""

    def __init__(self, layer: nn.Module, use: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.use = layer, use

    def forward(self, x: Tensor) -> Any:
        return self.use(self.layer, x)


def call(layer: Any, x: Tensor) -> Any:
    return layer(x)


def first(layer: Any, x: Tensor) -> Any:
    return layer(x)[0]


def row(
    layer: nn.Module, shape: tuple[int, ...], use: Callable[[Any, Tensor], Any] = call, **more: Any
) -> CoverageRow:
    """The one row with work in it."""
    compiled = analogc.compile(Use(layer.eval(), use), (torch.randn(shape),), check=True, **more)
    rows = [r for r in compiled.coverage.rows if r.macs or r.kind != "rule"]
    assert len(rows) == 1
    return rows[0]


# (layer, input shape, multiply-accumulates counted by hand)
ANALOG: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "linear": (nn.Linear(11, 5), (7, 11), 7 * 11 * 5),
    "linear on sequences": (nn.Linear(11, 5), (2, 3, 11), 2 * 3 * 11 * 5),
    "linear on a vector": (nn.Linear(11, 5), (11,), 11 * 5),
    "conv1d": (nn.Conv1d(3, 5, 4), (2, 3, 10), 2 * 5 * 7 * 3 * 4),
    "conv2d": (nn.Conv2d(3, 5, 3), (2, 3, 8, 6), 2 * 5 * (6 * 4) * (3 * 9)),
    "conv2d strided, padded": (nn.Conv2d(3, 5, 3, 2, 1), (1, 3, 8, 8), 5 * (4 * 4) * (3 * 9)),
    "conv2d dilated": (nn.Conv2d(3, 5, 3, dilation=2), (1, 3, 8, 8), 5 * (4 * 4) * (3 * 9)),
    "conv2d same": (nn.Conv2d(3, 5, 3, padding="same"), (1, 3, 8, 8), 5 * 64 * 27),
    "conv2d grouped": (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 5, 5), 6 * 9 * (2 * 9)),
    "conv2d depthwise": (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 5, 5), 4 * 9 * 9),
    "conv2d unbatched": (nn.Conv2d(3, 5, 3), (3, 8, 6), 5 * 24 * 27),
    "conv3d": (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 3 * 27 * (2 * 8)),
}


@pytest.mark.parametrize("what", ANALOG)
def test_work_of_an_analog_layer_is_counted(what: str) -> None:
    layer, shape, macs = ANALOG[what]
    found = row(layer, shape)
    assert (found.kind, found.macs) == ("analog", macs)
    assert found.module == "layer"
    assert found.op.startswith("analogc.")


LSTM = (2 * 3) * 4 * 5 * (6 + 5)
LOWERED: dict[str, tuple[nn.Module, tuple[int, ...], Any, str, int]] = {
    "conv_transpose1d": (
        nn.ConvTranspose1d(3, 5, 4), (2, 3, 7), call, "aten.conv_transpose1d", 2 * 7 * 3 * 5 * 4,
    ),
    "conv_transpose2d": (
        nn.ConvTranspose2d(3, 5, 3, 2), (2, 3, 4, 4), call, "aten.conv_transpose2d.input",
        2 * 16 * 3 * 5 * 9,
    ),
    "conv_transpose2d grouped": (
        nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 4, 4), call, "aten.conv_transpose2d.input",
        16 * 4 * 3 * 9,
    ),
    "conv_transpose3d": (
        nn.ConvTranspose3d(2, 3, 2), (1, 2, 3, 3, 3), call, "aten.conv_transpose3d.input",
        27 * 2 * 3 * 8,
    ),
    "LSTM": (nn.LSTM(6, 5), (3, 2, 6), first, "aten.lstm.input", LSTM),
    "LSTM of two layers": (
        nn.LSTM(6, 5, 2), (3, 2, 6), first, "aten.lstm.input", LSTM + 6 * 4 * 5 * (5 + 5),
    ),
    "LSTM both ways": (
        nn.LSTM(6, 5, bidirectional=True), (3, 2, 6), first, "aten.lstm.input", 2 * LSTM,
    ),
    "LSTM projected": (
        nn.LSTM(6, 5, proj_size=4), (3, 2, 6), first, "aten.lstm.input",
        6 * (4 * 5 * (6 + 4) + 5 * 4),
    ),
    "GRU": (nn.GRU(6, 5, batch_first=True), (3, 2, 6), first, "aten.gru.input",
            6 * 3 * 5 * (6 + 5)),
    "RNN": (nn.RNN(6, 5), (3, 2, 6), first, "aten.rnn_tanh.input", 6 * 5 * (6 + 5)),
    "RNN with ReLU": (nn.RNN(6, 5, nonlinearity="relu"), (3, 2, 6), first, "aten.rnn_relu.input",
                      6 * 5 * (6 + 5)),
    "LSTM cell": (nn.LSTMCell(6, 5), (3, 6), first, "aten.lstm_cell", 3 * 4 * 5 * (6 + 5)),
    "GRU cell": (nn.GRUCell(6, 5), (3, 6), call, "aten.gru_cell", 3 * 3 * 5 * (6 + 5)),
    "RNN cell": (nn.RNNCell(6, 5), (3, 6), call, "aten.rnn_tanh_cell", 3 * 5 * (6 + 5)),
    "bilinear": (
        nn.Bilinear(6, 6, 5), (3, 6), lambda m, x: m(x, x), "aten.bilinear", 3 * 5 * 6 * 6,
    ),
    "einsum with a weight": (
        nn.Linear(6, 5), (3, 2, 6), lambda m, x: torch.einsum("btk,nk->btn", x, m.weight),
        "aten.einsum", 3 * 2 * 6 * 5,
    ),
    "stacked weights": (
        nn.Bilinear(6, 5, 3), (3, 2, 6), lambda m, x: torch.bmm(x, m.weight), "aten.bmm",
        3 * 2 * 6 * 5,
    ),
}  # fmt: skip


WITHOUT = tuple(p for p in analogc.DEFAULT_PASSES if not p.name.startswith("lower-"))


@pytest.mark.filterwarnings("ignore:calibration data is zero")  # the state that cells start from
@pytest.mark.parametrize("what", LOWERED)
def test_work_that_is_lowered_to_layers_is_counted_as_analog(what: str) -> None:
    layer, shape, use, _, macs = LOWERED[what]
    report = analogc.compile(Use(layer.eval(), use), (torch.randn(shape),), check=True).coverage
    assert (report.macs, report.analog_share) == (macs, 1.0)
    assert not report.unsupported
    for found in report.analog:
        assert f"{HERE}:" in str(found.line) or found.module == "layer"


@pytest.mark.parametrize("what", LOWERED)
def test_layer_without_an_analog_form_is_reported_with_its_work(what: str) -> None:
    layer, shape, use, op, macs = LOWERED[what]
    found = row(layer, shape, use, passes=WITHOUT)
    assert (found.kind, found.op) == ("unsupported", op)
    assert found.reason == f"{op} has no analog form yet"
    assert found.macs == macs
    assert f"{HERE}:" in str(found.line) or found.module == "layer"


DIGITAL: dict[str, tuple[Callable[[Any, Tensor], Any], int]] = {
    "matmul": (lambda m, x: x @ x.mT, 2 * 4 * 4 * 6),
    "bmm": (lambda m, x: torch.bmm(x, x.mT), 2 * 4 * 4 * 6),
    "einsum": (lambda m, x: torch.einsum("bik,bjk->bij", x, x), 2 * 4 * 4 * 6),
    "einsum that sums over two": (lambda m, x: torch.einsum("bik,bjk->ij", x, x), 4 * 4 * 2 * 6),
    "einsum of an outer product": (lambda m, x: torch.einsum("bi,bj->bij", x[0], x[0]), 4 * 36),
    "einsum with an ellipsis": (lambda m, x: torch.einsum("...ik,...jk->...ij", x, x), 2 * 16 * 6),
    "einsum without a result": (lambda m, x: torch.einsum("ik,jk", x[0], x[1]), 4 * 4 * 6),
    "attention": (lambda m, x: F.scaled_dot_product_attention(x, x, x), 2 * 2 * 4 * 4 * 6),
    "linear of activations": (lambda m, x: F.linear(x, x[0]), 2 * 4 * 4 * 6),
    "baddbmm": (lambda m, x: torch.baddbmm(x @ x.mT * 0 if False else x[..., :4], x, x.mT), 192),
    "mv": (lambda m, x: torch.mv(x[0], x[1, 0]), 4 * 6),
}


@pytest.mark.parametrize("what", DIGITAL)
def test_product_of_activations_stays_digital_with_its_reason(what: str) -> None:
    use, macs = DIGITAL[what]
    found = row(nn.ReLU(), (2, 4, 6), use)
    assert (found.kind, found.macs) == ("rule", macs)
    assert found.reason == "activation x activation: nothing to store"
    assert found.line is not None and HERE in found.line


def test_conv_with_a_computed_kernel_stays_digital() -> None:
    found = row(nn.ReLU(), (3, 3, 7), lambda m, x: F.conv1d(x, x[:2, :, :2]))
    assert (found.kind, found.macs) == ("rule", 3 * 2 * 6 * 3 * 2)


def test_weight_that_the_forward_writes_stays_digital() -> None:
    class Writes(nn.Module):
        weight: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(5, 6))

        def forward(self, x: Tensor) -> Tensor:
            self.weight.mul_(0.9)
            return F.linear(x, self.weight)

    compiled = analogc.compile(Writes(), (torch.randn(3, 6),), check=True)
    (found,) = [r for r in compiled.coverage.rows if r.macs]
    assert (found.kind, found.reason) == ("rule", "its weight changes within a forward")
    assert len(compiled.tiles) == 0


def test_encoder_layer_has_four_analog_layers_and_digital_attention() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    report = analogc.compile(layer, (torch.randn(2, 5, 8),)).coverage
    assert [r.reason for r in report.analog] == [
        "self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2",
    ]  # fmt: skip
    assert [r.macs for r in report.analog] == [10 * 8 * 24, 10 * 8 * 8, 10 * 8 * 16, 10 * 16 * 8]
    (attention,) = [r for r in report.digital if r.macs]
    assert attention.macs == 2 * (2 * 2 * 5 * 5 * 4)
    assert report.macs == 5120 + 800
    assert report.analog_share == pytest.approx(5120 / 5920)
    assert not report.unsupported
    assert "86.5 % of 5.9k MACs, 1 product digital" in report.summary()


def test_share_counts_what_is_unsupported() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Use(nn.LSTM(6, 5), first))
    report = analogc.compile(model.eval(), (torch.randn(3, 2, 6),), passes=WITHOUT).coverage
    assert report.macs == 6 * 36 + LSTM
    assert report.analog_share == pytest.approx(216 / (216 + LSTM))
    assert len(report.unsupported) == 1
    assert "1 unsupported" in report.summary()


def test_dynamic_batch_is_counted_at_the_example_shape() -> None:
    model = nn.Linear(6, 5)
    report = analogc.compile(model, (torch.randn(3, 6),), dynamic_shapes="batch").coverage
    assert report.macs == 3 * 30


def test_nothing_is_left_out_of_the_report() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.softmax(self.norm(self.layer(x)), -1).view(-1, 2, 3).sum(1)
            return y.sigmoid() + x[:, :3]

    report = analogc.compile(Many(), (torch.randn(3, 6),)).coverage
    ops = [r.op.split(".")[1] for r in report.rows]
    assert {"linear", "layer_norm", "softmax", "sum", "sigmoid", "add"} <= set(ops)
    assert not {"view", "slice", "getitem"} & set(ops)
    others = [r for r in report.digital]
    assert {r.reason for r in others} == {"no multiply with a weight"}
    assert all(r.macs == 0 and r.line for r in others)


def test_work_is_shown_in_the_text_and_as_plain_values() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    report = analogc.compile(layer, (torch.randn(2, 5, 8),)).coverage
    text = str(report)
    assert text.splitlines()[0] == report.summary()
    for found in report.rows:
        if found.macs:
            (line,) = [s for s in text.splitlines() if f" {found.node} " in s]
            assert ("analog " in line) == (found.kind == "analog")
            assert found.kind == "analog" or found.reason in line
    assert "2 aten.layer_norm" in text
    data = json.loads(json.dumps(report.to_dict()))
    assert data["macs"] == report.macs
    assert len(data["rows"]) == len(report.rows)
    assert data["rows"][0]["reason"] == report.rows[0].reason


class Mix(nn.Module):
    """A row of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 5)
        self.points = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.first(x))
        return torch.cdist(y @ y.mT @ y, self.points), self.head(y)


def test_kinds_and_shares_add_up() -> None:
    compiled = analogc.compile(Mix().eval(), (torch.randn(3, 6),), select="head")
    report = compiled.coverage
    assert report.kinds == {
        "analog": (1, 3 * 36), "rule": (3, 2 * 3 * 3 * 6), "choice": (1, 3 * 30),
        "unsupported": (1, 3 * 4 * 6),
    }  # fmt: skip
    assert sum(nodes for nodes, _ in report.kinds.values()) == len(report.rows)
    assert sum(macs for _, macs in report.kinds.values()) == report.macs
    assert sum(map(report.share, report.rows)) == pytest.approx(1)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["kinds"]["unsupported"] == {"nodes": 1, "macs": 72}
    assert sum(found["share"] for found in data["rows"]) == pytest.approx(1)
    assert "3 products digital, 1 unsupported" in report.summary()


def test_every_operator_of_the_graph_is_one_row() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    compiled = analogc.compile(layer, (torch.randn(2, 5, 8),))
    views = {"view", "transpose", "unflatten", "unsqueeze", "squeeze", "select", "permute"}
    wanted = [
        node.name
        for node in compiled.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.name.partition("::")[2] not in views
        and node.target._schema.name not in ("aten::dropout", "aten::contiguous", "aten::reshape")
    ]
    assert [found.node for found in compiled.coverage.rows] == wanted


def test_digital_rows_name_their_module_and_line() -> None:
    report = analogc.compile(Mix().eval(), (torch.randn(3, 6),), select="head").coverage
    (unsupported,) = [s for s in str(report).splitlines() if "unsupported " in s]
    assert f"[{HERE}:" in unsupported and "a distance to stored points" in unsupported
    (kept,) = [s for s in str(report).splitlines() if "kept digital by select=" in s]
    assert f"[head, {HERE}:" in kept


def test_page_shows_every_node_and_escapes() -> None:
    report = CoverageReport(
        tuple(
            dataclasses.replace(found, module="<b>&") if found.kind == "analog" else found
            for found in analogc.compile(Mix().eval(), (torch.randn(3, 6),)).coverage.rows
        )
    )
    html = report.to_html()
    assert (
        html.startswith("<!DOCTYPE html>") and html.count("<table") == html.count("</table>") == 3
    )
    assert "<b>&<" not in html and "&lt;b&gt;&amp;" in html
    assert "http" not in html and "<script" not in html
    for found in report.rows:
        assert f"%{found.node}</code>" in html
        assert str(found.line).replace("'", "&#x27;") in html
    assert "<h2>Unsupported</h2>" in html
    assert report._repr_html_() in html


def test_summary_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "analogc")
    compiled = analogc.compile(nn.Sequential(nn.Linear(6, 5)).eval(), (torch.randn(3, 6),))
    compiled.train()
    (record,) = caplog.records
    assert record.levelno == logging.INFO and compiled.coverage.summary() in record.getMessage()
    caplog.clear()
    analogc.compile(Mix().eval(), (torch.randn(3, 6),))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "1 unsupported; aten.cdist" in record.getMessage() and HERE in record.getMessage()


def test_steps_of_a_recurrent_layer_are_one_line_of_the_text() -> None:
    layer = Use(nn.LSTM(6, 5), first).eval()
    report = analogc.compile(layer, (torch.randn(20, 2, 6),)).coverage
    assert len(report.analog) == 21
    lines = [s for s in str(report).splitlines() if "analog " in s]
    assert len(lines) == 2
    assert "and 19 more" in lines[1] and "4.0k" in lines[1]
    assert sum(len(list(table.cells)) for table in report.__rich__().columns[:1]) == 2


def test_empty_report_is_all_analog() -> None:
    report = CoverageReport(())
    assert report.analog_share == 1.0
    assert "0 layers analog" in report.summary()


# -- the user's choice ----------------------------------------------------------------------------


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.blocks = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(1)
        for block in self.blocks:
            x = torch.relu(block(x))
        out: Tensor = self.head(x)
        return out


IMAGES = torch.linspace(-1, 1, 3 * 2 * 36).reshape(3, 2, 6, 6)


def chosen(select: Any) -> tuple[list[str], list[str]]:
    """Names of analog layers, and of layers kept digital."""
    compiled = analogc.compile(Blocks().eval(), (IMAGES,), select=select, check=True)
    digital = [r.module for r in compiled.coverage.digital if r.kind == "choice"]
    assert {r.reason for r in compiled.coverage.digital if r.kind == "choice"} <= {
        "kept digital by select="
    }
    return [t.array for t in compiled.tiles], digital


@pytest.mark.parametrize(
    ("select", "digital"),
    [
        (None, []),
        ([], []),
        ("head", ["head"]),
        (["head", "stem"], ["stem", "head"]),
        ("blocks.*", ["blocks.0", "blocks.1"]),
        ("blocks.[1-9]", ["blocks.1"]),
        (("*",), ["stem", "blocks.0", "blocks.1", "head"]),
        ({"st*"}, ["stem"]),
        (lambda info: info.op == "linear", ["stem"]),
        (lambda info: info.macs >= 1000, ["head"]),
        (lambda info: "blocks" in info.module, ["stem", "head"]),
        (lambda info: info.module_type == "Conv2d", ["blocks.0", "blocks.1", "head"]),
        (lambda info: False, ["stem", "blocks.0", "blocks.1", "head"]),
    ],
)
def test_choice_of_the_user_is_followed(select: Any, digital: list[str]) -> None:
    analog, kept = chosen(select)
    assert kept == digital
    assert analog == [n for n in ("stem", "blocks.0", "blocks.1", "head") if n not in digital]


def test_predicate_sees_every_layer_with_its_facts() -> None:
    seen: list[LayerInfo] = []

    def look(info: LayerInfo) -> bool:
        seen.append(info)
        return True

    chosen(look)
    assert seen[0] == LayerInfo(
        "stem", "conv2d", "stem", "Conv2d", (4, 2, 3, 3), 1, 3 * 4 * 16 * 18
    )
    assert [info.name for info in seen] == ["stem", "blocks.0", "blocks.1", "head"]


def test_digital_choice_is_digital_in_number_too() -> None:
    model = Blocks().eval()
    compiled = analogc.compile(model, (IMAGES,), select="*")
    assert torch.equal(compiled(IMAGES), model(IMAGES))
    assert compiled.coverage.analog_share == 0.0


@pytest.mark.parametrize("select", ["haed", ["head", "nothing*"], ["blocks"]])
def test_pattern_that_matches_nothing_is_an_error_that_lists_the_layers(select: Any) -> None:
    with pytest.raises(InputError, match="no layer matches") as info:
        chosen(select)
    assert "stem, blocks.0, blocks.1, head" in str(info.value.fix)
    missing = [select] if isinstance(select, str) else select[-1:]
    assert missing[0] in info.value.message


@pytest.mark.parametrize("select", [[1], [nn.Linear], [None], 5])
def test_what_is_no_choice_is_refused(select: Any) -> None:
    with pytest.raises(InputError, match="select="):
        chosen(select)


def test_second_use_of_a_layer_can_be_chosen_by_its_number_or_both_by_name() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(torch.tanh(self.layer(x)))
            return out

    x = torch.randn(3, 6)
    both = analogc.compile(Twice(), (x,), select="layer")
    assert len(both.tiles) == 0
    second = analogc.compile(Twice(), (x,), select="layer@2", check=True)
    assert [r.kind for r in second.coverage.rows if r.macs] == ["analog", "choice"]


def test_choice_holds_in_the_other_mode_too() -> None:
    compiled = analogc.compile(Blocks().eval(), (IMAGES,), select="head")
    assert "head" not in [t.array for t in compiled.train().tiles]


# -- strict ---------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Work that goes analog, and two layers that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.rnn = Use(nn.LSTM(6, 6), first)
        self.experts = nn.Parameter(torch.randn(65, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(self.inner(x)).transpose(0, 1)
        return torch.bmm(y.expand(65, -1, -1), self.experts)


LIMITED = tuple(
    dataclasses.replace(p, steps=2) if isinstance(p, LowerRecurrent) else p
    for p in analogc.DEFAULT_PASSES
)
SEQUENCE = torch.randn(3, 1, 6)


def test_strict_lists_every_operator_that_would_stay_digital() -> None:
    with pytest.raises(UnsupportedError) as info:
        analogc.compile(Mixed().eval(), (SEQUENCE,), passes=LIMITED, strict=True)
    head, *lines = info.value.message.splitlines()
    assert head == "2 operators with stored weights would stay digital:"
    assert len(lines) == 2
    assert lines[0].startswith("  %lstm (aten.lstm.input) in rnn.layer, ")
    assert "3 time steps, more than 2: cut the sequence" in lines[0]
    assert lines[1].startswith("  %bmm (aten.bmm), ") and f"{HERE}:" in lines[1]
    assert "its stored operand stacks 65 matrices" in lines[1]
    assert "strict=True" in str(info.value.fix)


def test_strict_names_what_is_inside_a_region() -> None:
    def run(layer: Any, x: Tensor) -> Tensor:
        start = (torch.tensor(0), x)
        y: Tensor = while_loop(lambda i, t: i < 3, lambda i, t: (i + 1, layer(t)), start)[1]
        return y

    with pytest.raises(UnsupportedError, match="1 products inside a while_loop region"):
        analogc.compile(Use(nn.Linear(6, 6), run), (torch.randn(3, 6),), strict=True)


@pytest.mark.parametrize("select", [None, "*"])
def test_strict_takes_products_of_activations_and_the_users_choice(select: Any) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    compiled = analogc.compile(layer, (x,), strict=True, select=select)
    assert bool(compiled.coverage.analog) == (select is None)


def test_strict_holds_in_the_other_mode_too() -> None:
    class Different(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.rnn = nn.Linear(6, 6), nn.GRU(6, 6)

        def forward(self, x: Tensor) -> Any:
            return self.rnn(x)[0] if self.training else self.linear(x)

    compiled = analogc.compile(Different().eval(), (SEQUENCE,), passes=LIMITED, strict=True)
    with pytest.raises(UnsupportedError, match="1 operator with stored weights"):
        compiled.train()(SEQUENCE)


def test_without_strict_the_same_model_compiles() -> None:
    compiled = analogc.compile(Mixed().eval(), (SEQUENCE,), passes=LIMITED)
    assert len(compiled.coverage.unsupported) == 2
