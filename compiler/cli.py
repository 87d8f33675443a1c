"""The command line: ``analogc compile | inspect | run | targets | demo``.

Exit codes: 0 done, 1 a fault in what was given (one message, no traceback), 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..runtime import targets
from ..runtime.errors import AnalogcError, InputError
from .archive import load
from .cli_inputs import (
    calibration_batches,
    call_inputs,
    input_spec,
    load_model,
    load_target,
    load_weights,
    tile_size,
    write_tensors,
)
from .compile import compile
from .picture.page import target_text
from .signature import TensorLeaf


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own); returns the exit code."""
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            args.command(args)
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
        return 1
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"analogc: warning: {message}", file=sys.stderr)


# -- arguments ------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="analogc",
        description="Compile PyTorch models to analog in-memory-computing tiles.",
        epilog="`analogc COMMAND --help` shows an example of each command.",
    )
    parser.add_argument("--version", action="version", version=f"analogc {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_compile(commands)
    _add_inspect(commands)
    _add_run(commands)
    _add_targets(commands)
    _add_demo(commands)
    return parser


def _command(
    commands: Any, name: str, function: Any, summary: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_compile(commands: Any) -> None:
    parser = _command(
        commands, "compile", _compile, "compile a model and write it to a file",
        "analogc compile models.py:build --input 2x3x32x32 --target generic-8bit -o model.analogc",
    )  # fmt: skip
    parser.add_argument(
        "model", metavar="MODULE:FACTORY",
        help="what makes the nn.Module: package.module:function or path/to/file.py:function",
    )  # fmt: skip
    parser.add_argument(
        "--input", metavar="SHAPE", type=input_spec, action="append", required=True,
        help="shape of an input, with a dtype if it is not float32: 2x3x32x32, 2x16:int64; once "
        "for each positional input, which is filled with random numbers (integers 0..9)",
    )  # fmt: skip
    parser.add_argument(
        "--target", default="generic-8bit", metavar="NAME|FILE.json",
        help="a name of `analogc targets`, or a file that Target.to_json wrote (default: "
        "%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--tile", type=tile_size, metavar="ROWSxCOLS", help="other tiles than the target's"
    )
    parser.add_argument(
        "--batch", action="store_true", help="let the first dim of every input vary"
    )
    parser.add_argument(
        "--mode", choices=("eval", "train"), default="eval", help="default: %(default)s"
    )
    parser.add_argument(
        "--weights", metavar="FILE",
        help="state dict to load: .safetensors, or what torch.save wrote",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate", metavar="FILE", action="append", default=[],
        help="inputs to choose converter ranges from: a .npy file for each input, or a "
        ".safetensors file with tensors of the inputs' names (default: the random inputs)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-digital", metavar="GLOB", action="append", default=[],
        help="layers to keep digital, by name: head, 'blocks.0.*'",
    )  # fmt: skip
    parser.add_argument(
        "--passes", metavar="TEXT",
        help="another pipeline, such as 'canonicalize,select-analog,map-tiles{split=full},...'",
    )  # fmt: skip
    parser.add_argument(
        "--strict", action="store_true",
        help="refuse a model in which an operator with stored weights would stay digital",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="of random weights, random inputs and all noise")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="file to write")


def _add_inspect(commands: Any) -> None:
    parser = _command(
        commands, "inspect", _inspect, "show the graph, coverage and tiles of a compiled file",
        "analogc inspect model.analogc --html model.html",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help="what `analogc compile` wrote")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument("--html", metavar="OUT", help="write a page with a picture of the graph")


def _add_run(commands: Any) -> None:
    parser = _command(
        commands, "run", _run, "run a compiled file",
        "analogc run model.analogc --data images.npy --output scores.npy",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help="what `analogc compile` wrote")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--input", metavar="SHAPE", type=input_spec, action="append", default=[],
        help="random input of this shape: 8x3x32x32, 2x16:int64 (default: random inputs of the "
        "shapes that the model was compiled for)",
    )  # fmt: skip
    source.add_argument(
        "--data", metavar="FILE", action="append", default=[],
        help="a .npy file for each input, or a .safetensors file with tensors of their names",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int,
        help="of random inputs and all noise; the devices are programmed anew from it (default: "
        "as they were programmed when the file was written)",
    )  # fmt: skip
    parser.add_argument(
        "--time", type=float, metavar="SECONDS",
        help="after programming, for devices that drift (default: as the file was written)",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="OUT", help="write the outputs: .npy for one, .safetensors for any"
    )


