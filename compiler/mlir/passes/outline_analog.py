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
    """Of the functions' names; for IREE what comes before the dot is the module it looks in."""
    name: ClassVar[str] = "outline-analog-to-calls"

    def __call__(self, module: Any) -> None:
        """Outline all layers of ``module``."""
        outline_analog(module, self)


def outline_analog(module: Any, options: OutlineAnalog | None = None) -> dict[str, str]:
    """Outline all layers of ``module``, in place; names of the layers by function."""
    outliner = _Outliner(module, options or OutlineAnalog())
    for op in operations(module, LinearOp, ConvOp):
        with build.before(op):
            value = outliner.call(op)
        replaced(op, value)
    return outliner.layers


class _Outliner:
    """Calls of one module, and what they call."""

    def __init__(self, module: Any, options: OutlineAnalog) -> None:
        self.module = module
        self.options = options
        self.symbols = ir.SymbolTable(module.operation)
        self.declared: dict[tuple[str, ...], str] = {}
        self.layers: dict[str, str] = {}

    def call(self, op: Any) -> Value:
        """Result of a call in the place of ``op``."""
        inputs = list(op.operation.operands)
        if self.options.operands == "input":
            inputs = inputs[:1]
        if self.options.abi == "buffer":
            return self._on_buffers(op, inputs)
        kind = ir.FunctionType.get([value.type for value in inputs], [op.y.type])
        return func.CallOp([op.y.type], self._declaration(op, kind), inputs).result

    def _on_buffers(self, op: Any, inputs: list[Value]) -> Value:
        kinds = [_buffer(value.type) for value in (*inputs, op.y)]
        dynamic = [n for d, n in enumerate(_result_sizes(op)) if op.y.type.is_dynamic_dim(d)]
        held = [
            bufferization.ToBufferOp(kind, value, read_only=True).result
            for kind, value in zip(kinds[:-1], inputs, strict=True)
        ]
        out = memref.AllocOp(kinds[-1], dynamic, []).result
        func.CallOp([], self._declaration(op, ir.FunctionType.get(kinds, [])), [*held, out])
        return bufferization.ToTensorOp(op.y.type, out, restrict=True, writable=True).result

    def _declaration(self, op: Any, kind: Any) -> Any:
        """Reference to the function of this layer and type, declared where it is not yet."""
        key = (op.operation.name, str(_attributes(op)), str(kind))
        if key not in self.declared:
            self.declared[key] = self._declare(op, kind)
        return ir.FlatSymbolRefAttr.get(self.declared[key])

    def _declare(self, op: Any, kind: Any) -> str:
        layer = to_json(op.mapping.layer)
        name = found = self.options.prefix + re.sub(r"[^\w.$]", "_", layer)
        number = 1
        while found in self.symbols:
            number += 1
            found = f"{name}_{number}"
        with ir.InsertionPoint.at_block_begin(self.module.body):
            function = func.FuncOp(found, kind, visibility="private")
        function.attributes[LAYER] = ir.StringAttr.get(layer)
        function.attributes[OPERATION] = ir.StringAttr.get(op.OPERATION_NAME)
        function.attributes[ATTRIBUTES] = _attributes(op)
        if self.options.abi == "buffer":
            function.attributes["llvm.emit_c_interface"] = ir.UnitAttr.get()
        self.symbols.insert(function)
        self.layers[found] = layer
        return found


def _attributes(op: Any) -> Any:
    """All attributes of an operation, as one; those of the bindings have no text of their own."""
    held = op.operation.attributes
    return ir.DictAttr.get({name: held[name] for name in held})


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
