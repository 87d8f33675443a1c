"""``analogc run``: a compiled file on random inputs or a file's."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...runtime.errors import InputError
from ..archive import load
from ..cli_inputs import call_inputs, input_spec, write_tensors
from .base import command, console


def add(commands: Any) -> None:
    """Add the command to the parser's ``commands``."""
    parser = command(
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
    parser.add_argument(
        "--engine", choices=("native", "callbacks", "iree"),
        help="run the model as MLIR: native and iree compile layers too, callbacks runs them on "
        "the tiles (default: the model itself)",
    )  # fmt: skip


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
            result = (
                model(*positional, **named)
                if args.engine is None
                else model.run_mlir(*positional, engine=args.engine, **named)
            )
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
    console().print(table)
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
