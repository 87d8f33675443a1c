"""``analogc demo``: a small network, trained, compiled and measured."""

from __future__ import annotations

import argparse
from typing import Any

from .base import command, console


def add(commands: Any) -> None:
    """Add the command to the parser's ``commands``."""
    parser = command(
        commands, "demo", _demo, "train a small network, compile it, and measure its accuracy",
        "analogc demo --out analogc-demo",
    )  # fmt: skip
    parser.add_argument("--fast", action="store_true", help="a smoke test of a few seconds")
    parser.add_argument(
        "--out", metavar="DIR", default="analogc-demo",
        help="folder for the report (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="of training and noise (default: %(default)s)"
    )


def _demo(args: argparse.Namespace) -> None:
    from ..demo import run

    run(args.out, args.fast, args.seed, console())
