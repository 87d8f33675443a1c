"""The printed form of a graph: one stable line a node, with shapes and tiles."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..passes.base import META, module_path
from ..passes.select_analog import Analog
from ..runtime.mapping import Digital, TileMapping
from ..runtime.ops import NAMES
from ..runtime.regions import ENTERS, leave

_SHORT = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8",
    torch.uint8: "u8", torch.bool: "b8", torch.complex64: "c64", torch.complex128: "c128",
}  # fmt: skip
_OPS = {getattr(torch.ops.analogc, name).default: name for name in NAMES}


def counted(number: int, noun: str) -> str:
    """``1 tile``, ``2 tiles``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Symbols:
    """Short names s0, s1, ... for symbolic sizes, in the order in which they appear."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def text(self, size: Any) -> str:
        """Text of a size."""
        if isinstance(size, int):
            return str(size)
        return re.sub(
            r"\b[su]\d+\b",
            lambda m: self.names.setdefault(m.group(), f"s{len(self.names)}"),
            str(size),
        )


def format_graph(graph: fx.Graph) -> str:
    """Text of ``graph``; parameters are written where they are used, as ``@name``."""
    return aligned((left, right) for _, left, right in printed(graph))


def printed(graph: fx.Graph) -> Iterator[tuple[fx.Node, str, str]]:
    """Each node that has a line of its own, with the two sides of it."""
    symbols = Symbols()
    for node in graph.nodes:
        if node.op != "get_attr":
            yield node, *_line(node, symbols)


def aligned(sides: Iterable[tuple[str, str]]) -> str:
    """Text of lines ``left = right``."""
    lines = list(sides)
    width = max((len(left) for left, _ in lines), default=0)
    return "\n".join(f"{left:<{min(width, 44)}} = {right}" for left, right in lines)


def _line(node: fx.Node, symbols: Symbols) -> tuple[str, str]:
    if node.op == "output":
        return "output", _argument(node.args[0], symbols)
    if node.target in (*ENTERS, leave):
        what = ", ".join(_argument(arg, symbols) for arg in node.args)
        return f"%{node.name}", f"{getattr(node.target, '__name__', '')}({what})"
    left = f"%{node.name}: {type_text(node.meta.get('val'), symbols)}"
    if node.op == "placeholder":
        return left, "input"
    mapping = node.meta.get(META)
    args = [_argument(arg, symbols) for arg in node.args]
    if node.target in _OPS:
        args = args[:3] + _conv_arguments(node, symbols)
        name = f"analogc.{_OPS[node.target]}"
    elif node.op == "call_module":
        name = "derive"
    else:
        name = str(getattr(node.target, "__name__", node.target))
        if isinstance(node.target, torch._ops.OpOverload):
            name = str(node.target).removesuffix(".default")
    args += [f"{key}={_argument(value, symbols)}" for key, value in node.kwargs.items()]
    return left, f"{name}({', '.join(args)})" + _note(mapping) + _place(node)


def _conv_arguments(node: fx.Node, symbols: Symbols) -> list[str]:
    """Geometry of a convolution, as far as it is not the plain one."""
    rest = node.args[5:-2]
    usual = (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
    return [
        f"{name}={_argument(value, symbols)}"
        for (name, plain), value in zip(usual, rest, strict=False)
        if any(item != plain for item in (value if isinstance(value, list | tuple) else [value]))
    ]


def _argument(value: Any, symbols: Symbols) -> str:
    if isinstance(value, fx.Node):
        return f"@{value.target}" if value.op == "get_attr" else f"%{value.name}"
    if isinstance(value, list | tuple):
        inner = ", ".join(_argument(item, symbols) for item in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, str):
        return json.dumps(value)
    return str(value).removeprefix("torch.")


def type_text(value: Any, symbols: Symbols) -> str:
    """Type of a node's value, for example ``f32[s0, 3, 8, 8]``."""
    if isinstance(value, Tensor):
        sizes = ", ".join(symbols.text(size) for size in value.shape)
        return f"{_SHORT.get(value.dtype, str(value.dtype))}[{sizes}]"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(type_text(item, symbols) for item in value) + ")"
    if isinstance(value, torch.SymInt):
        return symbols.text(value)
    return type(value).__name__


def _note(record: object) -> str:
    if isinstance(record, TileMapping):
        rows, cols = record.grid
        groups = f"{record.groups}x" if record.groups > 1 else ""
        ids = record.tile_ids
        tiles = f"t{ids.start}" if len(ids) == 1 else f"t{ids.start}..t{ids.stop - 1}"
        return (
            f"  {{{groups}{rows}x{cols} of {record.tile_rows}x{record.tile_cols}, "
            f"rows {_blocks(record.row_bounds)}, cols {_blocks(record.col_bounds)}, {tiles}, "
            f"{100 * record.utilisation:.1f} % used}}"
        )
    if isinstance(record, Analog):
        return "  {analog}"
    if isinstance(record, Digital) and (record.macs or record.rule != "rule"):
        return f"  {{digital: {record.reason}}}"
    return ""


def _blocks(bounds: tuple[int, ...]) -> str:
    return runs([b - a for a, b in zip(bounds, bounds[1:], strict=False)])


def runs(numbers: Sequence[int]) -> str:
    """``2x128+64`` for 128, 128, 64."""
    groups = ((number, len(list(same))) for number, same in itertools.groupby(numbers))
    return "+".join(f"{n}" if times == 1 else f"{times}x{n}" for n, times in groups)


def _place(node: fx.Node) -> str:
    path = module_path(node)
    return f"  # {path}" if path else ""
