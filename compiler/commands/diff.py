"""``analogc diff``: what differs between two compiled files."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..diff import diff
from .base import command, console


def add(commands: Any) -> None:
    """Add the command to the parser's ``commands``."""
    parser = command(
        commands, "diff", _diff, "show what differs between two compiled files",
        "analogc diff before.analogc after.analogc --rtol 1e-3",
    )  # fmt: skip
    parser.set_defaults(fault=2)
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper(), help="what `analogc compile` wrote")
    parser.add_argument(
        "--rtol", type=float, default=0.0, metavar="SHARE",
        help="difference of numbers that is allowed, as a share of the largest of their tensor, of "
        "a converter range of itself (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--atol", type=float, default=0.0, metavar="X", help="difference allowed besides"
    )
    parser.add_argument("--all", action="store_true", help="show all, not the biggest only")
    parser.add_argument("--json", action="store_true", help="print it as JSON: all of it")


def _diff(args: argparse.Namespace) -> int:
    found = diff(args.a, args.b, rtol=args.rtol, atol=args.atol)
    most = None if args.all else 10
    if args.json:
        print(found.to_json())
    elif sys.stdout.isatty():
        console().print(found.rich(most), soft_wrap=True)
    else:
        print(found.text(most))
    return int(bool(found))
