from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import analogc
from analogc.compiler.picture.dot import to_dot

from .drawn import NASTY, SMALL, residual
from .test_explorer import Cut

TOKEN = re.compile(
    r'\s*(?:("(?:[^"\\]|\\.)*")|([A-Za-z_][\w.]*|-?\d+\.?\d*)|(->|[{}\[\];=]))', re.S
)


class Dot:
    """A reader of the part of the DOT language that we write; anything else is an error."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        at = 0
        while text[at:].strip():
            match = TOKEN.match(text, at)
            assert match is not None, f"no DOT: {text[at : at + 60]!r}"
            self.tokens.append(match[0].strip())
            at = match.end()
        self.nodes: dict[str, dict[str, str]] = {}
        self.edges: list[tuple[str, str]] = []
        self.clusters: dict[str, tuple[str, ...]] = {}
        self.labels: dict[str, str] = {}
        self.home: dict[str, tuple[str, ...]] = {}
        self.take("digraph")
        self.name()
        self.block(())
        assert not self.tokens

    def take(self, wanted: str) -> None:
        assert self.tokens and self.tokens.pop(0) == wanted, f"{wanted!r} is missing"

    def name(self) -> str:
        token = self.tokens.pop(0)
        assert token[0] not in "{}[];=-", f"no name: {token!r}"
        return token

    def block(self, path: tuple[str, ...]) -> None:
        self.take("{")
        while self.tokens[0] != "}":
            self.statement(path)
        self.take("}")

    def statement(self, path: tuple[str, ...]) -> None:
        if self.tokens[0] == "subgraph":
            self.take("subgraph")
            name = self.name()
            assert name.startswith('"cluster') and name not in self.clusters
            self.clusters[name] = path
            self.block((*path, name))
            return
        name = self.name()
        if self.tokens[0] == "=":
            self.take("=")
            self.labels[path[-1]] = self.name()
        elif self.tokens[0] == "->":
            self.take("->")
            self.edges.append((name, self.name()))
        elif name in ("node", "graph"):
            self.attributes()
        else:
            assert name not in self.nodes, f"{name} twice"
            self.nodes[name] = self.attributes()
            self.home[name] = path
        self.take(";")

    def attributes(self) -> dict[str, str]:
        found: dict[str, str] = {}
        self.take("[")
        while self.tokens[0] != "]":
            key = self.name()
            self.take("=")
            found[key] = self.name()
        self.take("]")
        return found


@pytest.fixture(scope="module")
def compiled() -> analogc.CompiledModel:
    return residual()


def test_dot_has_the_activations_and_their_edges(compiled: analogc.CompiledModel) -> None:
    dot = Dot(compiled.to_dot())
    activations = {
        node.name for node in compiled.graph.nodes if node.op not in ("get_attr", "call_module")
    }
    assert {name.strip('"') for name in dot.nodes} == activations
    edges = {
        (f'"{source.name}"', f'"{node.name}"')
        for node in compiled.graph.nodes
        for source in node.all_input_nodes
        if {source.name, node.name} <= activations
    }
    assert set(dot.edges) == edges and len(dot.edges) == len(edges)


def test_dot_is_clustered_by_module(compiled: analogc.CompiledModel) -> None:
    dot = Dot(compiled.to_dot())
    labels = [
        "/".join(dot.labels[c].strip('"') for c in dot.home[n]) for n in ('"conv2d_3"', '"linear"')
    ]
    assert labels == ["0/1", ""]
    assert '"0.1.conv2\\nconv2d, 1x3x1 tiles, 75.0 % used\\n%' in dot.nodes['"conv2d_3"']["label"]


def test_dot_is_the_same_every_time_and_is_written(
    compiled: analogc.CompiledModel, tmp_path: Path
) -> None:
    text = compiled.to_dot(tmp_path / "g.dot")
    assert text == residual().to_dot() == (tmp_path / "g.dot").read_text(encoding="utf-8")


def test_names_of_the_user_stay_inside_their_quotes() -> None:
    model = residual()
    names = [NASTY, 'x"];', "a\nb", "\\", "\\N"]
    for number, node in enumerate(n for n in model.graph.nodes if "nn_module_stack" in n.meta):
        name = names[number // 3 % len(names)]
        node.meta["nn_module_stack"] = {"a": (name, name)}
    dot = Dot(model.to_dot())
    assert '"x\\"];"' in dot.labels.values() and '"\\\\N"' in dot.labels.values()
    model.to_dot().encode()


def test_several_graphs_are_clusters_of_one_picture() -> None:
    model: Any = analogc.compile(Cut(), (torch.randn(2, 8),), target=SMALL, capture="dynamo")
    dot = Dot(model.to_dot())
    outer = {path[0] for path in dot.home.values()}
    assert len(outer) == 2
    assert all(dot.home[a][0] == dot.home[b][0] for a, b in dot.edges)


def test_a_graph_of_an_output_alone_can_be_written() -> None:
    graph = fx.Graph()
    graph.output(())
    assert set(Dot(to_dot([fx.GraphModule(nn.Module(), graph)])).nodes) == {'"output"'}
