"""``analogc compile``: an nn.Module to a file."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch

from ...runtime.errors import InputError
from ..cli_inputs import (
    calibration_batches,
    input_spec,
    load_model,
    load_target,
    load_weights,
    tile_size,
)
from ..compile import compile
from .base import command


def add(commands: Any) -> None:
    """Add the command to the parser's ``commands``."""
    parser = command(
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
