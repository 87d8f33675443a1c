"""Pipelines on MLIR modules: analogc's passes by name, mixed with MLIR's own pipeline text.

``split-to-tiles,expand-analog,canonicalize,func.func(convert-linalg-to-loops)``
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch_mlir import ir
from torch_mlir.passmanager import PassManager

from ...passes.pipeline import build as build_pass
from ...runtime.errors import InputError, VerifyError
from .context import new_context
from .passes.base import MlirPass, location
from .passes.expand_analog import ExpandAnalog
from .passes.outline_analog import OutlineAnalog
from .passes.split_to_tiles import SplitToTiles

PASSES: dict[str, type[MlirPass]] = {
    kind.name: kind for kind in (SplitToTiles, ExpandAnalog, OutlineAnalog)
}

After = Callable[[str, Any, float], None]
MAGIC = b"ML\xefR"
"""What bytecode begins with."""


@dataclass(frozen=True, slots=True)
class Native:
    """One of MLIR's own passes, by its pipeline text."""

    text: str

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> tuple[MlirPass | Native, ...]:
    """Pipeline of a text, in ``builtin.module(...)`` or bare.

    Raises:
        InputError: an option that an analogc pass lacks, an empty step, or bad brackets.
    """
    pieces = _pieces(text)
    whole = re.fullmatch(r"builtin\.module\((.*)\)", pieces[0], re.DOTALL)
    if len(pieces) == 1 and whole is not None:
        pieces = _pieces(whole.group(1))
    return tuple(map(_step, pieces))


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
    pipeline = parse(passes) if isinstance(passes, str) else passes
    with module.context, ir.Location.unknown():
        # All of them first: nothing runs of a pipeline that has a wrong step.
        steps = [(str(step), step, _prepared(step)) for step in pipeline]
        for name, step, action in steps:
            start = time.perf_counter()
            try:
                action(module)
                if isinstance(step, MlirPass):
                    module.operation.verify()
            except ir.MLIRError as err:
                raise VerifyError(f"pass {name} failed\n{diagnostics(err)}") from None
            if after is not None:
                after(name, module, time.perf_counter() - start)


def _prepared(step: MlirPass | Native) -> Callable[[Any], None]:
    if isinstance(step, MlirPass):
        return step
    try:
        manager = PassManager.parse(f"builtin.module({step.text})")
    except ValueError as err:
        raise InputError(
            f"no pipeline step {step.text!r}: {_line(str(err))}",
            fix=f"a pass of analogc ({', '.join(PASSES)}) or one that torch-mlir-opt --help lists",
        ) from None
    return lambda module: manager.run(module.operation)


def _line(text: str) -> str:
    return " ".join(text.split())


def diagnostics(err: Any) -> str:
    """Messages of an MLIRError, each with its location."""
    found = [each for each in getattr(err, "error_diagnostics", ()) if each.message]
    return "\n".join(f"{location(each)}: {each.message}" for each in found) or _line(str(err))


def read(source: str | bytes, context: Any = None) -> Any:
    """Module of a file, or of the content of one: text or bytecode.

    Args:
        source: path, or content.
        context: where to make it; default: a new one.

    Raises:
        InputError: it is neither, or breaks the rules of an operation; with line and column.
        FileNotFoundError: no such file.
    """
    name = source if isinstance(source, str) else "standard input"
    with context or new_context(), ir.Location.unknown():
        try:
            if isinstance(source, bytes):
                return ir.Module.parse(source if source[:4] == MAGIC else source.decode())
            with open(source, "rb"):
                return ir.Module.parseFile(source)
        except UnicodeDecodeError:
            raise InputError(f"{name} is neither MLIR text nor bytecode") from None
        except ir.MLIRError as err:
            raise InputError(f"{name} is not a valid module\n{diagnostics(err)}") from None


def command(args: Any) -> None:
    """``analogc opt``: what ``cli`` parsed to the module that it asks for."""
    source = sys.stdin.buffer.read() if args.file == "-" else args.file
    module = read(source)
    times: list[tuple[str, float]] = []

    def after(step: str, module: Any, seconds: float) -> None:
        times.append((step, seconds))
        if args.print_between:
            print(f"// ----- {step} -----\n{module}", file=sys.stderr)

    run(module, args.passes, after)
    if args.timing:
        width = max(len(step) for step, _ in times)
        for step, seconds in [*times, ("total", sum(seconds for _, seconds in times))]:
            print(f"{step:{width}}  {1000 * seconds:9.2f} ms", file=sys.stderr)
    _write(module, args.output, args.locations)


def _write(module: Any, output: str | None, locations: bool) -> None:
    if output is not None and output.endswith(".mlirbc"):
        with open(output, "wb") as file:
            module.operation.write_bytecode(file)
        return
    text = module.operation.get_asm(enable_debug_info=locations)
    if output is None:
        print(text)
    else:
        Path(output).write_text(f"{text}\n", encoding="utf-8")
