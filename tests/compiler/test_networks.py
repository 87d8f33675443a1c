"""The networkx graph of a compiled model, and what is computed from it."""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import analogc
from analogc.compiler.dataflow import COSTS, Dataflow
from analogc.errors import InputError


class Attention(nn.Module):
    """Three layers that can run at the same time, and one weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x)
        y = self.out(self.out(a) + a)
        return y, y + y


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.shortcut = nn.Conv2d(1, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.norm(self.a(x)).relu()) + self.shortcut(x)
        return y


def recurrent() -> nn.Module:
    return nn.LSTM(6, 5, batch_first=True, bidirectional=True)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (Attention, (2, 5, 8)),
    "residual": (Residual, (2, 1, 6, 6)),
    "recurrent": (recurrent, (2, 3, 6)),
    "nothing analog": (nn.ReLU, (2, 3)),
}


def compiled(name: str, **options: Any) -> analogc.CompiledModel:
    make, shape = MODELS[name]
    return analogc.compile(make().eval(), (torch.randn(shape),), seed=0, **options)


TYPES = {
    "kind": str, "op": str, "name": str, "graph": str, "shape": str, "dtype": str, "bytes": int,
    "dynamic": bool, "module": str, "source": str, "macs": int, "coverage": str, "reason": str,
}  # fmt: skip
OF_KIND: dict[str, dict[str, type]] = {
    "analog": {
        "layer": str, "array": str, "mvms": int, "tiles": int, "first_tile": int, "grid": str,
        "tile": str, "utilisation": float, "weight_shape": str, "settings": str,
    },
    "parameter": {"path": str},
}  # fmt: skip
OF_EDGES = {"operands": str, "shape": str, "dtype": str, "bytes": int, "dynamic": bool}


@pytest.mark.parametrize("batch", [None, "batch"])
@pytest.mark.parametrize("name", MODELS)
def test_attributes_are_those_that_are_documented(name: str, batch: str | None) -> None:
    model = compiled(name, dynamic_shapes=batch)
    graph = model.to_networkx()
    assert [n for n in graph] == [node.name for node in model.graph.nodes]
    for node in model.graph.nodes:
        facts = graph.nodes[node.name]
        want = {**TYPES, **OF_KIND.get(facts["kind"], {})}
        assert {key: type(value) for key, value in facts.items()} == want
        assert set(graph.predecessors(node.name)) == {n.name for n in node.all_input_nodes}
    for _, _, facts in graph.edges(data=True):
        assert {key: type(value) for key, value in facts.items()} == OF_EDGES
    analog = {n: f for n, f in graph.nodes.items() if f["kind"] == "analog"}
    assert [f["layer"] for f in analog.values()] == [r.reason for r in model.coverage.analog]
    assert sum(f["macs"] for f in graph.nodes.values()) == model.coverage.macs
    assert sum({f["array"]: f["tiles"] for f in analog.values()}.values()) == model.tiles.total
    assert any(f["dynamic"] for f in graph.nodes.values()) == (batch is not None)


def test_values_of_attributes() -> None:
    graph = compiled("attention", dynamic_shapes="batch").to_networkx()
    first = graph.nodes["linear"]
    assert first["op"] == "analogc.linear" and first["layer"] == first["module"] == "q"
    assert (first["shape"], first["dtype"], first["bytes"]) == ("[s0, 5, 8]", "float32", 320)
    assert (first["macs"], first["mvms"], first["grid"]) == (640, 10, "1x1x1")
    assert first["source"].rpartition(":")[0].endswith("test_networks.py")
    assert json.loads(first["settings"])["adc"]["bits"] == 8
    assert (
        graph.nodes["matmul"]["coverage"] == "rule" and "store" in graph.nodes["matmul"]["reason"]
    )
    stored = {f["op"] for f in graph.nodes.values() if f["kind"] == "parameter"}
    assert stored == {"parameter", "range"}
    weight = next(f for f in graph.nodes.values() if f.get("path") == "out.weight")
    assert (weight["shape"], weight["bytes"], weight["dynamic"]) == ("[8, 8]", 256, False)
    (twice,) = (f for u, v, f in graph.edges(data=True) if f["operands"] == "0,1")
    assert twice["bytes"] == 320


def test_computed_weights_and_buffers_are_told_apart() -> None:
    graph = compiled("residual").to_networkx()
    ops = {f["path"]: f["op"] for f in graph.nodes.values() if f["kind"] == "parameter"}
    assert ops["norm.running_var"] == "buffer" and ops["norm.weight"] == "parameter"
    assert "derive" in ops.values()


@pytest.mark.parametrize("name", MODELS)
def test_every_writer_takes_it(name: str, tmp_path: Path) -> None:
    graph = compiled(name, dynamic_shapes="batch").to_networkx()
    nx.write_graphml(graph, tmp_path / "model.graphml")
    read = nx.read_graphml(tmp_path / "model.graphml")
    assert dict(read.nodes.items()) == dict(graph.nodes.items())
    assert {(u, v): d for u, v, d in read.edges(data=True)} == {
        (u, v): d for u, v, d in graph.edges(data=True)
    }
    text = json.dumps(nx.node_link_data(graph))
    assert nx.utils.graphs_equal(nx.node_link_graph(json.loads(text)), graph)


def test_a_loaded_model_has_the_same_graph(tmp_path: Path) -> None:
    model = compiled("attention", dynamic_shapes="batch")
    model.save(tmp_path / "m.analogc")
    read = analogc.load(tmp_path / "m.analogc").to_networkx()
    assert nx.utils.graphs_equal(read, model.to_networkx())


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.left, self.right = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.enter(x))
        z: Tensor = self.left(y) if y.mean() > 0 else self.right(y)
        return z


def test_several_graphs_are_side_by_side() -> None:
    model = analogc.compile(Router().eval(), (torch.ones(2, 8),), capture="dynamo")
    graph = model.to_networkx()
    labels = [getattr(piece, "label", "") for piece in model.graphs]
    assert (
        len(labels) == 2 and list(dict.fromkeys(f["graph"] for f in graph.nodes.values())) == labels
    )
    assert all(u.partition(":")[0] == v.partition(":")[0] for u, v in graph.edges)
    assert nx.number_weakly_connected_components(graph) == 2
    dataflow = model.dataflow
    assert [len(level.nodes) for level in dataflow.levels] == [1, 1] and not dataflow.parallel
    assert "of the longest graph: 1 of 2 analog layers" in dataflow.summary()


# -- dataflow -------------------------------------------------------------------------------------


def test_attention_has_parallel_layers_and_a_shared_weight() -> None:
    dataflow = compiled("attention").dataflow
    assert [level.arrays for level in dataflow.parallel] == [("q", "k", "v")]
    (shared,) = dataflow.shared
    assert (shared.array, len(shared.nodes), shared.mvms) == ("out", 2, 20)
    path = dataflow.critical_path("layers")
    assert (path.length, path.total, len(path.nodes)) == (3, 5, 3)
    assert dataflow.critical_path("mvms").length == 30 == dataflow.bound
    # q, one of the two products of activations, and so on: by hand
    assert dataflow.critical_path("macs").length == 3 * 640 + 2 * (2 * 5 * 5 * 8)
    assert dataflow.critical_path(lambda facts: 1).length == nx.dag_longest_path_length(
        dataflow.graph, weight="none", default_weight=1
    ) + 1  # fmt: skip
    text = str(dataflow)
    assert "3 of 5 analog layers, 30 of 50 MVMs; up to 3 tile arrays at a time" in text
    assert "q ‖ k ‖ v" in text and "out: 2 uses, 20 MVMs" in text


def test_a_convolution_costs_its_output_pixels() -> None:
    dataflow = compiled("residual").dataflow
    assert dataflow.critical_path().length == 2 * (2 * 36) and dataflow.bound == 144
    assert [set(level.arrays) for level in dataflow.parallel] == [{"a", "shortcut"}]


def test_steps_of_a_loop_are_one_line() -> None:
    dataflow = compiled("recurrent").dataflow
    assert "(2 times)" in str(dataflow)
    assert len([line for line in str(dataflow).splitlines() if "parallel" in line]) == 2
    assert {shared.array for shared in dataflow.shared} == {
        "weight_hh_l0", "weight_hh_l0_reverse"
    }  # fmt: skip


def test_the_busiest_array_bounds_a_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            product: Tensor = self.layer(x) * self.layer(x + 1)
            return product

    dataflow = analogc.compile(Twice(), (torch.randn(3, 4),)).dataflow
    assert dataflow.critical_path().length == 3 and dataflow.bound == 6
    assert not dataflow.parallel  # one array: the uses take turns


def test_a_model_without_layers_has_no_path() -> None:
    dataflow = compiled("nothing analog").dataflow
    assert dataflow.bound == 0 and not dataflow.levels and not dataflow.shared
    assert str(dataflow).startswith("critical path: 0 of 0 analog layers")


@pytest.mark.parametrize("name", MODELS)
def test_reports_hold_what_the_text_says(name: str, tmp_path: Path) -> None:
    model = compiled(name)
    data = json.loads(json.dumps(model.dataflow.to_dict()))
    assert set(data["critical_path"]) == set(COSTS)
    assert sum(map(len, data["levels"])) == len(model.coverage.analog)
    model.to_html(tmp_path / "m.html")
    for page in (model._repr_html_(), (tmp_path / "m.html").read_text()):
        assert all(text in page for text in (model.dataflow.summary(), *texts(model)))


def texts(model: analogc.CompiledModel) -> list[str]:
    return [html.escape(who) for _, who in model.dataflow.lines()]


def test_an_unknown_cost_is_named() -> None:
    with pytest.raises(InputError, match="no cost named 'time'"):
        compiled("residual").dataflow.critical_path("time")


@st.composite
def networks(draw: st.DrawFn) -> nx.DiGraph:
    """Random graphs with the attributes that a dataflow reads."""
    count = draw(st.integers(1, 12))
    graph = nx.DiGraph()
    for i in range(count):
        analog = draw(st.booleans())
        facts = {
            "kind": "analog" if analog else "digital",
            "graph": "",
            "macs": draw(st.integers(0, 9)),
        }
        if analog:
            name = draw(st.sampled_from("abcd"))
            facts |= {"array": name, "layer": f"{name}{i}", "mvms": draw(st.integers(1, 5))}
        graph.add_node(f"n{i}", **facts)
        for j in range(i):
            if draw(st.booleans()):
                graph.add_edge(f"n{j}", f"n{i}")
    return graph


@given(networks())
def test_dataflow_of_any_graph(graph: nx.DiGraph) -> None:
    dataflow = Dataflow(graph)
    reach = nx.transitive_closure_dag(graph)
    levels = dataflow.levels
    assert sorted(itertools.chain.from_iterable(level.nodes for level in levels)) == sorted(
        dataflow.analog
    )
    for level in levels:
        assert not any(reach.has_edge(u, v) for u in level.nodes for v in level.nodes)
    costs: dict[str, Callable[[dict[str, Any]], int]] = {
        "mvms": lambda f: int(f.get("mvms", 0)),
        "macs": lambda f: int(f["macs"]),
        "layers": lambda f: int(f["kind"] == "analog"),
    }
    for cost, weigh in costs.items():
        path = dataflow.critical_path(cost)
        assert path.length == sum(weigh(graph.nodes[n]) for n in path.nodes)
        assert all(reach.has_edge(u, v) for u, v in itertools.pairwise(path.nodes))
        every = (
            sum(weigh(graph.nodes[n]) for n in chain)
            for size in range(1, len(graph) + 1)
            for chain in itertools.combinations(graph, size)
            if all(reach.has_edge(u, v) for u, v in itertools.pairwise(chain))
        )
        assert path.length == max(every)
    assert len(levels) == dataflow.critical_path("layers").length
