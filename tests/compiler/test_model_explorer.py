"""The file against the schema of ai-edge-model-explorer's graph_builder.py (version 0.1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import analogc

from .drawn import SMALL, residual
from .test_explorer import Cut

REQUIRED = {"id": str, "label": str, "namespace": str, "attrs": list, "incomingEdges": list}
OPTIONAL = {"outputsMetadata": list, "style": dict}
STYLE = {"backgroundColor", "borderColor", "hoveredBorderColor"}
EDGE = {"sourceNodeId", "sourceNodeOutputId", "targetNodeInputId"}


def check_pairs(pairs: list[dict[str, Any]]) -> dict[str, str]:
    for pair in pairs:
        assert set(pair) == {"key", "value"} and all(isinstance(v, str) for v in pair.values())
    assert len({pair["key"] for pair in pairs}) == len(pairs)
    return {pair["key"]: pair["value"] for pair in pairs}


def check_collection(text: str) -> dict[str, Any]:
    collection: dict[str, Any] = json.loads(text)
    assert set(collection) == {"label", "graphs"} and isinstance(collection["label"], str)
    ids = [graph["id"] for graph in collection["graphs"]]
    assert len(set(ids)) == len(ids)
    for graph in collection["graphs"]:
        assert set(graph) == {"id", "nodes"}
        names = {node["id"] for node in graph["nodes"]}
        assert len(names) == len(graph["nodes"])
        for node in graph["nodes"]:
            check_node(node, names)
    return collection


def check_node(node: dict[str, Any], names: set[str]) -> None:
    assert set(REQUIRED) <= set(node) <= set(REQUIRED) | set(OPTIONAL)
    for key, value in node.items():
        assert isinstance(value, (REQUIRED | OPTIONAL)[key])
    assert not node["namespace"].startswith("/") and "//" not in node["namespace"]
    check_pairs(node["attrs"])
    for edge in node["incomingEdges"]:
        assert set(edge) == EDGE and all(isinstance(value, str) for value in edge.values())
        assert edge["sourceNodeId"] in names
    for output in node.get("outputsMetadata", ()):
        assert set(output) == {"id", "attrs"} and isinstance(output["id"], str)
        check_pairs(output["attrs"])
    assert set(node.get("style", STYLE)) == STYLE


@pytest.fixture(scope="module")
def nodes() -> dict[str, dict[str, Any]]:
    collection = check_collection(residual().to_model_explorer())
    (graph,) = collection["graphs"]
    return {node["id"]: node for node in graph["nodes"]}


def test_nodes_are_grouped_by_module(nodes: dict[str, dict[str, Any]]) -> None:
    assert nodes["conv2d_3"]["namespace"] == "0/1"
    assert nodes["linear"]["namespace"] == ""


def test_edges_are_those_of_the_graph(nodes: dict[str, dict[str, Any]]) -> None:
    for node in residual().graph.nodes:
        if node.op != "get_attr":
            inputs = [n.name for n in node.all_input_nodes if n.op != "get_attr"]
            assert [edge["sourceNodeId"] for edge in nodes[node.name]["incomingEdges"]] == inputs


def test_an_analog_node_tells_its_tiles(nodes: dict[str, dict[str, Any]]) -> None:
    node = nodes["conv2d_3"]
    attrs = check_pairs(node["attrs"])
    assert node["label"] == "0.1.conv2"
    assert attrs["placement"] == "analog" and attrs["tiles"] == "1x3x1"
    assert attrs["tile size"] == "32x8" and attrs["adc"] == "8 bits, calibrated range"
    assert check_pairs(node["outputsMetadata"][0]["attrs"])["tensor_shape"] == "f32[2, 8, 6, 6]"
    assert "style" in node and "style" not in nodes["add"]


def test_a_digital_node_tells_why() -> None:
    collection = check_collection(residual(select=["3"]).to_model_explorer())
    (node,) = (n for n in collection["graphs"][0]["nodes"] if n["id"] == "linear")
    assert "select=" in check_pairs(node["attrs"])["why digital"]


def test_the_file_is_written_and_always_the_same(tmp_path: Path) -> None:
    text = residual().to_model_explorer(tmp_path / "m.json")
    assert (tmp_path / "m.json").read_text(encoding="utf-8") == text
    assert residual().to_model_explorer() == text


def test_several_graphs_are_one_collection() -> None:
    model: Any = analogc.compile(Cut(), (torch.randn(2, 8),), target=SMALL, capture="dynamo")
    assert len(check_collection(model.to_model_explorer())["graphs"]) == 2
