"""Machine code by the execution engine that comes with torch-mlir, on the CPU.

It is there wherever torch-mlir is, and what it computes is what the linalg module says, in that
order: loops as they stand, neither tiled nor in parallel. Good for checks, not for speed.
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch_mlir import ir
from torch_mlir.execution_engine import ExecutionEngine

from ...runtime.errors import InputError
from . import memref
from .checks import FAILED, guard
from .pipelines import TO_BRANCHES, TO_BUFFERS, TO_LLVM, run

OPTIMISATION = 0


class NativeCode:
    """The function ``main`` of a linalg module as machine code."""

    def __init__(self, module: Any, callbacks: dict[str, Any] | None = None) -> None:
        """Compile a copy of ``module``.

        Args:
            module: linalg on tensors; external functions among it are callbacks.
            callbacks: ctypes functions by the name of the external function.
        """
        self._callbacks = dict(callbacks or {})
        with module.context, ir.Location.unknown():
            own = copied(module)
            for operation in own.body.operations:
                if operation.operation.name == "func.func":
                    _declare(operation)
            main = ir.SymbolTable(own.operation)["main"]
            kinds = main.type.results
            self._dtypes = [memref.dtype_of(kind) for kind in kinds]
            self._results = _results_of([memref.descriptor(kind.rank) for kind in kinds])
            run(own, TO_BUFFERS, "the lowering to loops")
            _restrict(own)
            run(own, TO_BRANCHES, "the lowering to loops")
            self._checks = guard(own)
            run(own, TO_LLVM, "the lowering to LLVM")
            self._engine = ExecutionEngine(own, opt_level=OPTIMISATION)
        self._failed: list[int] = []
        self._callbacks[FAILED] = ctypes.CFUNCTYPE(None, ctypes.c_int64)(self._failed.append)
        for name, function in self._callbacks.items():
            self._engine.register_runtime(name, function)

    def __call__(self, inputs: Sequence[Tensor | int]) -> list[Tensor]:
        """Results of ``main``, in new memory, for tensors and whole numbers.

        Raises:
            InputError: a check of the module failed: an index beyond a table, for example.
        """
        kept: list[Tensor] = []
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
        self._failed.clear()
        self._engine.invoke("main", *packed)
        held = [getattr(results, f"result{i}") for i in range(len(self._dtypes))]
        try:
            if self._failed:
                raise InputError(f"a check of the module failed: {self._checks[self._failed[0]]}")
            each = zip(held, self._dtypes, strict=True)
            return [memref.view(at, dtype).clone() for at, dtype in each]
        finally:
            memref.free(held, kept)


def copied(module: Any) -> Any:
    """A copy of ``module`` in its own context."""
    stream = io.BytesIO()
    module.operation.write_bytecode(stream)
    with module.context:
        return ir.Module.parse(stream.getvalue())


def _declare(function: Any) -> None:
    """Let a function be called from outside (or call out), and write no argument's memory."""
    function.attributes["llvm.emit_c_interface"] = ir.UnitAttr.get()
    if function.is_external:
        return
    count = len(function.type.inputs)
    fixed = ir.DictAttr.get({"bufferization.writable": ir.BoolAttr.get(False)})
    function.attributes["arg_attrs"] = ir.ArrayAttr.get([fixed] * count)


def _restrict(module: Any) -> None:
    """Make tensors of the memory that ``tm-tensor-bufferize`` allocated fit for what follows.

    Nothing else names that memory, and the tensor is what the operation leaves in it: the pass
    says neither, and reads the memory before the operation. It takes the memory of operands long
    before they are read, too: others would write there in between.
    """
    found: list[Any] = []

    def visit(op: Any) -> Any:
        if op.name in ("bufferization.to_tensor", "bufferization.to_buffer"):
            found.append(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    for op in found:
        if op.name == "bufferization.to_buffer":
            _take_late(op)
            continue
        op.attributes["restrict"] = ir.UnitAttr.get()
        writer = _writer(op)
        if writer is not None:
            op.move_after(writer)


def _take_late(op: Any) -> None:
    """Let each user of the memory that ``op`` takes of a tensor take it by itself."""
    for use in list(op.results[0].uses):
        user, position = use.owner.operation, use.operand_number
        own = op.clone(ip=ir.InsertionPoint(user))
        user.operands[position] = own.operation.results[0]


def _writer(op: Any) -> Any:
    """First tm_tensor operation behind ``op``, in its block, on the memory of its tensor."""
    behind = False
    for other in op.block.operations:
        other = other.operation
        if behind and other.name.startswith("tm_tensor.") and op.operands[0] in other.operands:
            return other
        behind |= other == op
    return None


def _results_of(kinds: list[type[Any]]) -> type[Any]:
    fields = [(f"result{i}", kind) for i, kind in enumerate(kinds)]
    return type("Results", (ctypes.Structure,), {"_fields_": fields})
