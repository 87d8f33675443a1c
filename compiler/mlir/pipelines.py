"""Pipelines of MLIR passes, as text, and the one way to run them."""

from __future__ import annotations

from typing import Any

from torch_mlir import ir
from torch_mlir.passmanager import PassManager

from ...runtime.errors import UnsupportedError, VerifyError

TO_BACKEND_FORM = (
    "func.func(torch-match-quantized-custom-ops)",
    "torchdynamo-export-to-torch-backend-pipeline",
)
"""The torch dialect as it was imported, to the part of it that can be lowered."""

TO_LINALG = (
    "func.func(torch-restructure-non-constant-axes)",
    "func.func(torch-fuse-quantized-ops)",
    "func.func(convert-torch-to-tmtensor)",
    "func.func(canonicalize)",
    "func.func(convert-torch-to-linalg)",
    "func.func(canonicalize)",
    "func.func(convert-torch-to-scf)",
    "func.func(convert-torch-to-arith)",
    "func.func(convert-torch-to-tensor)",
    "convert-torch-conversion-to-mlprogram",
    "func.func(memref-expand)",
    "func.func(canonicalize)",
    "func.func(resolve-shaped-type-result-dims)",
    "func.func(cse)",
    "torch-func-backend-type-conversion",
    "func.func(canonicalize)",
    "func.func(torch-finalizing-backend-type-conversion)",
)
"""Backend form to linalg on tensors: torch-mlir's own pipeline without its last pass, which would
refuse analog operations."""

VERIFY_LINALG = ("torch-verify-linalg-on-tensors-backend-contract",)
"""That last pass."""

TO_BUFFERS = (
    "func.func(linalg-generalize-named-ops)",
    "func.func(linalg-fuse-elementwise-ops)",
    "convert-shape-to-std",
    "func.func(refback-generalize-tensor-pad)",
    "func.func(refback-generalize-tensor-concat)",
    "func.func(tm-tensor-bufferize)",
)
"""Linalg on tensors, with the operations that one-shot bufferization does not know in memory."""

TO_BRANCHES = (
    "one-shot-bufferize{bufferize-function-boundaries "
    "function-boundary-type-conversion=identity-layout-map}",
    "refback-mlprogram-bufferize",
    "buffer-deallocation-pipeline",
    "func.func(tm-tensor-to-loops)",
    "func.func(refback-munge-memref-copy)",
    "func.func(convert-linalg-to-loops)",
    "func.func(lower-affine)",
    "convert-scf-to-cf",
)
"""From there to loops over memory, as branches; the function frees what it allocates."""

TO_LLVM = (
    "func.func(refback-expand-ops-for-llvm)",
    "func.func(arith-expand)",
    "func.func(convert-math-to-llvm)",
    "convert-math-to-libm",
    "expand-strided-metadata",
    "finalize-memref-to-llvm",
    "lower-affine",
    "convert-bufferization-to-memref",
    "finalize-memref-to-llvm",
    "func.func(convert-arith-to-llvm)",
    "convert-func-to-llvm",
    "convert-cf-to-llvm",
    "convert-complex-to-llvm",
    "reconcile-unrealized-casts",
)
"""From there to what the execution engine takes."""


def run(module: Any, passes: tuple[str, ...], doing: str) -> None:
    """Run ``passes`` on ``module``, in place.

    Args:
        module: what to transform.
        passes: elements of a pipeline of the module.
        doing: what this is, for the error.

    Raises:
        UnsupportedError: one of them fails; the message has its diagnostics.
    """
    with module.context:
        manager = PassManager.parse(f"builtin.module({','.join(passes)})")
        try:
            manager.run(module.operation)
        except ir.MLIRError as err:
            text, where = _diagnostics(err)
            raise UnsupportedError(f"{doing} failed: {text}", where=where) from None


def verify(module: Any) -> None:
    """Check every operation of ``module``; VerifyError says what is wrong, and where."""
    with module.context:
        try:
            module.operation.verify()
        except ir.MLIRError as err:
            text, where = _diagnostics(err)
            raise VerifyError(f"the module is not valid: {text}", where=where) from None


def _diagnostics(err: Any) -> tuple[str, str | None]:
    found = [d for d in err.error_diagnostics if d.message]
    text = "; ".join(dict.fromkeys(d.message for d in found)) or str(err)
    places = (str(d.location) for d in found)
    return text, next((place for place in places if "unknown" not in place), None)
