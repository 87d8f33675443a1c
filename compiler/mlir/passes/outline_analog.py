"""Replace every layer by a call of a private function that somebody else provides.

The declaration carries the layer's operation and attributes, so that the callee can find it:

    func.func private @analog.fc1(tensor<?x4xf32>) -> tensor<?x8xf32>
        attributes {analog.layer = "fc1", analog.op = "analog.linear", analog.attributes = {...}}

``abi=tensor`` passes tensors by value and returns one: for IREE's Python modules. ``abi=buffer``
passes buffers, the result's own as the last argument, and returns nothing: for the callbacks of
MLIR's ExecutionEngine. ``operands=input`` passes the layer's input alone, for a callee that holds
the weights itself; ``operands=all`` passes every operand that the layer has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch_mlir import ir
from torch_mlir.dialects import bufferization, func, memref

from .. import build
from ..attributes import to_json
from ..build import Value
from ..dialect import ConvOp, LinearOp
from ..window import Window
from .base import MlirPass, operations, replaced

LAYER, OPERATION, ATTRIBUTES = "analog.layer", "analog.op", "analog.attributes"
"""Attributes of a declaration."""


@dataclass(frozen=True, slots=True)
class OutlineAnalog(MlirPass):
    """Layers to calls of ``@<prefix><layer>``."""

    abi: Literal["tensor", "buffer"] = "tensor"
    """How operands and the result travel."""
    operands: Literal["all", "input"] = "all"
    """What is passed."""
    prefix: str = "analog."
    """Of the functions' names; before a dot: the module that IREE looks in."""
    name: ClassVar[str] = "outline-analog-to-calls"

    def __call__(self, module: Any) -> None:
        """Outline all layers of ``module``."""
        symbols = ir.SymbolTable(module.operation)
        declared: dict[tuple[str, ...], str] = {}
        for op in operations(module, LinearOp, ConvOp):
            count = 1 if self.operands == "input" else None
            inputs = list(op.operation.operands)[:count]
            with build.before(op):
                call = _buffers if self.abi == "buffer" else _tensors
                value = call(self, module, symbols, declared, op, inputs)
            replaced(op, value)

    def declare(
        self, module: Any, symbols: Any, declared: dict[tuple[str, ...], str], op: Any, kind: Any
    ) -> str:
        """Name of the declaration for this layer and function type."""
        key = (op.operation.name, str(op.operation.attributes), str(kind))
        if key in declared:
            return declared[key]
        layer = to_json(op.mapping.layer)
        name = self.prefix + re.sub(r"[^\w.$]", "_", layer)
        found, number = name, 1
        while found in symbols:
            number += 1
            found = f"{name}_{number}"
        with ir.InsertionPoint.at_block_begin(module.body):
            function = func.FuncOp(found, kind, visibility="private")
        held = {item.name: item.attr for item in op.operation.attributes}
        function.attributes[LAYER] = op.mapping.layer.maybe_downcast()
        function.attributes[OPERATION] = ir.StringAttr.get(op.OPERATION_NAME)
        function.attributes[ATTRIBUTES] = ir.DictAttr.get(held)
        if self.abi == "buffer":
            function.attributes["llvm.emit_c_interface"] = ir.UnitAttr.get()
        symbols.insert(function)
        declared[key] = found
        return found


def _tensors(
    step: OutlineAnalog, module: Any, symbols: Any, declared: Any, op: Any, inputs: Any
) -> Value:
    kind = ir.FunctionType.get([value.type for value in inputs], [op.y.type])
    name = step.declare(module, symbols, declared, op, kind)
    return func.CallOp([op.y.type], ir.FlatSymbolRefAttr.get(name), inputs).result


def _buffers(
    step: OutlineAnalog, module: Any, symbols: Any, declared: Any, op: Any, inputs: Any
) -> Value:
    kinds = [_buffer(value.type) for value in (*inputs, op.y)]
    name = step.declare(module, symbols, declared, op, ir.FunctionType.get(kinds, []))
    kind = op.y.type
    dynamic = [n for d, n in enumerate(_result_sizes(op)) if kind.is_dynamic_dim(d)]
    held = [
        bufferization.ToBufferOp(kind, value, read_only=True).result
        for kind, value in zip(kinds[:-1], inputs, strict=True)
    ]
    out = memref.AllocOp(kinds[-1], dynamic, []).result
    func.CallOp([], ir.FlatSymbolRefAttr.get(name), [*held, out])
    return bufferization.ToTensorOp(op.y.type, out, restrict=True, writable=True).result


def _result_sizes(op: Any) -> list[Any]:
    """Sizes of the result, built where it is dynamic."""
    if isinstance(op, LinearOp):
        found = [*build.sizes(op.x)[:-1], build.dim(op.weight, 0)]
    else:
        columns, _, *kernel = build.sizes(op.weight)
        found = [build.dim(op.x, 0), columns, *Window.of(op, kernel).outputs(op.x)]
    return found


def _buffer(kind: Any) -> Any:
    return ir.MemRefType.get(kind.shape, kind.element_type)
