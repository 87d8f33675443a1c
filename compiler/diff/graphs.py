"""Difference of two graphs, node by node."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from ..printing import counted
from .lines import Line, read
from .matching import in_order, match, renamed

_QUIET = {
    "name": "name",
    "weights": "names of weights",
    "module": "module",
    "tiles.first_tile": "first tile id",
}
"""Fields that a change elsewhere takes along, and what they are called: the nodes concerned are
counted, not shown one by one."""
_FOLLOW = ("tiles.layer", "tiles.array", "tiles.macs", "digital.macs")
"""Fields that are not shown if the node has another type or weight, from which they follow."""
_NAMES = re.compile(r'"(?:\\.|[^"\\])*"|%\w+|@[^\s,()\[\]]+')
_KEYWORD = re.compile(r"(\w+)=")
_COMMON = 3
"""A change that more nodes than this have in common is told once."""


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs."""

    field: str
    """What it is: ``shape``, ``tiles.row_bounds``, ``settings.adc.bits``."""
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.field}: {shown(self.a)} → {shown(self.b)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"field": self.field, "a": self.a, "b": self.b}


def shown(value: Any) -> str:
    """Value in a message."""
    return "nothing" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class NodeDiff:
    """A node of either graph, or of both."""

    a: Line | None
    """None: added."""
    b: Line | None
    """None: removed."""
    changes: tuple[Change, ...] = ()

    @property
    def kind(self) -> str:
        """``added``, ``removed``, ``changed`` or ``equal``."""
        if self.a is None or self.b is None:
            return "added" if self.a is None else "removed"
        return "changed" if self.changes else "equal"

    @property
    def line(self) -> Line:
        """The node as it is in ``b``, or was in ``a``."""
        line = self.b if self.b is not None else self.a
        assert line is not None, "a node is of a graph"
        return line


@dataclass(frozen=True, slots=True)
class GraphDiff:
    """Two graphs, node by node in order; removed nodes are where they were."""

    label: str
    """``eval``, ``train``, or the number of the graph."""
    nodes: tuple[NodeDiff, ...]
    weights: Mapping[str, str] = field(default_factory=dict)
    """Parameters of ``a`` that have another name in ``b``."""

    @property
    def arrays(self) -> dict[str, str]:
        """Tile arrays of ``a`` that have another name in ``b``."""
        found: dict[str, set[str]] = {}
        for node in self.nodes:
            if node.a is not None and node.b is not None:
                old, new = (line.facts.get("tiles.array") for line in (node.a, node.b))
                if old is not None and new is not None:
                    found.setdefault(old, set()).add(new)
        single = {old: next(iter(new)) for old, new in found.items() if len(new) == 1}
        uses = Counter(single.values())
        return {old: new for old, new in single.items() if old != new and uses[new] == 1}

    @property
    def equal(self) -> bool:
        """True if nothing differs."""
        return all(node.kind == "equal" for node in self.nodes)

    def of_kind(self, kind: str) -> tuple[NodeDiff, ...]:
        """Nodes that are ``added``, ``removed``, ``changed`` or ``equal``."""
        return tuple(node for node in self.nodes if node.kind == kind)

    def summary(self) -> str:
        """One line."""
        if self.equal:
            return f"equal, {counted(len(self.nodes), 'node')}"
        counts = Counter(node.kind for node in self.nodes)
        return ", ".join(
            f"{counts[kind]} {kind}" for kind in ("added", "removed", "changed", "equal")
        )

    @property
    def common(self) -> dict[str, tuple[str, ...]]:
        """Text of the changes that many nodes share, and the names of those nodes."""
        found: dict[str, list[str]] = {}
        for node in self.nodes:
            for change in _loud(node):
                found.setdefault(str(change), []).append(node.line.name)
        return {change: tuple(names) for change, names in found.items() if len(names) > _COMMON}

    def lines(self, context: int = 1) -> Iterator[tuple[str, str]]:
        """Text, each line with its mark: ``+``, ``-``, ``~`` (changed), ``=`` (context).

        Args:
            context: equal nodes that are shown before and after each that differs.
        """
        common = self.common
        for text, names in common.items():
            yield "~", f"~ {text}   in {len(names)} nodes: {_few(names)}"
        for quiet, what in _QUIET.items():
            found = [c for node in self.nodes for c in node.changes if c.field == quiet]
            if found:
                each = list(dict.fromkeys(f"{shown(c.a)} → {shown(c.b)}" for c in found))
                yield "~", f"~ {what} of {counted(len(found), 'node')}: {_few(each)}"
        told = [[c for c in _loud(node) if str(c) not in common] for node in self.nodes]
        loud = [
            node.kind in ("added", "removed") or bool(changes)
            for node, changes in zip(self.nodes, told, strict=True)
        ]
        last = -1
        for i, node in enumerate(self.nodes):
            if not any(loud[max(0, i - context) : i + context + 1]):
                continue
            if last >= 0 and i > last + 1:
                yield "=", "  ..."
            last = i
            mark = {"added": "+", "removed": "-"}.get(node.kind, "~" if loud[i] else "=")
            yield mark, f"{mark.replace('=', ' ')} {node.line.text}"
            for change in told[i]:
                yield "~", f"    {change}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; equal nodes are counted only."""
        return {
            "graph": self.label,
            "equal_nodes": len(self.of_kind("equal")),
            "nodes": [
                {
                    "kind": node.kind,
                    "a": node.a.name if node.a else None,
                    "b": node.b.name if node.b else None,
                    "line": node.line.text,
                    "changes": [change.to_dict() for change in node.changes],
                }
                for node in self.nodes
                if node.kind != "equal"
            ],
        }

    def __str__(self) -> str:
        return "\n".join([self.summary(), *(f"  {line}" for _, line in self.lines())])


