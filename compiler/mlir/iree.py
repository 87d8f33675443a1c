"""Machine code by IREE: optimised, in parallel, with another order of sums. The extra ``iree``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_mlir import ir

from ...runtime.errors import UnsupportedError
from ...runtime.extras import require
from .memref import dtype_of
from .native import copied
from .pipelines import run

_FLAGS = ("--iree-llvmcpu-target-cpu=host",)


class IreeCode:
    """The function ``main`` of a linalg module, compiled for this machine's CPU."""

    def __init__(self, module: Any) -> None:
        """Compile a copy of ``module``.

        Raises:
            InputError: IREE is not installed.
            UnsupportedError: it does not take the module.
        """
        compiler = require("iree.compiler", "iree")
        self._runtime = require("iree.runtime", "iree")
        with module.context, ir.Location.unknown():
            main = ir.SymbolTable(module.operation)["main"]
            self._dtypes = [dtype_of(kind) for kind in main.type.results]
        code = _compiled(compiler, module)
        config = self._runtime.Config("local-sync")
        context = self._runtime.SystemContext(config=config)
        context.add_vm_module(self._runtime.VmModule.copy_buffer(context.instance, code))
        self._main = context.modules.module["main"]

    def __call__(self, inputs: Sequence[Tensor | int]) -> list[Tensor]:
        """Results of ``main``, in new memory, for tensors and whole numbers."""
        given = [_array(value) if isinstance(value, Tensor) else value for value in inputs]
        results = self._main(*given)
        results = results if isinstance(results, list | tuple) else [results]
        return [
            _tensor(result.to_host(), dtype)
            for result, dtype in zip(results, self._dtypes, strict=True)
        ]


def _compiled(compiler: Any, module: Any) -> Any:
    own = copied(module)
    with own.context, ir.Location.unknown():
        _plain(own)
        texts = [str(own)]
        # IREE is built from another version of MLIR, which may lack a named operation.
        run(own, ("func.func(linalg-generalize-named-ops)",), "the way to IREE")
        texts.append(str(own))
    for text in texts:
        try:
            return compiler.compile_str(
                text, target_backends=["llvm-cpu"], input_type="auto", extra_args=[*_FLAGS]
            )
        except compiler.CompilerToolError as err:
            reason = _errors(str(err))
            if "linalg." not in reason or "custom op" not in reason:
                break
    raise UnsupportedError(f"IREE does not take this module: {reason}", fix='engine="native"')


def _plain(module: Any) -> None:
    """Drop attributes of dialects that IREE does not know, and name the module for its runtime."""
    for name in list(module.operation.attributes):
        if "." in name:
            del module.operation.attributes[name]
    for function in module.body.operations:
        for name in ("arg_attrs", "llvm.emit_c_interface"):
            if name in function.attributes:
                del function.attributes[name]
    module.operation.attributes["sym_name"] = ir.StringAttr.get("module")


def _array(value: Tensor) -> Any:
    value = value.detach().cpu().contiguous()
    if value.dtype is torch.bfloat16:
        import ml_dtypes

        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def _tensor(value: Any, dtype: torch.dtype) -> Tensor:
    raw = value.copy()
    if dtype is torch.bfloat16:
        return torch.from_numpy(raw.view("int16")).view(dtype)
    return torch.from_numpy(raw).to(dtype)


def _errors(text: str) -> str:
    lines = [line for line in text.splitlines() if "error:" in line]
    return lines[0].partition("error:")[2].strip() if lines else text[:200]
