"""Run an analog module: digital work as machine code, layers by this model's own runtime.

A layer is a call back into Python, on the tile array of the live model: with its weight as it is
now, its device's errors, and its noise. So the numbers are those of the compiled model itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch_mlir import ir

from ...passes.verify import OPS
from ...runtime.errors import UnsupportedError
from ...runtime.regions import join, plain_precision
from ...runtime.spec import parse
from ..inspected import Inspected
from . import memref
from .module import MlirModule
from .native import NativeCode, copied
from .passes.outline_analog import ATTRIBUTES, OutlineAnalog, outline_analog

_BIAS = 3
"""Position of the bias among a layer's operands."""


class CallbackCode:
    """The function ``main`` of an analog module as machine code that calls ``model`` back."""

    def __init__(self, mlir: MlirModule) -> None:
        """Compile a copy of ``mlir``.

        Raises:
            UnsupportedError: both branches of a torch.cond would draw noise.
        """
        self._model = mlir._model
        self._failure: BaseException | None = None
        _refuse_noisy_branches(self._model)
        nodes = {mapping.layer: node for node, mapping in self._model._analog_nodes()}
        callbacks: dict[str, Any] = {}
        own = copied(mlir.module)
        with own.context, ir.Location.unknown():
            layers = outline_analog(own, OutlineAnalog(abi="buffer", operands="input"))
            symbols = ir.SymbolTable(own.operation)
            for name, layer in layers.items():
                callbacks[name] = self._callback(symbols[name], nodes[layer])
        self._code = NativeCode(own, callbacks)

    def __call__(self, inputs: Sequence[Tensor | int]) -> list[Tensor]:
        """Results of ``main`` for CPU tensors and whole numbers."""
        self._failure = None
        with plain_precision(), torch.no_grad():
            results = self._code(inputs)
        if self._failure is not None:
            raise self._failure
        return results

    def _callback(self, function: Any, node: fx.Node) -> Any:
        """C function that runs a layer: descriptors of its input and of its result."""
        given, out = (ir.MemRefType(kind) for kind in function.type.inputs)
        kinds = [(memref.descriptor(kind.rank), memref.dtype_of(kind)) for kind in (given, out)]
        sizes = ir.DictAttr(function.attributes[ATTRIBUTES])["operandSegmentSizes"]
        run = _layer(self._model, node, bool(ir.DenseI32ArrayAttr(sizes)[_BIAS]))

        def call(x: Any, y: Any) -> None:
            # An exception cannot pass through machine code.
            if self._failure is not None:
                return
            try:
                read, written = (
                    memref.view(ctypes.cast(at, ctypes.POINTER(kind)).contents, dtype)
                    for at, (kind, dtype) in zip((x, y), kinds, strict=True)
                )
                written.copy_(run(read))
            except BaseException as err:  # noqa: B036 - raised again by the caller
                self._failure = err

        return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(call)


def _layer(model: Inspected, node: fx.Node, has_bias: bool) -> Callable[[Tensor], Tensor]:
    """The layer of ``node`` as a function of its input, on the model's live tensors."""

    def live(arg: Any) -> Any:
        return model._value(arg, operand=True) if isinstance(arg, fx.Node) else arg

    is_ideal = parse(str(node.args[-2])).is_ideal

    def run(x: Tensor) -> Tensor:
        # A bias that is not [N] is added outside of the layer.
        tensors = [live(node.args[1]), live(node.args[2]) if has_bias else None]
        if is_ideal:
            # As autocast does to a digital operator, outside of which this runs.
            tensors = [None if value is None else value.to(x.dtype) for value in tensors]
        given = (x, *tensors, *map(live, node.args[3:]))
        result: Tensor = node.target(*given)  # type: ignore[operator]
        return result

    return run


def _refuse_noisy_branches(model: Inspected) -> None:
    if not model.graph.find_nodes(op="call_function", target=join):
        return
    for node in model.graph.nodes:
        if node.target in OPS and parse(str(node.args[-2])).draws:
            raise UnsupportedError(
                "the model has a torch.cond, of which MLIR runs both branches, and noise in "
                "each call: the draws would be others than the model's",
                fix="run the compiled model itself",
            )
