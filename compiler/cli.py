"""The command line: ``analogc compile | inspect | run | diff | opt | targets | demo``.

Exit codes: 0 done, 1 a fault in what was given (one message, no traceback), 2 wrong usage, 130
interrupted. Of ``diff``, as of diff(1): 0 equal, 1 different, 2 a fault.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ..runtime.errors import AnalogcError
from .commands import compile, demo, diff, inspect, opt, run, targets


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own); returns the exit code."""
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code: int | None = args.command(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("analogc: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough; the interpreter must not try to flush it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as err:
        if args.debug:
            raise
        known = isinstance(err, AnalogcError | OSError)
        what = str(err) if known else f"{type(err).__name__}: {err}"
        hint = "" if known else "\n  (--debug shows the traceback)"
        print(f"analogc: error: {what}{hint}", file=sys.stderr)
        return int(args.fault)
    return code or 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"analogc: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="analogc",
        description="Compile PyTorch models to analog in-memory-computing tiles.",
        epilog="`analogc COMMAND --help` shows an example of each command.",
    )
    parser.add_argument("--version", action="version", version=f"analogc {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (compile, inspect, run, opt, diff, targets, demo):
        module.add(commands)
    return parser
