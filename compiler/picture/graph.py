"""A compiled graph as a picture: analog layers coloured by how full their tiles are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ...passes.base import META, module_path, source_line
from ...runtime.mapping import Digital, TileMapping
from ..listing import holds_tensor, writes
from ..printing import Symbols, type_text
from .layout import Box, layered
from .text import MONO, SANS, clip, escape, width_of

_PAD = 10.0
_MARGIN = 8.0
_LEGEND = 34.0
_RAMP = ((226, 241, 238), (106, 186, 174), (11, 102, 94))
"""Colour of an analog layer whose tiles are empty, half full, full."""
_INK, _DIM, _LINE = "#1c2733", "#66727f", "#9aa5b1"


@dataclass(frozen=True, slots=True)
class Card:
    """What is written on one node."""

    kind: str
    """``analog``, ``digital``, ``view`` (moves no data of its own) or ``end``."""
    lines: tuple[tuple[str, str], ...]
    """(style, text), style being ``name``, ``note`` or ``type``."""
    title: str
    """Tooltip."""
    fill: str = "#ffffff"
    ink: str = _INK

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        widths = [width_of(text, *_FONT[style][:2], style == "name") for style, text in self.lines]
        height = sum(_FONT[style][2] for style, _ in self.lines)
        return max(max(widths) + 2 * _PAD, 64.0), height + 11.0


_FONT: dict[str, tuple[float, bool, float]] = {
    "name": (12.5, False, 17.0),
    "note": (11.0, False, 14.5),
    "type": (10.0, True, 14.0),
}
"""Size, monospaced, line height."""


def graph_svg(graph: fx.Graph) -> str:
    """SVG picture of ``graph``, which reads from top to bottom, then column by column.

    Activations only: parameters, what is computed from parameters alone, and sizes are left out.
    Views that follow each other share a box. Each box's tooltip holds the module path, the source
    line and the tiles.
    """
    shown = [node for node in graph.nodes if not is_plumbing(node)]
    home = _homes(shown)
    cards = _cards(shown, home)
    pairs = ((home.get(source), home[node]) for node in shown for source in node.all_input_nodes)
    edges = list(dict.fromkeys((u, v) for u, v in pairs if u is not None and u != v))
    placed = layered({name: card.size for name, card in cards.items()}, edges)
    width = max(placed.width, 430.0) + 2 * _MARGIN
    height = placed.height + _LEGEND + 2 * _MARGIN
    shift = (width - placed.width) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="graph" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.1f} {height:.1f}" '
        f'font-family="{SANS}" fill="{_INK}">',
        f'<defs><marker id="analogc-tip" viewBox="0 0 8 8" refX="7.4" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0.5 1L7.5 4L0.5 7z" fill="{_LINE}"/></marker>'
        f"{_gradient()}</defs>",
        _legend(),
        f'<g transform="translate({shift:.1f} {_MARGIN + _LEGEND:.1f})">',
        f'<g fill="none" stroke="{_LINE}" stroke-width="1.3">',
    ]
    parts += [
        f'<path d="{path}" marker-end="url(#analogc-tip)"/>' for path in placed.edges.values()
    ]
    parts.append("</g>")
    parts += [_draw(card, placed.boxes[name]) for name, card in cards.items()]
    parts.append("</g></svg>")
    return "\n".join(parts)


def shade(share: float) -> str:
    """Colour of an analog layer whose tiles are filled to ``share``, 0..1."""
    share = min(max(share, 0.0), 1.0) * (len(_RAMP) - 1)
    i = min(int(share), len(_RAMP) - 2)
    mix = [round(a + (b - a) * (share - i)) for a, b in zip(_RAMP[i], _RAMP[i + 1], strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mix)


def is_plumbing(node: fx.Node) -> bool:
    """True for what carries no activation: parameters, expressions of parameters, and sizes."""
    if node.op in ("get_attr", "call_module"):
        return True
    return node.op == "call_function" and not holds_tensor(node.meta.get("val"))


def _homes(shown: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """Name of the box that each node is in: its own, or that of the view before it."""
    users = Counter(source for node in shown for source in node.all_input_nodes)
    home: dict[fx.Node, str] = {}
    for node in shown:
        home[node] = node.name
        sources = [source for source in node.all_input_nodes if source in home]
        if _is_view(node) and len(sources) == 1 and _is_view(sources[0]) and users[sources[0]] == 1:
            home[node] = home[sources[0]]
    return home


def _is_view(node: fx.Node) -> bool:
    return node.op == "call_function" and META not in node.meta and not writes(node)


def _cards(shown: Sequence[fx.Node], home: dict[fx.Node, str]) -> dict[str, Card]:
    symbols = Symbols()
    members: dict[str, list[fx.Node]] = {}
    for node in shown:
        members.setdefault(home[node], []).append(node)
    return {name: _card(nodes, symbols) for name, nodes in members.items()}


def _card(nodes: list[fx.Node], symbols: Symbols) -> Card:
    """Card of one node, or of views that follow each other."""
    node = nodes[-1]
    if node.op == "output":
        return Card("end", (("name", "output"),), "output of the model")
    kind = type_text(node.meta.get("val"), symbols)
    typed = ("type", f"%{clip(node.name, 24)}: {clip(kind, 30)}")
    if node.op == "placeholder":
        return Card("end", (("name", "input"), typed), f"%{node.name}: {kind}\ninput of the model")
    if _is_view(node):
        note = ("note", clip(" → ".join(map(short_op, nodes)), 34))
        title = "\n".join("\n".join(_facts(each, symbols)) for each in nodes)
        return Card("view", (note, typed), title, "#ffffff", _DIM)
    record, facts = node.meta.get(META), _facts(node, symbols)
    if isinstance(record, TileMapping):
        return _analog(record, typed, facts)
    if isinstance(record, Digital):
        facts.append(f"digital: {record.reason}")
    name = ("name", clip(short_op(node), 30))
    return Card("digital", (name, typed), "\n".join(facts), "#eef0f3")


def _facts(node: fx.Node, symbols: Symbols) -> list[str]:
    facts = [f"%{node.name}: {type_text(node.meta.get('val'), symbols)}", op_text(node)]
    path, line = module_path(node), source_line(node)
    facts += [f"module {path}"] if path else []
    facts += [line.rpartition("/")[2]] if line else []
    return facts


def _analog(mapping: TileMapping, typed: tuple[str, str], facts: list[str]) -> Card:
    rows, cols = mapping.grid
    groups = f"{mapping.groups} groups of " if mapping.groups > 1 else ""
    tiles = f"{groups}{rows}×{cols} tiles" if mapping.tiles > 1 else "1 tile"
    used = f"{100 * mapping.utilisation:.1f} % used"
    facts += [
        f"weight {'×'.join(map(str, mapping.weight_shape))}",
        f"{tiles} of {mapping.tile_rows}×{mapping.tile_cols}, {used}",
    ]
    lines = (
        ("name", clip(mapping.layer, 34, tail=True)),
        ("note", f"{mapping.op} · {tiles} · {used}"),
        typed,
    )
    ink = "#ffffff" if mapping.utilisation > 0.62 else _INK
    return Card("analog", lines, "\n".join(facts), shade(mapping.utilisation), ink)


def op_text(node: fx.Node) -> str:
    """Name of the operation of a node, as in the printed IR."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).removesuffix(".default")
    return str(getattr(node.target, "__name__", node.target))


