"""Every level of every architecture: verified, complete, and with the model's own numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

pytest.importorskip("torch_mlir")

import analogc
from analogc.compiler.mlir.attributes import mapping_of, spec_text, to_json
from analogc.compiler.mlir.context import new_context
from analogc.compiler.mlir.dialect import ConvOp, LinearOp
from analogc.compiler.mlir.module import MlirModule
from analogc.compiler.mlir.passes.base import operations
from analogc.compiler.model import CompiledModel

from .architectures import ARCHITECTURES, build


def flat(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def names(module: Any) -> list[str]:
    """Names of all operations, in the order of the text."""
    found: list[str] = []

    def visit(op: Any) -> Any:
        from torch_mlir import ir

        found.append(op.name)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


def parsed(data: str | bytes) -> Any:
    from torch_mlir import ir

    with new_context():
        return ir.Module.parse(data)


def check_round_trips(mlir: MlirModule) -> None:
    text = mlir.text(locations=True)
    again = parsed(text)
    assert again.operation.get_asm(enable_debug_info=True) == text
    assert parsed(mlir.bytecode()).operation.get_asm(enable_debug_info=True) == text


def check_agreement(compiled: CompiledModel, torch_level: MlirModule, analog: MlirModule) -> None:
    """The printed graph and both modules: the same layers, shapes, mapping and settings."""
    nodes = list(compiled._analog_nodes())
    lines = [line for line in str(compiled).splitlines() if " = analogc." in line]
    operators = [op for op in _operators(torch_level.module) if "analogc" in op["name"]]
    layers = operations(analog.module, LinearOp, ConvOp)
    assert len(lines) == len(nodes) == len(operators) == len(layers)
    for line, (node, mapping), operator, layer in zip(lines, nodes, operators, layers, strict=True):
        assert f"%{node.name}:" in line and f"analogc.{mapping.op}(" in line
        assert f"{mapping.tile_rows}x{mapping.tile_cols}" in line
        assert operator["name"] == f"torch.analogc.{mapping.op}"
        assert operator["strings"] == [node.args[-2], mapping.layer]
        assert mapping_of(layer) == mapping
        assert spec_text(layer) == node.args[-2]
        assert list(layer.weight.type.shape) == list(mapping.weight_shape)
        shape = [size if isinstance(size, int) else None for size in node.meta["val"].shape]
        assert operator["shape"] == shape == _sizes(layer.y)


def _operators(module: Any) -> list[dict[str, Any]]:
    found = []
    for op in module.body.operations[0].body.blocks[0].operations:
        if op.operation.name == "torch.operator":
            owners = [getattr(v.owner, "opview", v.owner) for v in op.operation.operands]
            strings = [
                to_json(o.operation.attributes["value"]) for o in owners
                if getattr(getattr(o, "operation", None), "name", "") == "torch.constant.str"
            ]  # fmt: skip
            text = str(op.operation.results[0].type)
            sizes = text.partition("[")[2].partition("]")[0].split(",")
            found.append({
                "name": to_json(op.operation.attributes["name"]),
                "strings": strings,
                "shape": [None if size == "?" else int(size) for size in sizes],
            })  # fmt: skip
    return found


def _sizes(value: Any) -> list[int | None]:
    kind = value.type
    return [None if kind.is_dynamic_dim(d) else kind.get_dim_size(d) for d in range(kind.rank)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ladder(name: str) -> None:
    model, inputs, layers = build(name)
    ideal = analogc.compile(model, inputs, target="ideal", dynamic_shapes="batch")
    compiled = analogc.compile(model, inputs, dynamic_shapes="batch", seed=0)
    with torch.no_grad():
        for got, want in zip(flat(ideal(*inputs)), flat(model(*inputs)), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
        expected = flat(compiled(*inputs))

    torch_level = compiled.to_mlir("torch")
    analog = compiled.to_mlir("analog")
    linalg = compiled.to_mlir("linalg", programmed=True)

    for level in (torch_level, analog, linalg):
        level.verify()
        check_round_trips(level)
    check_agreement(compiled, torch_level, analog)
    inside = names(analog.module)
    assert not [op for op in inside if op.startswith("torch")]
    assert sum(op.startswith("analog.") for op in inside) == layers == len(compiled.tiles)
    convs = sum(mapping.op != "linear" for mapping in compiled.tiles)
    assert inside.count("analog.conv") == convs
    assert not [op for op in names(linalg.module) if op.startswith(("torch", "analog."))]

    for got, want in zip(flat(linalg.compile()(*inputs)), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * float(want.abs().max()))
    # Another batch by the same code, layers on the model's own tiles.
    longer = tuple(torch.cat([x, x[:1]]) for x in inputs)
    with torch.no_grad():
        expected = flat(compiled(*longer))
    for got, want in zip(flat(analog.compile()(*longer)), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * float(want.abs().max()))


@pytest.mark.parametrize("name", ["llama", "mobilenet_v3"])
def test_static_shapes_stay_static(name: str) -> None:
    model, inputs, _ = build(name)
    compiled = analogc.compile(model, inputs, seed=0)

    analog, linalg = compiled.to_mlir("analog"), compiled.to_mlir("linalg")

    check_agreement(compiled, compiled.to_mlir("torch"), analog)
    for module in (analog, linalg):
        assert "?" not in str(module).partition("-> ")[0]
