"""Pipelines on MLIR modules: analogc's passes by name, mixed with MLIR's own pipeline text.

``split-to-tiles,expand-analog,canonicalize,func.func(convert-linalg-to-loops)``
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch_mlir import ir
from torch_mlir.passmanager import PassManager

from ...passes.pipeline import build as build_pass
from ...runtime.errors import AnalogcError, InputError, VerifyError
from .context import new_context
from .passes.base import MlirPass
from .passes.expand_analog import ExpandAnalog
from .passes.outline_analog import OutlineAnalog
from .passes.split_to_tiles import SplitToTiles

PASSES: dict[str, type[MlirPass]] = {
    kind.name: kind for kind in (SplitToTiles, ExpandAnalog, OutlineAnalog)
}

After = Callable[[str, Any, float], None]


@dataclass(frozen=True, slots=True)
class Native:
    """One of MLIR's own passes, by its pipeline text."""

    text: str

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> tuple[MlirPass | Native, ...]:
    """Pipeline of a text; InputError for options that an analogc pass lacks, or bad brackets."""
    return tuple(_step(piece) for piece in _pieces(text))


def _pieces(text: str) -> list[str]:
    """Parts between the commas that are in no bracket."""
    depth, pieces = 0, [""]
    for sign in text:
        depth += (sign in "({") - (sign in ")}")
        if depth < 0:
            break
        if sign == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += sign
    if depth:
        raise InputError(f"brackets do not match in pipeline {text!r}")
    found = [piece.strip() for piece in pieces]
    if not all(found):
        raise InputError(f"pipeline {text!r} has an empty step")
    return found


def _step(piece: str) -> MlirPass | Native:
    match = re.fullmatch(r"([\w-]+)(?:\{([^{}]*)\})?", piece)
    if match is not None and match.group(1) in PASSES:
        step: MlirPass = build_pass(PASSES[match.group(1)], match.group(2) or "")
        return step
    return Native(piece)


def run(module: Any, passes: str | Sequence[MlirPass | Native], after: After | None = None) -> None:
    """Run a pipeline on ``module``, in place; it is verified after each step.

    Args:
        module: an MLIR module.
        passes: pipeline text, or what ``parse`` made of it.
        after: called after each step with its text, the module and the seconds that it took.

    Raises:
        InputError: no such pass.
        VerifyError: a step failed, or what it left is not valid.
        UnsupportedError: an operation that a pass cannot handle.
    """
    with module.context, ir.Location.unknown():
        steps = [(step, _prepared(step)) for step in _parsed(passes)]
        for step, action in steps:
            start = time.perf_counter()
            try:
                action(module)
                module.operation.verify()
            except ir.MLIRError as err:
                raise VerifyError(f"pass {_name(step)} failed: {diagnostics(err)}") from None
            if after is not None:
                after(_name(step), module, time.perf_counter() - start)


def _parsed(passes: str | Sequence[MlirPass | Native]) -> Sequence[MlirPass | Native]:
    return parse(passes) if isinstance(passes, str) else passes


def _name(step: MlirPass | Native) -> str:
    return step.text if isinstance(step, Native) else str(step)


def _prepared(step: MlirPass | Native) -> Callable[[Any], None]:
    if isinstance(step, MlirPass):
        return step
    try:
        manager = PassManager.parse(f"builtin.module({step.text})")
    except ValueError as err:
        raise InputError(
            f"no pass {step.text!r}: {_line(str(err))}",
            fix=f"one of analogc's ({', '.join(PASSES)}), or one that torch-mlir-opt --help lists",
        ) from None
    return lambda module: manager.run(module.operation)


def _line(text: str) -> str:
    return " ".join(text.split())


def diagnostics(err: Any) -> str:
    """Messages of an MLIRError with their locations, one a line."""
    found = list(getattr(err, "error_diagnostics", ()))
    if not found:
        return _line(str(err))
    lines = []
    for each in found:
        where = str(each.location).removeprefix("loc(").removesuffix(")").replace('"', "")
        lines.append(f"{where}: {each.message}")
    return "\n".join(lines)


def read(data: bytes, name: str, context: Any = None) -> Any:
    """Module of its text or bytecode.

    Args:
        data: content of a file.
        name: of the file, for messages.
        context: where to make it; default: a new one.

    Raises:
        InputError: it is neither, or breaks the rules of an operation; with line and column.
    """
    with context or new_context(), ir.Location.unknown():
        try:
            return ir.Module.parse(data if data[:4] == b"ML\xefR" else data.decode())
        except UnicodeDecodeError:
            raise InputError(f"{name} is neither MLIR text nor bytecode") from None
        except ir.MLIRError as err:
            text = diagnostics(err).replace("-:", f"{name}:")
            raise InputError(f"{name} is not a valid module: {text}") from None


__all__ = ["PASSES", "AnalogcError", "Native", "diagnostics", "parse", "read", "run"]