def _loud(node: NodeDiff) -> list[Change]:
    """Changes of a node that do not follow from others."""
    fields = {change.field for change in node.changes}
    follow = _FOLLOW if fields & {"type", "weights"} else ()
    return [c for c in node.changes if c.field not in _QUIET and c.field not in follow]


def _few(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def diff_texts(a: str, b: str, label: str = "") -> GraphDiff:
    """Difference of two graphs in their printed form."""
    return diff_lines(read(a), read(b), label)


def diff_lines(a: Sequence[Line], b: Sequence[Line], label: str = "") -> GraphDiff:
    """Difference of two graphs of read lines."""
    pairs = match(a, b)
    steady = in_order(pairs)
    weights = renamed(a, b, pairs)
    names = {f"%{a[i].name}": f"%{b[j].name}" for i, j in pairs.items()}
    names |= {f"@{old}": f"@{new}" for old, new in weights.items()}
    back = {j: i for i, j in pairs.items()}
    removed = [i for i in range(len(a)) if i not in pairs]
    nodes: list[NodeDiff] = []
    for j, line in enumerate(b):
        i = back.get(j)
        if i is None:
            nodes.append(NodeDiff(None, line))
            continue
        if i in steady:
            while removed and removed[0] < i:
                nodes.append(NodeDiff(a[removed.pop(0)], None))
        nodes.append(NodeDiff(a[i], line, tuple(_changes(a[i], line, names, i in steady))))
    nodes += [NodeDiff(a[i], None) for i in removed]
    return GraphDiff(label, tuple(nodes), weights)


def _changes(a: Line, b: Line, names: dict[str, str], steady: bool) -> Iterator[Change]:
    if a.name != b.name:
        yield Change("name", a.name, b.name)
    if not steady:
        yield Change("order", "elsewhere", "here")
    for what in ("op", "type", "module"):
        if getattr(a, what) != getattr(b, what):
            yield Change(what, getattr(a, what), getattr(b, what))
    if a.base == b.base and a.paths != b.paths:
        pairs = zip(a.paths, b.paths, strict=False)
        moved = [(old, new) for old, new in pairs if names.get(f"@{old}") == f"@{new}"]
        if moved:
            yield Change("weights", *(", ".join(side) for side in zip(*moved, strict=True)))
    if a.op == b.op:
        args_a, args_b = _by_place(a.args), _by_place(b.args)
        for place in dict.fromkeys((*args_a, *args_b)):
            before, after = args_a.get(place), args_b.get(place)
            if before is None or after is None or _renamed(before, names) != after:
                yield Change(place, before, after)
    if not (a.facts and b.facts):
        # Of a stored text, or with nothing to tell of one of them, there is the printed note.
        old, new = (line.facts.get("digital.reason") or line.note for line in (a, b))
        if old != new:
            yield Change("note", old or None, new or None)
    elif _on_tiles(a) != _on_tiles(b):
        yield Change("place", *(_place(line) for line in (a, b)))
    else:
        for key in dict.fromkeys((*a.facts, *b.facts)):
            if a.facts.get(key) != b.facts.get(key):
                yield Change(key, *_apart(a.facts.get(key), b.facts.get(key), key))


def _apart(a: Any, b: Any, key: str) -> tuple[Any, Any]:
    """The two values; of expressions the first step that differs."""
    if key != "expression":
        return a, b
    return next((x, y) for x, y in zip_longest(a, b) if x != y)


def _by_place(args: Sequence[str]) -> dict[str, str]:
    """Arguments by name, or number."""
    found = {}
    for k, arg in enumerate(args):
        named = _KEYWORD.match(arg)
        found[named.group(1) if named else f"operand {k}"] = arg[named.end() :] if named else arg
    return found


def _on_tiles(line: Line) -> bool:
    return "tiles.array" in line.facts


def _place(line: Line) -> str:
    return "on tiles" if _on_tiles(line) else f"digital: {line.facts['digital.reason']}"


def _renamed(arg: str, names: dict[str, str]) -> str:
    """``arg`` of ``a`` with its nodes and weights called as in ``b``."""
    return _NAMES.sub(lambda m: _name(m.group(), names), arg)


def _name(ref: str, names: dict[str, str]) -> str:
    # A node that has no counterpart is never equal; a weight may keep its name.
    return ref if ref[0] == '"' else names.get(ref, f"?{ref}" if ref[0] == "%" else ref)
