"""Compiled graphs as text for Graphviz."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx

from ...runtime.mapping import TileMapping
from ..listing import Line, Listing
from .explorer_data import PLUMBING
from .graph import shade
from .grouping import grouped


def to_dot(graphs: Sequence[fx.GraphModule]) -> str:
    """DOT text of ``graphs``: activations only, in clusters by module, analog layers coloured.

    Draw it with ``dot -Tsvg``. Several graphs are clusters of one picture.
    """
    lines = [
        "digraph analogc {",
        '  node [shape=box style="rounded,filled" fillcolor="#eef0f3" fontname="sans-serif"];',
        '  graph [fontname="sans-serif" color="#aab4c8" style=rounded];',
    ]
    for number, module in enumerate(graphs):
        listing = [line for line in Listing.of(module.graph) if line.kind not in PLUMBING]
        if len(graphs) == 1:
            lines += _graph(listing, "", "  ", "cluster")
            continue
        label = str(getattr(module, "label", number))
        lines.append(f"  subgraph {_quote(f'cluster graph {number}')} {{")
        lines.append(f"    label={_quote(f'graph {label}')};")
        lines += _graph(listing, f"{number}:", "    ", f"cluster {number}")
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def _graph(listing: Sequence[Line], prefix: str, indent: str, cluster: str) -> Iterator[str]:
    grouping = grouped(listing)
    inside: dict[int, list[int]] = {}
    for number, group in enumerate(grouping.groups):
        inside.setdefault(group.parent, []).append(number)
    members: dict[int, list[Line]] = {}
    for line, home in zip(listing, grouping.home, strict=True):
        members.setdefault(home, []).append(line)

    def write(home: int, indent: str) -> Iterator[str]:
        for line in members.get(home, ()):
            yield f"{indent}{_quote(prefix + line.name)} [{_look(line)}];"
        for number in inside.get(home, ()):
            group = grouping.groups[number]
            call = f" (call {group.call})" if group.call > 1 else ""
            yield f"{indent}subgraph {_quote(f'{cluster} {number}')} {{"
            yield f"{indent}  label={_quote(group.label + call)};"
            yield from write(number, f"{indent}  ")
            yield f"{indent}}}"

    yield from write(-1, indent)
    known = {line.name for line in listing}
    for line in listing:
        for name in line.inputs:
            if name in known:
                yield f"{indent}{_quote(prefix + name)} -> {_quote(prefix + line.name)};"


def _look(line: Line) -> str:
    if line.kind == "output":
        return 'label="output" fillcolor="#ffffff"'
    kind = f"%{line.name}: {line.type}"
    record = line.record
    if isinstance(record, TileMapping):
        rows, cols = record.grid
        used = f"{record.groups}x{rows}x{cols} tiles, {100 * record.utilisation:.1f} % used"
        ink = ' fontcolor="#ffffff"' if record.utilisation > 0.62 else ""
        label = _quote(record.layer, f"{record.op}, {used}", kind)
        return f'label={label} fillcolor="{shade(record.utilisation)}"{ink}'
    if line.kind == "input":
        return f'label={_quote("input", kind)} fillcolor="#ffffff"'
    return f"label={_quote(line.op, kind)}"


def _quote(*lines: str) -> str:
    """A quoted string; line breaks between ``lines``, no other escapes in them."""
    escaped = (
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
        .replace("\\", "\\\\")
        .replace('"', '\\"')
        for line in lines
    )
    return '"' + "\\n".join(escaped) + '"'
