from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc.errors import UnsupportedError
from analogc.passes.base import META
from analogc.passes.lower_recurrent import LowerRecurrent
from analogc.runtime.mapping import Digital
from tests.passes.lowering import assert_analog, assert_same

if TYPE_CHECKING:
    from tests.passes.conftest import Lower, Make

D = torch.float64
T, B, K, H = 4, 3, 5, 6
pytestmark = pytest.mark.filterwarnings("ignore:.*were assigned during export.*:UserWarning")


def states(model: Any, batch: int = B, dtype: torch.dtype = D) -> Tensor | tuple[Tensor, Tensor]:
    places = model.num_layers * (2 if model.bidirectional else 1)
    h = torch.randn(places, batch, model.proj_size or H, dtype=dtype)
    return (h, torch.randn(places, batch, H, dtype=dtype)) if type(model) is nn.LSTM else h


def work(model: nn.Module) -> int:
    """Multiply-accumulates of one vector through every matrix."""
    return sum(p.numel() for p in model.parameters() if p.dim() == 2)


KINDS: dict[str, Any] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}
OPTIONS: list[dict[str, Any]] = [
    {"num_layers": layers, "bidirectional": both, "batch_first": first, "bias": bias}
    for layers, both, first, bias in itertools.product(
        (1, 2), (False, True), (False, True), (True, False)
    )
]
CASES = [
    *((kind, options) for kind in KINDS for options in OPTIONS),
    *(("lstm", {**options, "proj_size": 2}) for options in OPTIONS),
]


def name_of(case: tuple[str, dict[str, Any]]) -> str:
    kind, options = case
    parts = [name if value is True else f"{name}{value}" for name, value in options.items()
             if value is not False]  # fmt: skip
    return "-".join([kind, *parts])


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_same_numbers(case: tuple[str, dict[str, Any]], given: bool, lower: Lower) -> None:
    kind, options = case
    model = KINDS[kind](K, H, dtype=D, **options).eval()
    x = torch.randn(*((B, T) if options["batch_first"] else (T, B)), K, dtype=D)
    inputs: tuple[Any, ...] = (x, states(model)) if given else (x,)
    lowered = lower(model, *inputs)

    assert lowered.run("lower-recurrent") is True
    sets = options["num_layers"] * (2 if options["bidirectional"] else 1)
    projections = T if "proj_size" in options else 0
    assert lowered.counts["aten.linear"] == sets * (1 + T + projections)
    assert lowered.run("lower-recurrent") is False
    assert_same(lowered, model, inputs)


@pytest.mark.parametrize("case", [("lstm", {}), ("gru", {}), ("tanh", {}), ("relu", {})])
def test_a_dynamic_batch_and_all_work_counted(case: tuple[str, dict[str, Any]]) -> None:
    model = KINDS[case[0]](K, H, batch_first=True, bidirectional=True, dtype=D).eval()
    compiled = analogc.compile(
        model, (torch.randn(B, T, K, dtype=D),), target="ideal", check=True, dynamic_shapes="batch"
    )

    for size in (1, 7):
        assert_same(compiled, model, (torch.randn(size, T, K, dtype=D),))
    report = compiled.coverage
    assert (report.macs, report.analog_share) == (B * T * work(model), 1.0)
    assert len(compiled.tiles) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_without_batch(kind: str) -> None:
    model = KINDS[kind](K, H, dtype=D).eval()
    x = torch.randn(T, K, dtype=D)
    assert_same(analogc.compile(model, (x,), target="ideal", check=True), model, (x,))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers_draws_the_same_numbers_in_training(kind: str, first: bool) -> None:
    model = KINDS[kind](K, H, 3, dropout=0.4, bidirectional=True, batch_first=first, dtype=D)
    x = torch.randn(T, B, K, dtype=D)
    compiled = analogc.compile(model.train(), (x,), target="ideal", check=True)

    assert_same(compiled, model, (x,))
    assert not torch.equal(compiled(x)[0], compiled(x)[0])
    compiled.eval()
    assert_same(compiled, model.eval(), (x,))
    assert torch.equal(compiled(x)[0], compiled(x)[0])


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (B,)], ids=["vector", "batch"])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, "relu"])
def test_cells(kind: Any, lead: tuple[int, ...], bias: bool, given: bool) -> None:
    cell = nn.RNNCell(K, H, bias, "relu", dtype=D) if kind == "relu" else kind(K, H, bias, dtype=D)
    h, c = torch.randn(*lead, H, dtype=D), torch.randn(*lead, H, dtype=D)
    inputs: tuple[Any, ...] = (torch.randn(*lead, K, dtype=D),)
    if given:
        inputs = (*inputs, (h, c) if kind is nn.LSTMCell else h)
    compiled = analogc.compile(cell, inputs, target="ideal", check=True)

    assert_same(compiled, cell, inputs)
    report = compiled.coverage
    vectors = torch.Size(lead).numel()
    assert (report.macs, report.analog_share) == (vectors * work(cell), 1.0)


