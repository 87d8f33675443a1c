"""``analogc targets``: the targets by name."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ...runtime import targets
from ..target_text import target_text
from .base import command


def add(commands: Any) -> None:
    """Add the command to the parser's ``commands``."""
    parser = command(
        commands, "targets", _targets, "list the targets",
        "analogc targets generic-8bit --json > mine.json",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", nargs="?", help="show this one only")
    parser.add_argument("--json", action="store_true", help="all settings, as JSON")


def _targets(args: argparse.Namespace) -> None:
    names = targets.names() if args.name is None else (args.name,)
    found = {name: targets.get(name) for name in names}
    if args.json:
        texts = {name: target.to_dict() for name, target in found.items()}
        print(json.dumps(texts if args.name is None else texts[args.name], indent=2))
        return
    for name, target in found.items():
        print(f"{name}\n  {targets.summary(name)}\n  {target_text(target)}")
        if cited := targets.source(name):
            print(f"  Source: {cited}")
