"""The tiles of a compiled model, as records and as a table."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import fx

from ..passes.base import META
from ..runtime.mapping import TileMapping
from .printing import counted


class TileTable(tuple[TileMapping, ...]):
    """One TileMapping for each tile array, in the order of first use."""

    __slots__ = ()

    @classmethod
    def of(cls, *graphs: fx.Graph) -> TileTable:
        """Tiles that ``graphs`` use."""
        found: dict[str, TileMapping] = {}
        for node in chain.from_iterable(graph.nodes for graph in graphs):
            mapping = node.meta.get(META)
            if isinstance(mapping, TileMapping):
                found.setdefault(mapping.array, mapping)
        return cls(found.values())

    @property
    def total(self) -> int:
        """Number of tiles."""
        return sum(mapping.tiles for mapping in self)

    @property
    def utilisation(self) -> float:
        """Share of all cells that hold a weight, 0..1."""
        if not self:
            return 0.0
        cells = sum(m.tiles * m.tile_rows * m.tile_cols for m in self)
        return sum(m.utilisation * m.tiles * m.tile_rows * m.tile_cols for m in self) / cells

    def summary(self) -> str:
        """One line."""
        tiles, arrays = counted(self.total, "tile"), counted(len(self), "array")
        return f"{tiles} in {arrays}, {100 * self.utilisation:.1f} % used"

    def __str__(self) -> str:
        lines = [self.summary()]
        for m in self:
            rows, cols = m.grid
            ids = m.tile_ids
            lines.append(
                f"  {m.array:<24} {'x'.join(map(str, m.weight_shape)):>16}  "
                f"{m.groups}x{rows}x{cols} tiles {ids.start}..{ids.stop - 1}  "
                f"{100 * m.utilisation:5.1f} % used"
            )
        return "\n".join(lines)

    def __rich__(self) -> Any:
        """Table for rich."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=self.summary(), title_justify="left")
        for column in ("array", "weight", "groups", "grid", "tile ids", "used"):
            table.add_column(column, justify="left" if column == "array" else "right")
        for m in self:
            rows, cols = m.grid
            ids = m.tile_ids
            span = f"{ids.start}" if len(ids) == 1 else f"{ids.start}..{ids.stop - 1}"
            table.add_row(
                escape(m.array),
                "x".join(map(str, m.weight_shape)), str(m.groups), f"{rows}x{cols}",
                span, f"{100 * m.utilisation:.1f} %",
            )  # fmt: skip
        return table