def test_a_loop_over_a_cell_has_one_array_for_each_matrix(make: Make) -> None:
    def run(m: Any, x: Tensor) -> Any:
        h = m.start.expand(B, H)
        for step in x:
            h = m.cell(step, h)
        return h

    model = make(run, cell=nn.GRUCell(K, H, dtype=D), start=torch.randn(H, dtype=D))
    x = torch.randn(T, B, K, dtype=D)
    compiled = analogc.compile(model, (x,), target="ideal", check=True)

    assert_same(compiled, model, (x,))
    assert len(compiled.tiles) == 2
    # The first step's state is stored, and its product is an MVM all the same.
    assert len(compiled.coverage.analog) == 2 * T


def test_calls_of_one_cell_share_their_ranges(make: Make) -> None:
    def run(m: Any, x: Tensor) -> Any:
        h = None
        for step in x:
            h = m.cell(step, h)
        return h

    # The first state is zero, which would be no range for any other step.
    model = make(run, cell=nn.GRUCell(20, 30))
    compiled = assert_analog(model, (torch.randn(6, 8, 20),), 2)

    ranges = [n for n, _ in compiled.named_buffers() if n.endswith("_input")]
    assert ranges == [f"_analog.ranges.cell_weight_{which}_input" for which in ("ih", "hh")]


def test_expected_graph(lower: Lower) -> None:
    lowered = lower(nn.RNN(K, H, bias=False, dtype=D), torch.randn(2, B, K, dtype=D))
    lowered.run("lower-recurrent")

    assert lowered.ir == (
        "%input_1: f64[2, 3, 5] = input\n"
        "%zeros: f64[1, 3, 6] = aten.zeros([1, 3, 6], dtype=float64, device=cpu, "
        "pin_memory=False)\n"
        "%new_zeros_default: f64[1, 1, 1] = aten.new_zeros(%input_1, [1, 1, 1])\n"
        "%add_tensor: f64[1, 3, 6] = aten.add.Tensor(%zeros, %new_zeros_default)\n"
        "%unbind_int: (f64[3, 6]) = aten.unbind.int(%add_tensor, 0)\n"
        "%getitem_2: f64[3, 6] = getitem(%unbind_int, 0)\n"
        "%linear_default: f64[2, 3, 6] = aten.linear(%input_1, @weight_ih_l0)\n"
        "%unbind_int_1: (f64[3, 6], f64[3, 6]) = aten.unbind.int(%linear_default, 0)\n"
        "%getitem_3: f64[3, 6] = getitem(%unbind_int_1, 0)\n"
        "%getitem_4: f64[3, 6] = getitem(%unbind_int_1, 1)\n"
        "%linear_default_1: f64[3, 6] = aten.linear(%getitem_2, @weight_hh_l0)\n"
        "%add_tensor_1: f64[3, 6] = aten.add.Tensor(%getitem_3, %linear_default_1)\n"
        "%tanh_default: f64[3, 6] = aten.tanh(%add_tensor_1)\n"
        "%linear_default_2: f64[3, 6] = aten.linear(%tanh_default, @weight_hh_l0)\n"
        "%add_tensor_2: f64[3, 6] = aten.add.Tensor(%getitem_4, %linear_default_2)\n"
        "%tanh_default_1: f64[3, 6] = aten.tanh(%add_tensor_2)\n"
        "%getitem: f64[2, 3, 6] = aten.stack([%tanh_default, %tanh_default_1])\n"
        "%getitem_1: f64[1, 3, 6] = aten.stack([%tanh_default_1])\n"
        "output = (%getitem, %getitem_1)"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bit_tiles_come_close(kind: str) -> None:
    model = KINDS[kind](20, 30, 2, bidirectional=True).eval()
    x = torch.randn(12, 8, 20)
    compiled = assert_analog(model, (x,), 8)

    assert len(compiled.coverage.analog) == 4 * (1 + 12)
    assert compiled.coverage.macs == 12 * 8 * work(model)
    compiled(x)
    assert all(weight.times_programmed == 1 for weight in compiled.weights.values())


def test_steps_share_their_converter_ranges_and_the_ranges_cover_every_step() -> None:
    model = nn.RNN(1, 1, bias=False, nonlinearity="relu")
    with torch.no_grad():
        for name, value in (("weight_ih_l0", 1.0), ("weight_hh_l0", 2.0)):
            model.get_parameter(name).fill_(value)
    x = torch.zeros(5, 1, 1)
    x[0] = 1.0  # the state doubles in each step
    compiled = analogc.compile(model.eval(), (x,), target="generic-8bit", check=True)

    ranges = {n: b for n, b in compiled.named_buffers() if "weight_hh" in n and "input" in n}
    assert list(ranges) == ["_analog.ranges.weight_hh_l0_input"]
    (found,) = ranges.values()
    assert float(found) == pytest.approx(8.0, rel=0.02)
    nodes = [n for n in compiled.graph.nodes if n.op == "call_function" and "hh" in str(n.args)]
    assert len(nodes) == 5


def test_two_runs_of_one_layer_share_tiles_and_not_ranges(make: Make) -> None:
    model = make(lambda m, x: m.rnn(m.rnn(x)[0] * 9)[0], rnn=nn.RNN(K, K))
    compiled = analogc.compile(model, (torch.randn(T, B, K),), check=True)

    assert len(compiled.tiles) == 2
    ranges = [n for n, _ in compiled.named_buffers() if n.endswith("_input")]
    assert len(ranges) == 4


def test_training_follows_the_weights() -> None:
    model = nn.LSTM(K, H, 2)
    x = torch.randn(T, B, K)
    compiled = analogc.compile(model, (x,), target="generic-8bit")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (compiled(x)[0] - 0.3).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_saved_model_runs_without_its_code(tmp_path: Any) -> None:
    model = nn.LSTM(K, H, 2, bidirectional=True).eval()
    x = torch.randn(T, B, K)
    compiled = analogc.compile(model, (x,), target="generic-8bit")
    compiled.save(tmp_path / "lstm.analogc")

    with torch.no_grad():
        for ours, theirs in zip(
            analogc.load(tmp_path / "lstm.analogc")(x)[1], compiled(x)[1], strict=True
        ):
            assert torch.equal(ours, theirs)


def test_graph_grows_linearly_with_the_steps() -> None:
    sizes = []
    for steps in (8, 16, 24):
        compiled = analogc.compile(nn.LSTM(K, H).eval(), (torch.randn(steps, B, K),))
        sizes.append(len(compiled.graph.nodes))
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] <= 8 * 20


