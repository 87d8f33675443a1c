"""The difference of two compiled models, and how it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..printing import counted
from .graphs import Change, GraphDiff
from .values import RangeDiff, TensorDiff

_STYLES = {"+": "green", "-": "red", "~": "yellow", "#": "bold", "=": "dim"}
_MOST = 10
"""Entries of a part that are told, if not all are asked for."""


@dataclass(frozen=True, slots=True)
class Diff:
    """Difference of two compiled models; true if there is any.

    ``str`` and ``print`` tell it, most important first; ``to_dict`` has all of it.
    """

    a: str
    """What the first one is called: its file, or ``a``."""
    b: str
    settings: tuple[Change, ...] = ()
    """Target, seed, access, modes, tied weights."""
    signature: tuple[Change, ...] = ()
    """Inputs and outputs."""
    graphs: tuple[GraphDiff, ...] = ()
    """One for each graph that both have, equal ones included."""
    ranges: tuple[RangeDiff, ...] = ()
    """Converter ranges of layers that both have, the biggest change first."""
    weights: tuple[TensorDiff, ...] = ()
    """Parameters and buffers, the biggest difference first."""
    tiles: tuple[TensorDiff, ...] = ()
    """What the tile arrays hold, ``[N, K]``, and their state."""

    @property
    def equal(self) -> bool:
        """True if nothing differs by more than the tolerance."""
        return not self

    def __bool__(self) -> bool:
        return any(not part.startswith("equal") for _, part in self.parts())

    def parts(self) -> Iterator[tuple[str, str]]:
        """Each part with a summary, which is ``equal ...`` if it is."""
        for name, changes in (("settings", self.settings), ("signature", self.signature)):
            yield name, counted(len(changes), "change") if changes else "equal"
        for graph in self.graphs:
            yield f"graph ({graph.label})", graph.summary()
        yield "ranges", _ranges_summary(self.ranges)
        yield "weights", _tensors_summary(self.weights)
        yield "tiles", _tensors_summary(self.tiles)

    def lines(self, most: int | None = _MOST) -> Iterator[tuple[str, str]]:
        """The text, each line with its mark: ``+``, ``-``, ``~``, ``#`` (title), ``=``.

        Args:
            most: entries of a part that are told; None: all.
        """
        yield "-", f"a: {self.a}"
        yield "+", f"b: {self.b}"
        if not self:
            yield "#", "equal"
            return
        for name, summary in self.parts():
            yield "=" if summary.startswith("equal") else "~", f"  {name:<14}  {summary}"
        for name, changes in (("settings", self.settings), ("signature", self.signature)):
            yield from _section(name, [("~", str(change)) for change in changes], None)
        for graph in self.graphs:
            rows = list(graph.lines())
            yield from _section(f"graph ({graph.label})", rows, None if most is None else 8 * most)
        by_layer: dict[str, list[RangeDiff]] = {}
        for found in self.ranges:
            by_layer.setdefault(found.layer, []).append(found)
        told = [("~", f"{f.layer}  {f}") for layer in by_layer.values() for f in layer]
        yield from _section("ranges", told, most)
        yield from _section("weights", [("~", f"{t.name}  {t}") for t in self.weights], most)
        yield from _section("tiles", [("~", f"{t.name}  {t}") for t in self.tiles], most)

    def text(self, most: int | None = _MOST) -> str:
        """As ``str``, with ``most`` entries of a part; None: all."""
        return "\n".join(line for _, line in self.lines(most))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: all of it."""
        return {
            "a": self.a,
            "b": self.b,
            "equal": self.equal,
            "summary": dict(self.parts()),
            "settings": [change.to_dict() for change in self.settings],
            "signature": [change.to_dict() for change in self.signature],
            "graphs": [graph.to_dict() for graph in self.graphs],
            "ranges": [found.to_dict() for found in self.ranges],
            "weights": [found.to_dict() for found in self.weights],
            "tiles": [found.to_dict() for found in self.tiles],
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON text of ``to_dict``, also written to ``path`` if there is one."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def __rich__(self) -> Any:
        """The text in colours."""
        return self.rich()

    def rich(self, most: int | None = _MOST) -> Any:
        """Text for rich, with ``most`` entries of a part; None: all."""
        from rich.text import Text

        rows = [Text(line, _STYLES.get(mark, "")) for mark, line in self.lines(most)]
        return Text("\n").join(rows)


def _section(
    title: str, rows: Sequence[tuple[str, str]], most: int | None
) -> Iterator[tuple[str, str]]:
    if not rows:
        return
    yield "#", f"\n{title}"
    shown = rows if most is None else rows[:most]
    for mark, line in shown:
        yield mark, f"  {line}"
    if len(shown) < len(rows):
        yield "=", f"  ... {len(rows) - len(shown)} more"


def _ranges_summary(found: tuple[RangeDiff, ...]) -> str:
    if not found:
        return "equal"
    layers = counted(len({diff.layer for diff in found}), "layer")
    first = found[0]
    return f"{counted(len(found), 'range')} of {layers} changed, most: {first.layer} {first}"


def _tensors_summary(found: tuple[TensorDiff, ...]) -> str:
    if not found:
        return "equal"
    first = found[0]
    differ = "differs" if len(found) == 1 else "differ"
    return f"{counted(len(found), 'tensor')} {differ}, most: {first.name} {first}"
