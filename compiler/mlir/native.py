"""Machine code by the execution engine that comes with torch-mlir, on the CPU.

It is there wherever torch-mlir is, and what it computes is what the linalg module says, in that
order: loops as they stand, neither tiled nor in parallel. Good for checks, not for speed.
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_mlir import ir
from torch_mlir.execution_engine import ExecutionEngine

from . import memref
from .pipelines import TO_LLVM, run

OPTIMISATION = 0


class NativeCode:
    """The function ``main`` of a linalg module as machine code."""

    def __init__(self, module: Any, callbacks: dict[str, Any] | None = None) -> None:
        """Compile a copy of ``module``.

        Args:
            module: linalg on tensors; external functions among it are callbacks.
            callbacks: ctypes functions by the name of the external function.
        """
        self._callbacks = callbacks or {}
        with module.context, ir.Location.unknown():
            own = copied(module)
            for operation in own.body.operations:
                if operation.operation.name == "func.func":
                    _declare(operation)
            main = next(op for op in own.body.operations if _name(op) == "main")
            kinds = main.type.results
            self._dtypes = [memref.dtype_of(kind) for kind in kinds]
            self._results = _results_of([memref.descriptor(kind.rank) for kind in kinds])
            run(own, TO_LLVM, "the lowering to LLVM")
            self._engine = ExecutionEngine(own, opt_level=OPTIMISATION)
        for name, function in self._callbacks.items():
            self._engine.register_runtime(name, function)

    def __call__(self, inputs: Sequence[Tensor | int]) -> list[Tensor]:
        """Results of ``main``, in new memory, for CPU tensors and whole numbers."""
        kept: list[Any] = []
        packed: list[Any] = []
        results = self._results()
        if self._dtypes:
            packed.append(ctypes.pointer(ctypes.pointer(results)))
        for value in inputs:
            if isinstance(value, Tensor):
                value = value.detach().cpu().contiguous()
                kept.append(value)
                packed.append(ctypes.pointer(ctypes.pointer(memref.of_tensor(value))))
            else:
                packed.append(ctypes.pointer(ctypes.c_int64(value)))
        self._engine.invoke("main", *packed)
        return [
            memref.taken(getattr(results, f"result{i}"), dtype)
            for i, dtype in enumerate(self._dtypes)
        ]


def copied(module: Any) -> Any:
    """A copy of ``module`` in its own context."""
    stream = io.BytesIO()
    module.operation.write_bytecode(stream)
    with module.context:
        return ir.Module.parse(stream.getvalue())


def _name(operation: Any) -> str:
    return ir.StringAttr(operation.attributes["sym_name"]).value


def _declare(function: Any) -> None:
    """Let a function be called from outside (or call out), and write no argument's memory."""
    function.attributes["llvm.emit_c_interface"] = ir.UnitAttr.get()
    if function.is_external:
        return
    count = len(function.type.inputs)
    fixed = ir.DictAttr.get({"bufferization.writable": ir.BoolAttr.get(False)})
    function.attributes["arg_attrs"] = ir.ArrayAttr.get([fixed] * count)


def _results_of(kinds: list[type[Any]]) -> type[Any]:
    fields = [(f"result{i}", kind) for i, kind in enumerate(kinds)]
    return type("Results", (ctypes.Structure,), {"_fields_": fields})