# -- what stays digital ---------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["linear", "live weights"])
def test_nothing_to_lower(what: str, lower: Lower, make: Make) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        if what == "linear":
            return torch.relu(x)
        out: Tensor = torch.rnn_tanh_cell(x, x, x @ x.mT, x @ x.mT)
        return out

    lowered = lower(make(run), torch.randn(3, 3))
    code = lowered.module.code

    assert lowered.run("lower-recurrent") is False
    assert lowered.module.code == code


def unsupported(lowered: Any) -> Digital:
    lowered.run("canonicalize,select-analog")
    records = [n.meta.get(META) for n in lowered.module.graph.nodes]
    (found,) = [r for r in records if isinstance(r, Digital) and r.macs]
    return found


def test_too_many_steps_say_what_to_do(lower: Lower) -> None:
    model, x = nn.GRU(K, H).eval(), torch.randn(7, B, K)
    lowered = lower(model, x)

    assert lowered.run(LowerRecurrent(steps=6)) is False
    found = unsupported(lowered)
    assert found.rule == "unsupported" and found.macs == 7 * B * work(model)
    assert found.reason == (
        "7 time steps, more than 6: cut the sequence into parts that hand on the state, or unroll "
        "it by lower-recurrent{steps=7} in passes="
    )
    torch.testing.assert_close(lowered(x)[0], model(x)[0])


def test_a_dynamic_length_says_what_to_do(lower: Lower) -> None:
    # torch.export fixes the length itself; turned round, the batch is one that it did not.
    model = nn.LSTM(K, H, batch_first=True).eval()
    lowered = lower(model, torch.randn(B, T, K), dynamic_shapes="batch")
    (node,) = lowered.nodes("aten.lstm.input")
    node.args = (*node.args[:-1], False)

    assert lowered.run("lower-recurrent") is False
    found = unsupported(lowered)
    assert (found.rule, found.reason) == (
        "unsupported",
        "its number of time steps is dynamic: give it a fixed one in dynamic_shapes=",
    )


def test_a_length_that_export_fixes_says_what_to_do() -> None:
    length = {1: torch.export.Dim("steps", min=2, max=64)}
    with pytest.raises(UnsupportedError, match="fixes a size") as info:
        analogc.compile(
            nn.LSTM(K, H, batch_first=True), (torch.randn(B, T, K),), dynamic_shapes=(length,)
        )
    assert "time steps" in str(info.value.fix)


def test_a_packed_sequence_says_what_to_do() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(K, H)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths)
            out: Tensor = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0])[0]
            return out

    inputs = torch.randn(T, 2, K), torch.tensor([T, 2])
    with pytest.raises(UnsupportedError, match="packed sequence") as info:
        analogc.compile(Packed(), inputs)
    assert "padded tensor" in str(info.value.fix)
    assert "test_lower_recurrent.py" in str(info.value.where)


@pytest.mark.parametrize(("name", "bad"), [("zero", 0), ("minus", -1)])
def test_an_impossible_limit_keeps_every_layer_digital(name: str, bad: int, lower: Lower) -> None:
    lowered = lower(nn.RNN(K, H).eval(), torch.randn(2, B, K))
    assert lowered.run(LowerRecurrent(steps=bad)) is False
