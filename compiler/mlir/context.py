"""MLIR contexts that know all dialects a compiled model is printed in."""

from __future__ import annotations

from typing import Any

from torch_mlir import ir
from torch_mlir.dialects import torch as torch_dialect
from torch_mlir.passmanager import PassManager

from . import dialect

# Passes load the dialects that they make; the bindings have no other way to these two.
_LOADERS = "builtin.module(torch-func-backend-type-conversion,func.func(convert-torch-to-tmtensor))"


def new_context() -> Any:
    """A context with the dialects analog, torch, torch_c, tm_tensor and all of the bindings."""
    context = ir.Context()
    torch_dialect.register_dialect(context)
    with context, ir.Location.unknown():
        PassManager.parse(_LOADERS).run(ir.Module.create().operation)
    dialect.load(context)
    return context
