"""What all commands share: a parser with an example, and the console."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any


def command(
    commands: Any, name: str, function: Any, summary: str, example: str
) -> argparse.ArgumentParser:
    """Parser of command ``name``, which calls ``function`` with the arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function, fault=1)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def console() -> Any:
    """Console as wide as the terminal, or as a page where there is none."""
    from rich.console import Console

    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if wide else 110)
