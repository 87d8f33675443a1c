"""A compiled graph as text for Graphviz."""

from __future__ import annotations

from torch import fx

from ...passes.base import META
from ...runtime.mapping import TileMapping
from ..printing import Symbols, type_text
from .graph import is_plumbing, op_text, shade


def to_dot(graph: fx.Graph) -> str:
    """DOT text of ``graph``: activations only, analog layers coloured by tile utilisation.

    Draw it with ``dot -Tsvg``; analogc itself needs no Graphviz.
    """
    symbols = Symbols()
    shown = [node for node in graph.nodes if not is_plumbing(node)]
    lines = [
        "digraph analogc {",
        '  node [shape=box style="rounded,filled" fillcolor="#eef0f3" fontname="sans-serif"];',
    ]
    for node in shown:
        lines.append(f"  {_quote(node.name)} [{_look(node, symbols)}];")
    for node in shown:
        for source in node.all_input_nodes:
            if not is_plumbing(source):
                lines.append(f"  {_quote(source.name)} -> {_quote(node.name)};")
    return "\n".join([*lines, "}", ""])


def _look(node: fx.Node, symbols: Symbols) -> str:
    if node.op == "output":
        return 'label="output" fillcolor="#ffffff"'
    kind = f"%{node.name}: {type_text(node.meta.get('val'), symbols)}"
    record = node.meta.get(META)
    if isinstance(record, TileMapping):
        rows, cols = record.grid
        used = f"{record.groups}x{rows}x{cols} tiles, {100 * record.utilisation:.1f} % used"
        ink = ' fontcolor="#ffffff"' if record.utilisation > 0.62 else ""
        label = _quote(record.layer, f"{record.op}, {used}", kind)
        return f'label={label} fillcolor="{shade(record.utilisation)}"{ink}'
    if node.op == "placeholder":
        return f'label={_quote("input", kind)} fillcolor="#ffffff"'
    return f"label={_quote(op_text(node), kind)}"


def _quote(*lines: str) -> str:
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") for line in lines)
    return '"' + "\\n".join(escaped) + '"'
