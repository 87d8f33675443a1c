"""Printed IR, read back line by line: what graphs are compared as.

A graph that is stored as text only, such as a golden file, is compared in the same way as a live
one, of which more is known than what is printed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from ...passes.base import META
from ...passes.verify import OPS
from ...runtime.derived import DerivedWeight
from ...runtime.mapping import Digital, TileMapping
from ..printing import format_graph

_REF = re.compile(r"%\w+")
_PATH = re.compile(r"@[^\s,()\[\]]+")
_MODULE = re.compile(r"  # (\S.*)$")


@dataclass(frozen=True, slots=True)
class Line:
    """One node, as it is printed."""

    name: str
    type: str
    op: str
    args: tuple[str, ...]
    """Text of each argument: ``%relu``, ``@fc.weight``, ``[2, 2]``, ``padding=[1, 1]``."""
    note: str
    """What is printed in braces: tiles, or why it is digital."""
    module: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What is known beyond the text, by dotted names: tile mapping, settings, why digital."""

    @property
    def refs(self) -> tuple[str, ...]:
        """Names of the nodes that it uses, in order."""
        return tuple(ref[1:] for arg in self.args for ref in _REF.findall(unquoted(arg)))

    @property
    def paths(self) -> tuple[str, ...]:
        """Parameters and buffers that it uses, in order."""
        return tuple(path[1:] for arg in self.args for path in _PATH.findall(unquoted(arg)))

    @property
    def base(self) -> str:
        """Operator without library and overload: the same on tiles and digital."""
        parts = self.op.split(".")
        return parts[1] if parts[0] in ("aten", "analogc", "prims") and parts[1:] else self.op


def unquoted(arg: str) -> str:
    """``arg`` without the strings in it."""
    return re.sub(r'"(?:\\.|[^"\\])*"', '""', arg)


def read(text: str) -> list[Line]:
    """Nodes of a printed graph; lines that are none (a title, a blank) are left out."""
    return [_line(row) for row in text.splitlines() if " = " in row and row[:1] in ("%", "o")]


def lines_of(graph: fx.Graph, root: nn.Module) -> list[Line]:
    """Nodes of a live graph, parameters aside, with all that is known of them.

    Args:
        graph: a compiled graph.
        root: what its nodes refer to.
    """
    nodes = [node for node in graph.nodes if node.op != "get_attr"]
    printed = format_graph(graph).splitlines()
    assert len(printed) == len(nodes), "one line a node"
    return [
        dataclasses.replace(_line(row), facts=dict(_facts(node, root)))
        for row, node in zip(printed, nodes, strict=True)
    ]


def _facts(node: fx.Node, root: nn.Module) -> Iterator[tuple[str, Any]]:
    record = node.meta.get(META)
    if isinstance(record, TileMapping):
        yield from flat({**record.to_dict(), "module": None, "source": None}, "tiles")
    elif isinstance(record, Digital):
        yield from flat({**dataclasses.asdict(record), "module": None}, "digital")
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        assert isinstance(module, DerivedWeight), "only computed weights are modules"
        steps = read(format_graph(module.expression.graph))
        # A file does not tell the types inside.
        yield "expression", [f"%{s.name} = {s.op}({', '.join(s.args)})" for s in steps]
    if node.op == "call_function" and node.target in OPS:
        settings = json.loads(str(node.args[-2]))
        del settings["rows"]  # the mapping has them
        yield from flat(settings, "settings")


def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Values inside nested dicts, by dotted names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, list(value) if isinstance(value, tuple) else value


def _line(row: str) -> Line:
    left, _, right = row.partition(" = ")
    name, _, kind = left.strip().partition(": ")
    text = f"{left.strip()} = {right.strip()}"
    if name == "output":
        return Line(name, "", "output", (right.strip(),), "", "", text)
    op, inside, rest = _call(right.strip())
    found = _MODULE.search(rest)
    module = found.group(1) if found else ""
    note = (rest[: found.start()] if found else rest).strip().removeprefix("{").removesuffix("}")
    return Line(name.removeprefix("%"), kind, op, tuple(split(inside)), note, module, text)


def _call(text: str) -> tuple[str, str, str]:
    """``op``, what is between its parentheses, and what follows them."""
    start = text.find("(")
    if start < 0:
        op, _, rest = text.partition("  ")
        return op, "", f"  {rest}"
    depth = 0
    for i, char in _outside_strings(text, start):
        depth += (char in "([") - (char in ")]")
        if depth == 0:
            return text[:start], text[start + 1 : i], text[i + 1 :]
    return text[:start], text[start + 1 :], ""


def split(inside: str) -> Iterator[str]:
    """Arguments between commas, those inside brackets and strings aside."""
    depth = begin = 0
    for i, char in _outside_strings(inside, 0):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            yield inside[begin:i].strip()
            begin = i + 1
    if inside[begin:].strip():
        yield inside[begin:].strip()


def _outside_strings(text: str, start: int) -> Iterator[tuple[int, str]]:
    quoted = skip = False
    for i in range(start, len(text)):
        char = text[i]
        if skip:
            skip = False
        elif quoted:
            skip = char == "\\"
            quoted = char != '"'
        elif char == '"':
            quoted = True
        else:
            yield i, char
