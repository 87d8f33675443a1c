"""Differences of compiled models: what is told, and that equal models have none."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import analogc
from analogc.compiler.cli import main
from analogc.compiler.diff import diff_tensors, diff_texts
from analogc.compiler.diff.lines import read, split
from analogc.compiler.diff.matching import in_order, match
from analogc.errors import FormatError, InputError

TARGET = analogc.targets.generic_8bit_noisy().replace(
    tile=analogc.TileSpec(16, 8), device=analogc.GaussianDevice(0.02, drift_nu=0.05)
)


class Net(nn.Module):
    """Convolutions with a folded norm, a join, and a weight that is used twice."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.mid = nn.Linear(16, hidden)
        self.twice = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        y = torch.relu(self.mid(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1)))
        y = self.activation(self.twice(self.twice(y))) + y
        scores: Tensor = self.head(y)
        return scores

    def activation(self, y: Tensor) -> Tensor:
        return torch.tanh(y)


class Gelu(Net):
    def activation(self, y: Tensor) -> Tensor:
        return nn.functional.gelu(y)


class Direct(Net):
    def activation(self, y: Tensor) -> Tensor:
        return y


class Wide(nn.Module):
    """Several outputs of several kinds, in a dict; keyword inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 3, batch_first=True)
        self.norm = nn.LayerNorm(3)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Any]:
        y, state = self.rnn(x * scale)
        return {"y": self.norm(y), "state": state}


def net(make: Callable[[], nn.Module] = Net, **options: Any) -> analogc.CompiledModel:
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randn(4, 1, 6, 6)
    return analogc.compile(model, (x,), **{"target": TARGET, "seed": 0, **options})


def wide(**options: Any) -> analogc.CompiledModel:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 3, 4), "scale": torch.ones(2, 1, 1)}
    return analogc.compile(Wide().eval(), (), inputs, target=TARGET, seed=0, **options)


def trained() -> analogc.CompiledModel:
    model = net()
    model.train()
    return model


MODELS: dict[str, Callable[[], analogc.CompiledModel]] = {
    "net": net,
    "ideal": lambda: net(target="ideal"),
    "dynamic": lambda: net(dynamic_shapes="batch"),
    "per column": lambda: net(target=TARGET.replace(adc=analogc.Converter(per_column=True))),
    "two modes": trained,
    "dict": wide,
    "no layer": lambda: net(select=["conv", "mid", "twice", "head"]),
}


def parts(found: analogc.Diff) -> set[str]:
    return {name for name, text in found.parts() if not text.startswith("equal")}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_equal_to_itself_its_copy_and_its_file(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    model.save(tmp_path / "m")
    for other in (model, MODELS[name](), copy.deepcopy(model), tmp_path / "m", str(tmp_path / "m")):
        found = analogc.diff(model, other)
        assert found.equal and not found, str(found)
        assert str(found).splitlines()[-1] == "equal"
        assert found.to_dict()["equal"] is True
        assert not parts(found)


def changed(change: Callable[[analogc.CompiledModel], object], **options: Any) -> analogc.Diff:
    """Difference between a model and the same one after ``change``."""
    model = net(**options)
    change(model)
    return analogc.diff(net(), model)


def write(model: analogc.CompiledModel) -> None:
    with torch.no_grad():
        model.get_parameter("mid.weight")[2, 3] += 5


def write_and_sync(model: analogc.CompiledModel) -> None:
    write(model)
    assert model.sync() == ["mid"]


def statistics(model: analogc.CompiledModel) -> None:
    model.get_buffer("norm.running_mean").add_(0.25)


def freeze(model: analogc.CompiledModel) -> None:
    model.get_parameter("head.bias").requires_grad_(False)


def same(_: analogc.CompiledModel) -> None:
    pass


TILES = analogc.TileSpec(8, 8)
CHANGES: dict[str, tuple[Callable[..., object], dict[str, Any], set[str], list[str]]] = {
    "weight": (
        write, {}, {"weights", "tiles"},
        ["mid  programmed: yes → stale", "mid.weight  1 of 96 values, by at most 5 ", "at [2, 3]"],
    ),
    "weight and tiles": (
        write_and_sync, {}, {"weights", "tiles"},
        ["times_programmed: 1 → 2", "noise key: 0/program/mid/0 → 0/program/mid/1"],
    ),
    "statistics": (
        statistics, {}, {"weights"}, ["norm.running_mean  4 of 4 values, by at most 0.25"]
    ),
    "frozen": (freeze, {}, {"weights"}, ["head.bias  requires_grad: True → False"]),
    "noise": (lambda m: m.program(1), {}, {"settings", "tiles"}, ["seed: 0 → 1"]),
    "drift": (lambda m: m.drift_to(3600), {}, {"tiles"}, ["seconds: 0.0 → 3600.0"]),
    "ranges": (
        lambda m: m.calibrate([3 * torch.randn(4, 1, 6, 6)]), {}, {"ranges"}, ["conv  DAC block 0"]
    ),
    "reads": (lambda m: m(torch.ones(4, 1, 6, 6)), {}, {"tiles"}, ["twice  calls: 0 → 2"]),
    "access": (
        same, {"weight_access": "readonly"}, {"settings"}, ["weight_access: direct → readonly"]
    ),
    "converter": (
        same, {"target": TARGET.replace(adc=analogc.Converter(6))},
        {"settings", "graph (eval)", "ranges"},
        ["target.adc.bits: 8 → 6", "settings.adc.bits: 8 → 6   in 5 nodes: conv2d; linear; "],
    ),
    "tile size": (
        same, {"target": TARGET.replace(tile=TILES)},
        {"settings", "graph (eval)"},
        ["target.tile.rows: 16 → 8", "tiles.row_bounds: [0, 16] → [0, 8, 16]"],
    ),
    "digital layer": (
        same, {"select": "head"}, {"graph (eval)"},
        ["op: analogc.linear → aten.linear", "place: on tiles → digital: kept digital by select="],
    ),
    "batch": (
        same, {"dynamic_shapes": "batch"}, {"signature", "graph (eval)"},
        ["eval.input x: float32[4, 1, 6, 6] → float32[any, 1, 6, 6]",
         "type: f32[4, 6] → f32[s0, 6]"],
    ),
    "other operator": (
        same, {"make": Gelu}, {"graph (eval)"},
        ["+ %gelu: f32[4, 6] = aten.gelu(%linear_2)", "- %tanh: f32[4, 6] = aten.tanh(%linear_2)",
         "operand 0: %tanh → %gelu"],
    ),
    "operator left out": (
        same, {"make": Direct}, {"graph (eval)"},
        ["0 added, 1 removed, 1 changed", "- %tanh", "operand 0: %tanh → %linear_2"],
    ),
    "training": (
        lambda m: m.train(), {}, {"settings"}, ["mode: eval → train", "graphs: eval → eval, train"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_differs_is_told_and_nothing_else(what: str) -> None:
    change, options, where, texts = CHANGES[what]
    found = changed(change, **options)
    # Other converters and shapes move numbers, too: ranges, and what is programmed.
    assert parts(found) - {"ranges", "tiles"} == where - {"ranges", "tiles"}
    assert where <= parts(found)
    assert found and not found.equal
    text = str(found)
    for wanted in texts:
        assert wanted in text, f"{wanted!r} is not in\n{text}"
    data = json.loads(found.to_json())
    assert data["equal"] is False and set(data["summary"]) >= where


def test_the_other_way_round_is_the_opposite() -> None:
    forth, back = analogc.diff(net(), net(Direct)), analogc.diff(net(Direct), net())
    (graph,), (other,) = forth.graphs, back.graphs
    assert len(graph.of_kind("removed")) == len(other.of_kind("added")) == 1
    assert len(graph.of_kind("equal")) == len(other.of_kind("equal"))


def stack(*widths: int) -> analogc.CompiledModel:
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        torch.manual_seed(100 * a + b)
        layers += [nn.Linear(a, b), nn.ReLU()]
    torch.manual_seed(0)
    x = torch.randn(4, widths[0])
    return analogc.compile(nn.Sequential(*layers).eval(), (x,), target="ideal", seed=0)


def test_a_layer_more_is_one_node_more_and_its_weights() -> None:
    found = analogc.diff(stack(8, 7, 6, 5), stack(8, 7, 7, 6, 5))
    (graph,) = found.graphs
    added = [node.line.text.partition(":")[0] for node in graph.of_kind("added")]
    assert added == ["%linear_1", "%relu_1"] and not graph.of_kind("removed")
    assert graph.weights == {
        f"{i}.{p}": f"{i + 2}.{p}" for i in (2, 4) for p in ("weight", "bias")
    }  # fmt: skip
    # All layers but the new one are the same as before, under another name.
    assert {diff.name for diff in found.weights} == {"2.weight", "2.bias"}
    text = str(found)
    assert (
        "operand 0: %relu → %relu_1" in text
        and "module of 4 nodes: 2 → 4; 3 → 5; 4 → 6; 5 → 7" in text
    )
    assert "2.weight  only in b: f32[7, 7]" in text


def test_a_swapped_operand_is_a_change_of_that_node() -> None:
    class Less(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.relu() - y.tanh()

    class More(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return y.tanh() - x.relu()

    inputs = (torch.ones(2), torch.ones(2))
    found = analogc.diff(analogc.compile(Less(), inputs), analogc.compile(More(), inputs))
    (node,) = (n for n in found.graphs[0].of_kind("changed") if n.line.op == "aten.sub.Tensor")
    assert [str(c) for c in node.changes] == [
        "operand 0: %relu → %tanh",
        "operand 1: %tanh → %relu",
    ]


class Pair(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.relu(self.a(x)))
        return y


def test_a_tied_weight_is_told() -> None:
    x = torch.randn(3, 4)
    free, tied = (analogc.compile(Pair(t), (x,), seed=0) for t in (False, True))
    text = str(analogc.diff(free, tied))
    assert "tied: [] → ['a.weight = b.weight']" in text


def test_another_expression_of_a_weight_is_told() -> None:
    def build(eps: float) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=eps)).eval()

    x = torch.ones(1, 1, 5, 5)
    found = analogc.diff(*(analogc.compile(build(e), (x,), seed=0) for e in (1e-5, 1e-3)))
    assert "expression: %add_scalar = aten.add.Scalar(%to_dtype, 1e-05) → " in str(found)


def test_a_sealed_weight_is_compared_but_not_shown() -> None:
    model = net(weight_access="sealed")
    other = net(weight_access="sealed")
    with torch.no_grad():
        other._root.get_parameter("mid.weight")[2, 3] += 5
    (found,) = analogc.diff(model, other).weights
    assert (found.name, found.different, found.max_abs, found.max_rel, found.where) == (
        "mid.weight", 1, None, None, ()
    )  # fmt: skip


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.left, self.right = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.enter(x))
        z: Tensor = self.left(y) if y.mean() > 0 else self.right(y)
        return z


def test_models_of_several_graphs_are_compared_graph_by_graph() -> None:
    def build() -> analogc.CompiledModel:
        torch.manual_seed(0)
        return analogc.compile(Router().eval(), (torch.ones(2, 8),), capture="dynamo", seed=0)

    model, other = build(), build()
    assert analogc.diff(model, other).equal, str(analogc.diff(model, other))
    with torch.no_grad():
        other.get_parameter("left.weight").mul_(2)
    found = analogc.diff(model, other)
    assert [graph.label for graph in found.graphs] == ["graph 0", "graph 1"]
    assert [diff.name for diff in found.weights] == ["left.weight"]


# -- tolerance ------------------------------------------------------------------------------------


def test_tolerance_is_a_share_of_the_largest_value() -> None:
    model, other = net(target="ideal"), net(target="ideal")
    with torch.no_grad():
        weight = other.get_parameter("mid.weight")
        step = 1e-3 * float(weight.abs().max())
        weight[0, 0] += step
    assert analogc.diff(model, other)
    assert not analogc.diff(model, other, rtol=1.001e-3)
    assert not analogc.diff(model, other, atol=1.001 * step)
    assert analogc.diff(model, other, rtol=0.999e-3)


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "1"])
def test_a_wrong_tolerance_is_refused(bad: Any) -> None:
    for name in ("rtol", "atol"):
        with pytest.raises(InputError, match=name):
            analogc.diff("a", "b", **{name: bad})


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        analogc.diff(tmp_path / "none", net())
    (tmp_path / "bad").write_bytes(b"import os")
    with pytest.raises(FormatError):
        analogc.diff(net(), tmp_path / "bad")
    with pytest.raises(InputError, match="takes compiled models or files, got Net"):
        analogc.diff(net(), Net())  # type: ignore[arg-type]


SPECIAL = [0.0, 1.0, -2.5, 1e-30, 1e30, math.inf, -math.inf, math.nan]


@given(
    st.lists(st.tuples(st.sampled_from(SPECIAL), st.sampled_from(SPECIAL)), max_size=6),
    st.sampled_from([0.0, 1e-3, 0.5]),
    st.sampled_from([0.0, 0.1]),
)
def test_values_differ_as_in_numpy(
    pairs: list[tuple[float, float]], rtol: float, atol: float
) -> None:
    a, b = (np.array([pair[k] for pair in pairs], dtype=np.float64) for k in (0, 1))
    found = diff_tensors({"x": torch.from_numpy(a)}, {"x": torch.from_numpy(b)}, rtol, atol)
    largest = max((abs(v) for v in a if math.isfinite(v)), default=0.0)
    want = sum(
        not (x == y or (math.isnan(x) and math.isnan(y)) or abs(y - x) <= atol + rtol * largest)
        for x, y in pairs
    )
    assert sum(diff.different for diff in found) == want
    if want:
        (diff,) = found
        with np.errstate(invalid="ignore"):
            off = np.abs(b - a)
        known = off[np.isfinite(off)]
        assert diff.max_abs == (known.max() if known.size else 0.0)
        assert diff.nan == (np.isnan(a).sum(), np.isnan(b).sum())
        json.dumps(diff.to_dict(), allow_nan=False)
        assert str(diff)


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (torch.tensor([2**53, 1]), torch.tensor([2**53 + 1, 1]), "1 of 2 values"),
        (torch.tensor([True, False]), torch.tensor([True, True]), "1 of 2 values, by at most 1 "),
        (torch.tensor(1 + 1j), torch.tensor(1 + 2j), "1 of 1 values, by at most 1 "),
        (torch.ones(2), torch.ones(3), "f32[2] → f32[3]"),
        (torch.ones(2), torch.ones(2).double(), "f32[2] → f64[2]"),
        (torch.zeros(2), torch.ones(2), "by at most 1 (of zeros) at [0]"),
        (torch.ones(2, 2), torch.tensor([[1, math.nan], [1, 1]]), "NaNs: 0 → 1"),
        (torch.ones(2), torch.ones(2, device="meta"), "device: cpu → meta"),
    ],
)
def test_texts_of_tensors(a: Tensor, b: Tensor, text: str) -> None:
    (found,) = diff_tensors({"x": a}, {"x": b})
    assert text in str(found)
    assert not diff_tensors({"x": a}, {"x": a}) and not diff_tensors({"x": b}, {"x": b})


def test_the_biggest_difference_comes_first() -> None:
    a = {name: torch.full((4,), 10.0) for name in "wxyz"}
    b = {"w": a["w"] + 1, "x": a["x"], "y": a["y"] + 2, "new": torch.ones(1)}
    assert [diff.name for diff in diff_tensors(a, b)] == ["z", "new", "y", "w"]


def test_few_entries_are_shown_unless_all_are_asked_for() -> None:
    model, other = stack(*range(30, 10, -1)), stack(*range(30, 10, -1))
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    found = analogc.diff(model, other)
    assert len(found.weights) == 38 and "  ... 28 more" in str(found)
    assert "more" not in found.text(None) and len(found.text(None)) > len(str(found))


# -- matching -------------------------------------------------------------------------------------


def network(seed: int, size: int) -> list[str]:
    """Printed form of a random graph of functions of one another, some of them with weights."""
    draw = random.Random(seed)
    rows = ["%x: f32[4] = input"]
    names = ["x"]
    for i in range(size):
        op = draw.choice(["relu", "tanh", "add", "linear", "getitem"])
        args = [f"%{draw.choice(names)}" for _ in range(2 if op == "add" else 1)]
        args += {"linear": [f"@l{i}.weight"], "getitem": [str(draw.randrange(3))]}.get(op, [])
        module = draw.choice(["", "  # block", "  # head"])
        name = f"{op}_{i}"
        rows.append(f"%{name}: f32[4] = aten.{op}({', '.join(args)}){module}")
        names.append(name)
    rows.append(f"output = ({', '.join(f'%{n}' for n in draw.sample(names, min(3, len(names))))})")
    return rows


@given(st.integers(0, 10**6), st.integers(0, 30))
def test_a_graph_matches_itself(seed: int, size: int) -> None:
    lines = read("\n".join(network(seed, size)))
    assert len(lines) == size + 2
    assert match(lines, lines) == {i: i for i in range(len(lines))}
    assert diff_texts("\n".join(network(seed, size)), "\n".join(network(seed, size))).equal


@given(st.integers(0, 10**6), st.integers(1, 30))
def test_other_names_are_told_as_such(seed: int, size: int) -> None:
    text = "\n".join(network(seed, size))
    found = diff_texts(text, text.replace("_", "_x"))
    assert not found.of_kind("added") and not found.of_kind("removed")
    assert {c.field for node in found.nodes for c in node.changes} == {"name"}


@given(st.integers(0, 10**6), st.integers(1, 30), st.data())
def test_a_node_more_touches_its_users_only(seed: int, size: int, data: st.DataObject) -> None:
    rows = network(seed, size)
    place = data.draw(st.integers(0, size))
    name = read(rows[place])[0].name
    new = f"%new: f32[4] = aten.sigmoid(%{name})"
    later = [row.replace(f"%{name},", "%new,").replace(f"%{name})", "%new)") for row in rows]
    after = [*rows[: place + 1], new, *later[place + 1 :]]
    users = sum(a != b for a, b in zip(rows, later, strict=True))
    found = diff_texts("\n".join(rows), "\n".join(after))
    assert [node.line.name for node in found.of_kind("added")] == ["new"]
    assert not found.of_kind("removed")
    assert len(found.of_kind("changed")) == users
    for node in found.of_kind("changed"):
        assert all(c.field.startswith("operand") for c in node.changes)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 25), st.integers(0, 25))
def test_any_two_graphs_are_compared(seed: int, other: int, size: int, more: int) -> None:
    a, b = (read("\n".join(network(s, n))) for s, n in ((seed, size), (other, more)))
    pairs = match(a, b)
    assert len(set(pairs.values())) == len(pairs)
    steady = sorted(in_order(pairs))
    assert [pairs[i] for i in steady] == sorted(pairs[i] for i in steady)
    found = diff_texts(*("\n".join(line.text for line in lines) for lines in (a, b)))
    assert [n.b.name for n in found.nodes if n.b] == [line.name for line in b]
    assert sorted(n.a.name for n in found.nodes if n.a) == sorted(line.name for line in a)
    assert found.equal == ([line.text for line in a] == [line.text for line in b])
    str(found)


def test_lines_are_read_as_they_are_printed() -> None:
    model = wide()
    lines = read(model.ir())
    nodes = [node for node in model.graph.nodes if node.op != "get_attr"]
    assert [line.name for line in lines] == [node.name for node in nodes]
    for line, node in zip(lines, nodes, strict=True):
        sources = {n.name for n in node.all_input_nodes if n.op != "get_attr"}
        assert set(line.refs) == sources
    assert list(split('%a, [1, (2, 3)], "x, (y", k={a: 1}')) == [
        "%a", "[1, (2, 3)]", '"x, (y"', "k={a: 1}",
    ]  # fmt: skip


# -- command line ---------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    paths = str(tmp_path / "a.analogc"), str(tmp_path / "b.analogc")
    net(target="ideal").save(paths[0])
    model = net(target="ideal")
    write(model)
    model.save(paths[1])
    return paths


def test_exit_codes_and_texts(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    a, b = files
    assert main(["diff", a, a]) == 0
    assert capsys.readouterr().out == f"a: {a}\nb: {a}\nequal\n"
    assert main(["diff", a, b]) == 1
    out = capsys.readouterr().out
    assert "mid.weight  1 of 96 values" in out and "\x1b" not in out
    assert main(["diff", a, b, "--rtol", "100"]) == 0
    capsys.readouterr()
    assert main(["diff", a, b, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["weights"][0]["name"] == "mid.weight" and data["weights"][0]["where"] == [2, 3]
    assert main(["diff", a, str(tmp_path / "none")]) == 2
    assert "no file" in capsys.readouterr().err
    assert main(["diff", a, b, "--atol", "-1"]) == 2
    assert "atol" in capsys.readouterr().err
    assert main(["diff", a]) == 2


def test_a_terminal_gets_colours(files: tuple[str, str]) -> None:
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, force_terminal=True, width=200).print(analogc.diff(*files), soft_wrap=True)
    assert "\x1b[33m" in out.getvalue() and "mid.weight" in out.getvalue()
