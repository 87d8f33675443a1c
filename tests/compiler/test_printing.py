"""The printed forms: one stable line a node, with shapes, tiles and places."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc import TileSpec

X = torch.linspace(-1.0, 1.0, 3 * 2 * 6 * 6).reshape(3, 2, 6, 6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        out: Tensor = self.head(self.grouped(x).flatten(1))
        return out


def small_tiles() -> analogc.Target:
    return analogc.targets.generic_8bit().replace(tile=TileSpec(8, 8))


def test_printed_form_of_a_small_network() -> None:
    compiled = analogc.compile(
        Net().eval(), (X,), target=small_tiles(), dynamic_shapes="batch", seed=0
    )
    lines = [re.sub(r" {2,}= ", " = ", line) for line in str(compiled).splitlines()]
    assert lines == [
        "CompiledModel(target=generic-8bit, mode=eval): 13 tiles in 3 arrays, 36.5 % used",
        "%x: f32[s0, 2, 6, 6] = input",
        "%derived_conv_weight: f32[4, 2, 3, 3] = derive(@conv.weight, @norm.weight,"
        " @norm.running_var)  # norm",
        "%derived_conv_bias: f32[4] = derive(@conv.weight, @norm.weight, @norm.bias,"
        " @norm.running_mean, @norm.running_var)  # norm",
        "%conv2d: f32[s0, 4, 4, 4] = analogc.conv2d(%x, %derived_conv_weight,"
        " %derived_conv_bias)  {3x1 of 8x8, rows 3x6, cols 4, t0..t2, 37.5 % used}  # conv",
        "%relu: f32[s0, 4, 4, 4] = aten.relu(%conv2d)",
        "%conv2d_1: f32[s0, 4, 2, 2] = analogc.conv2d(%relu, @grouped.weight, @grouped.bias,"
        " groups=2)  {2x3x1 of 8x8, rows 3x6, cols 2, t3..t8, 18.8 % used}  # grouped",
        "%flatten: f32[s0, 16] = aten.flatten.using_ints(%conv2d_1, 1)",
        "%linear: f32[s0, 10] = analogc.linear(%flatten, @head.weight, @head.bias)"
        "  {2x2 of 8x8, rows 2x8, cols 2x5, t9..t12, 62.5 % used}  # head",
        "output = (%linear)",
    ]


def test_text_is_equal_for_equal_models_and_in_another_process() -> None:
    texts = {str(analogc.compile(Net().eval(), (X,), target=small_tiles())) for _ in range(3)}
    assert len(texts) == 1
    script = (
        f"import sys; sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\n"
        "import analogc, test_printing as t\n"
        "print(analogc.compile(t.Net().eval(), (t.X,), target=t.small_tiles()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in texts


def test_text_does_not_depend_on_weights_or_seed() -> None:
    first, second = Net().eval(), Net().eval()
    texts = {
        analogc.compile(first, (X,), seed=0).ir(),
        analogc.compile(second, (X,), seed=1).ir(),
        analogc.compile(second, (X * 2,)).ir(),
    }
    assert len(texts) == 1


def test_repr_is_the_printed_form_and_names_target_and_mode() -> None:
    compiled = analogc.compile(Net().eval(), (X,), target="ideal")
    assert repr(compiled) == str(compiled)
    assert str(compiled).startswith("CompiledModel(target=ideal, mode=eval): 4 tiles in 3 arrays")
    assert "mode=train" in str(compiled.train()).splitlines()[0]


def test_each_node_has_one_line_and_each_analog_line_its_tiles() -> None:
    compiled = analogc.compile(Net().eval(), (X,), target=small_tiles())
    lines = compiled.ir().splitlines()
    nodes = [node for node in compiled.graph.nodes if node.op != "get_attr"]
    assert len(lines) == len(nodes)
    for line, node in zip(lines, nodes, strict=True):
        assert line.startswith("output" if node.op == "output" else f"%{node.name}: ")
        analog = "analogc." in line
        assert analog == bool(re.search(r"\{.*of 8x8, rows .*, cols .*, t\d+.* % used\}", line))
    assert sum("analogc." in line for line in lines) == 3


def test_tile_ids_in_the_text_are_those_of_the_table() -> None:
    compiled = analogc.compile(Net().eval(), (X,), target=small_tiles())
    for mapping in compiled.tiles:
        ids = mapping.tile_ids
        text = f"t{ids[0]}..t{ids[-1]}" if len(ids) > 1 else f"t{ids[0]},"
        assert text in compiled.ir()


@pytest.mark.parametrize("names", [("s0",), ("s0", "s1")])
def test_symbolic_sizes_print_as_symbols_in_order_of_appearance(names: tuple[str, ...]) -> None:
    x = torch.randn(3, 7, 6)
    dims = {i: torch.export.Dim(f"dim{i}", min=2, max=99) for i in range(len(names))}
    compiled = analogc.compile(nn.Linear(6, 4), (x,), dynamic_shapes=(dims,))
    sizes = ", ".join([*names, "7", "6"][: len(names)] + ["7", "6"][len(names) - 1 :])
    assert f"f32[{sizes}] = input" in re.sub(r" +=", " =", compiled.ir())
    assert sorted(set(re.findall(r"\bs\d+\b", compiled.ir()))) == list(names)


def test_derived_symbolic_sizes_are_expressions() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(torch.cat([x, x]))
            return out

    compiled = analogc.compile(Doubled(), (torch.randn(3, 6),), dynamic_shapes="batch")
    assert "f32[2*s0, 4]" in compiled.ir()


@pytest.mark.parametrize(
    ("dtype", "short"), [(torch.float64, "f64"), (torch.bfloat16, "bf16"), (torch.float16, "f16")]
)
def test_dtypes_are_printed_short(dtype: torch.dtype, short: str) -> None:
    compiled = analogc.compile(nn.Linear(6, 4).to(dtype), (torch.randn(3, 6).to(dtype),))
    assert f"{short}[3, 4]" in compiled.ir()


def test_reasons_of_digital_products_are_printed() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.layer(x) @ x.mT)

    compiled = analogc.compile(Products(), (torch.randn(3, 6),))
    assert "{digital: activation x activation: nothing to store}" in compiled.ir()
    assert "{digital" not in next(s for s in compiled.ir().splitlines() if "relu" in s)
    chosen = analogc.compile(Products(), (torch.randn(3, 6),), select="layer")
    assert "{digital: kept digital by select=}" in chosen.ir()


def test_history_shows_the_graph_before_and_after_each_pass() -> None:
    compiled = analogc.compile(Net().eval(), (X,))
    assert [step.name for step in compiled.history] == [p.name for p in analogc.DEFAULT_PASSES]
    for one, following in zip(compiled.history, compiled.history[1:], strict=False):
        assert one.after == following.before
    assert compiled.history[-1].after == compiled.ir()
    assert "analogc." not in compiled.history[0].before
    assert "aten.batch_norm" in compiled.history[0].before
    for step in compiled.history:
        if not step.modified and step.name not in ("select-analog", "map-tiles"):
            assert step.before == step.after, step.name
    modified = {step.name for step in compiled.history if step.modified}
    assert {"fold-batch-norm", "derive-weights", "rewrite-analog"} <= modified
    assert "verify" not in modified


def test_tile_table_prints_every_array() -> None:
    compiled = analogc.compile(Net().eval(), (X,), target=small_tiles())
    text = str(compiled.tiles)
    assert text.splitlines()[0] == compiled.tiles.summary()
    for mapping in compiled.tiles:
        assert any(line.split()[0] == mapping.array for line in text.splitlines()[1:])


def test_utilisation_is_that_of_all_cells() -> None:
    compiled = analogc.compile(Net().eval(), (X,), target=small_tiles())
    weights = 4 * 2 * 9 + 4 * 2 * 9 + 16 * 10
    assert compiled.tiles.utilisation == pytest.approx(weights / (13 * 64))
    assert analogc.compile(nn.ReLU(), (X,)).tiles.utilisation == 0.0


def test_rich_tables_hold_the_same_facts() -> None:
    from rich.console import Console

    compiled = analogc.compile(Net().eval(), (X,), target=small_tiles())
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(compiled.tiles)
    console.print(compiled.coverage)
    text = console.export_text()
    for fact in (
        compiled.tiles.summary(), compiled.coverage.summary(), "grouped", "4x2x3x3", "9..12",
        "62.5 %", "analogc.conv2d", "analog",
    ):  # fmt: skip
        assert fact in text, fact
