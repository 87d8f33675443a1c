"""``analogc opt``: passes on an MLIR module."""

from __future__ import annotations

import argparse
from typing import Any

from ...runtime.extras import require
from .base import command


def add(commands: Any) -> None:
    """Add the command to the parser's ``commands``."""
    parser = command(
        commands, "opt", _opt, "run passes on an MLIR module",
        "analogc opt --passes split-to-tiles,expand-analog,canonicalize,cse model.mlir -o out.mlir",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help="MLIR text or bytecode; - for standard input")
    parser.add_argument(
        "--passes", metavar="TEXT", required=True,
        help="split-to-tiles, expand-analog, outline-analog-to-calls and MLIR's own, with commas",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="OUT",
        help="file to write: bytecode if it ends in .mlirbc, else text (default: standard output)",
    )  # fmt: skip
    parser.add_argument(
        "--locations", action="store_true", help="write source locations into the text"
    )
    parser.add_argument(
        "--print-between", action="store_true", help="print the module after each pass"
    )
    parser.add_argument("--timing", action="store_true", help="print how long each pass took")


def _opt(args: argparse.Namespace) -> None:
    require("torch_mlir", "mlir")
    from ..mlir.opt import command

    command(args)