def short_op(node: fx.Node) -> str:
    """Name of the operation without library and overload: ``add`` for ``aten.add.Tensor``."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rpartition("::")[2]
    return op_text(node)


def _draw(card: Card, box: Box) -> str:
    left = box.x - box.width / 2
    radius = min(box.height / 2, 16.0) if card.kind == "end" else 6.0
    border = {"analog": "#0b665e", "digital": "#c3cad2", "view": "#d5dae0", "end": _INK}[card.kind]
    dash = ' stroke-dasharray="3 3"' if card.kind == "view" else ""
    parts = [
        f'<g class="{card.kind}"><title>{escape(card.title)}</title>',
        f'<rect x="{left:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
        f'rx="{radius:.1f}" fill="{card.fill}" stroke="{border}"{dash}/>',
    ]
    y = box.y + 4.0
    for style, text in card.lines:
        size, mono, line = _FONT[style]
        y += line
        look = f' font-family="{MONO}"' if mono else ""
        look += ' font-weight="600"' if style == "name" and card.kind != "end" else ""
        ink = _DIM if style == "type" and card.ink == _INK and card.kind != "analog" else card.ink
        parts.append(
            f'<text x="{box.x:.1f}" y="{y - 3:.1f}" text-anchor="middle" font-size="{size:g}" '
            f'fill="{ink}"{look}>{escape(text)}</text>'
        )
    parts.append("</g>")
    return "".join(parts)


def _gradient() -> str:
    stops = "".join(
        f'<stop offset="{s}" stop-color="{shade(s)}"/>' for s in (0, 0.25, 0.5, 0.75, 1)
    )
    return f'<linearGradient id="analogc-ramp">{stops}</linearGradient>'


def _legend() -> str:
    middle = _MARGIN + 8
    return (
        f'<g font-size="11" fill="{_DIM}" dominant-baseline="middle">'
        f'<text x="{_MARGIN}" y="{middle}">on tiles, 0 %</text>'
        f'<rect x="{_MARGIN + 74}" y="{middle - 6}" width="90" height="12" rx="3" '
        f'fill="url(#analogc-ramp)" stroke="#0b665e" stroke-width="0.7"/>'
        f'<text x="{_MARGIN + 170}" y="{middle}">100 % of cells used</text>'
        f'<rect x="{_MARGIN + 294}" y="{middle - 6}" width="20" height="12" rx="3" '
        f'fill="#eef0f3" stroke="#c3cad2"/>'
        f'<text x="{_MARGIN + 320}" y="{middle}">digital</text></g>'
    )
