"""``analogc inspect``: what a compiled file holds, as text, JSON, MLIR or pictures."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ...runtime.errors import InputError
from ..archive import load
from ..signature import TensorLeaf
from .base import command, console

_PICTURES = {
    "html": "an interactive page about it",
    "dot": "its graph as text for Graphviz",
    "model-explorer": "its graph as JSON for Google's Model Explorer",
}
"""Options that write a file."""


def add(commands: Any) -> None:
    """Add the command to the parser's ``commands``."""
    parser = command(
        commands, "inspect", _inspect, "show the graph, coverage and tiles of a compiled file",
        "analogc inspect model.analogc --html model.html",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help="what `analogc compile` wrote")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    for name, what in _PICTURES.items():
        parser.add_argument(f"--{name}", metavar="OUT", help=f"write {what}")
    parser.add_argument(
        "--mlir", metavar="LEVEL", choices=("torch", "analog", "linalg"),
        help="print the graph in MLIR instead: torch (layers as operators), analog (layers as "
        "operations, digital work in linalg) or linalg",
    )  # fmt: skip
    parser.add_argument(
        "--mlir-weights",
        metavar="KIND|FILE",
        default="args",
        help="args (default), inline, or the .safetensors file to write them to",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT",
        help="file for the MLIR: .mlir for text, .mlirbc for bytecode (default: standard output)",
    )  # fmt: skip


def _inspect(args: argparse.Namespace) -> None:
    model = load(args.file)
    if args.mlir is not None:
        mlir = model.to_mlir(args.mlir, args.mlir_weights)
        if args.output is None:
            print(mlir.text(), end="")
        else:
            mlir.save(args.output)
            print(f"wrote {args.output}")
        return
    if args.output is not None:
        raise InputError("--output is for --mlir", fix="add --mlir analog, or leave it out")
    pictures = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name in _PICTURES}
    for name, path in pictures.items():
        if path is not None:
            getattr(model, f"to_{name}")(path)
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
            "dataflow": model.dataflow.to_dict(),
            "ir": model.ir().splitlines(),
        }
        print(json.dumps(described, indent=2))
        return
    print(model)
    out = console()
    for table in (model.coverage, model.tiles, model.dataflow):
        print()
        out.print(table)
    if model.target.device.drifts:
        print(f"\n{model.weights}")
    for path in filter(None, pictures.values()):
        print(f"\nwrote {path}")