def _add_targets(commands: Any) -> None:
    parser = _command(
        commands, "targets", _targets, "list the targets",
        "analogc targets generic-8bit --json > mine.json",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", nargs="?", help="show this one only")
    parser.add_argument("--json", action="store_true", help="all settings, as JSON")


def _add_demo(commands: Any) -> None:
    parser = _command(
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


# -- commands -------------------------------------------------------------------------------------


def _compile(args: argparse.Namespace) -> None:
    folder = Path(args.output).parent
    if not folder.is_dir():
        raise InputError(f"no folder {str(folder)!r} to write to")
    target = load_target(args.target, args.tile)
    if args.seed is not None:
        torch.manual_seed(args.seed)
    model = load_model(args.model)
    if args.weights is not None:
        load_weights(model, args.weights)
    model.train(args.mode == "train")
    examples = tuple(spec.random() for spec in args.input)
    data = calibration_batches(model, examples, args.calibrate) if args.calibrate else None
    start = time.perf_counter()
    compiled = compile(
        model,
        examples,
        target=target,
        dynamic_shapes="batch" if args.batch else None,
        select=args.keep_digital or None,
        passes=args.passes,
        strict=args.strict,
        calibration_data=data,
        seed=args.seed,
    )
    seconds = time.perf_counter() - start
    compiled.save(args.output)
    print(f"target    {target.name}, {args.mode} mode")
    print(f"coverage  {compiled.coverage.summary()}")
    print(f"tiles     {compiled.tiles.summary()}")
    size = os.path.getsize(args.output) / 1000
    print(f"wrote     {args.output} ({size:,.0f} kB), compiled in {seconds:.1f} s")


def _inspect(args: argparse.Namespace) -> None:
    model = load(args.file)
    if args.html is not None:
        model.to_html(args.html)
    if args.json:
        inputs = zip(model.signature.names, model.signature.leaves, strict=True)
        described = {
            "mode": "train" if model.training else "eval",
            "target": model.target.to_dict(),
            "inputs": [
                {"name": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype)[6:]}
                if isinstance(leaf, TensorLeaf)
                else {"name": name, "value": getattr(leaf, "value", "any whole number")}
                for name, leaf in inputs
            ],
            "coverage": model.coverage.to_dict(),
            "tiles": [{**m.to_dict(), "utilisation": m.utilisation} for m in model.tiles],
            "ir": model.ir().splitlines(),
        }
        print(json.dumps(described, indent=2))
        return
    print(model)
    console = _console()
    for table in (model.coverage, model.tiles):
        print()
        console.print(table)
    if model.target.device.drifts:
        print(f"\n{model.weights}")
    if args.html is not None:
        print(f"\nwrote {args.html}")


def _run(args: argparse.Namespace) -> None:
    model = load(args.file)
    if args.seed is not None:
        torch.manual_seed(args.seed)
        model.program(args.seed)
    if args.time is not None:
        model.drift_to(args.time)
    positional, named = call_inputs(model, args.input, args.data)
    start = time.perf_counter()
    with torch.no_grad():
        try:
            result = model(*positional, **named)
        except (RuntimeError, IndexError) as err:
            raise InputError(f"the model does not run on this input: {err}") from err
    seconds = time.perf_counter() - start
    outputs = _named_tensors(result)
    from rich.markup import escape
    from rich.table import Table

    table = Table("output", "shape", "dtype")
    for name in ("mean", "std", "min", "max"):
        table.add_column(name, justify="right")
    for name, value in outputs.items():
        shape = "x".join(map(str, value.shape)) or "scalar"
        table.add_row(escape(name), shape, str(value.dtype)[6:], *_statistics(value))
    _console().print(table)
    threads = torch.get_num_threads()
    print(f"ran in {1000 * seconds:.1f} ms, {threads} thread{'s' * (threads > 1)}")
    if args.output is not None:
        write_tensors(args.output, outputs)
        print(f"wrote {args.output}")


def _named_tensors(result: Any) -> dict[str, Tensor]:
    """Tensors of a result by their place in it: ``output``, or ``0``, ``logits``, ``past.1``."""
    found = {}
    for path, value in pytree.tree_flatten_with_path(result)[0]:
        if isinstance(value, Tensor):
            found[".".join(map(_key_text, path)) or "output"] = value
    return found


def _key_text(key: Any) -> str:
    # Index of a list, key of a dict, name of a dataclass's field.
    return str(next(getattr(key, n) for n in ("idx", "key", "name") if hasattr(key, n)))


def _statistics(value: Tensor) -> list[str]:
    if not value.numel():
        return ["-"] * 4
    x = value.double()
    return [f"{float(f):.4g}" for f in (x.mean(), x.std(correction=0), x.min(), x.max())]


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


def _demo(args: argparse.Namespace) -> None:
    from .demo import run

    run(args.out, args.fast, args.seed, _console())


def _console() -> Any:
    """Console as wide as the terminal, or as a page where there is none."""
    from rich.console import Console

    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if wide else 110)
