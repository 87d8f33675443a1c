"""Which kernel each layer of a compiled model got, as records and as a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..runtime.backend import KernelName


@dataclass(frozen=True, slots=True)
class LayerKernel:
    """The kernel of one use of a weight."""

    layer: str
    op: str
    kernel: KernelName
    why: str


class BackendReport(tuple[LayerKernel, ...]):
    """One LayerKernel for each analog layer, in the order of the graph."""

    __slots__ = ()

    def summary(self) -> str:
        """One line."""
        counts = Counter(row.kernel for row in self)
        return ", ".join(f"{n} on {kernel}" for kernel, n in counts.items()) or "no analog layers"

    def __str__(self) -> str:
        rows = [f"  {r.layer:<24} {r.op:<8} {r.kernel:<15} {r.why}" for r in self]
        return "\n".join([self.summary(), *rows])

    def __rich__(self) -> Any:
        """Table for rich."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=self.summary(), title_justify="left")
        for column in ("layer", "op", "kernel", "why"):
            table.add_column(column)
        for row in self:
            table.add_row(escape(row.layer), row.op, row.kernel, escape(row.why))
        return table
