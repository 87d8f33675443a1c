"""Coverage: what went to the tiles, what stayed digital, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from torch import fx

from ..passes.base import META, source_line
from ..runtime.mapping import Digital, TileMapping
from .printing import counted

KINDS = {
    "analog": "on tiles",
    "rule": "digital by rule",
    "choice": "digital by choice",
    "unsupported": "unsupported",
}
"""Kinds of rows, in the order of reports, and what each is called there."""
_WHERE = {"analog": "analog", "rule": "digital", "choice": "digital", "unsupported": "unsupported"}
_FEW = 4
"""Uses of one weight, beside the first, that reports list one by one."""


@dataclass(frozen=True, slots=True)
class CoverageRow:
    """One compute node."""

    node: str
    op: str
    module: str
    kind: str
    """``analog``, or the rule that keeps it digital: ``rule``, ``choice``, ``unsupported``."""
    reason: str
    macs: int
    line: str | None
    """User's source line ``file:line``, if known."""

    @property
    def place(self) -> str:
        """Module and source line, as far as they are known; the file by its name only."""
        line = self.line.replace("\\", "/").rpartition("/")[2] if self.line else ""
        return ", ".join(filter(None, (self.module, line)))

    @property
    def source(self) -> str:
        """``line`` with the file named from its outermost package: no folder of this machine."""
        return source_text(self.line)


def source_text(line: str | None) -> str:
    """``line`` with the file named from its outermost package; empty if it is not known."""
    if line is None:
        return ""
    name, _, number = line.rpartition(":")
    return f"{_in_package(name)}:{number}"


@cache
def _in_package(name: str) -> str:
    file = Path(name)
    parts = [file.name]
    for folder in file.parents:
        if not (folder / "__init__.py").is_file():
            break
        parts.insert(0, folder.name)
    return "/".join(parts)


@dataclass(frozen=True, slots=True)
class CoverageReport:
    """All compute nodes of a graph, in order."""

    rows: tuple[CoverageRow, ...]

    @classmethod
    def of(cls, *graphs: fx.Graph) -> CoverageReport:
        """Report on rewritten graphs."""
        rows = []
        for node in chain.from_iterable(graph.nodes for graph in graphs):
            record = node.meta.get(META)
            op = str(node.target).removesuffix(".default")
            if isinstance(record, TileMapping):
                kind, reason = "analog", record.layer
            elif isinstance(record, Digital):
                kind, reason = record.rule, record.reason
            else:
                continue
            rows.append(
                CoverageRow(
                    node.name, op, record.module, kind, reason, record.macs, source_line(node)
                )
            )
        return cls(tuple(rows))

    @property
    def analog(self) -> tuple[CoverageRow, ...]:
        """Nodes on tiles."""
        return tuple(row for row in self.rows if row.kind == "analog")

    @property
    def digital(self) -> tuple[CoverageRow, ...]:
        """Nodes that stayed digital."""
        return tuple(row for row in self.rows if row.kind != "analog")

    @property
    def unsupported(self) -> tuple[CoverageRow, ...]:
        """Nodes with a stationary weight that have no analog form."""
        return tuple(row for row in self.rows if row.kind == "unsupported")

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call at the example shape."""
        return sum(row.macs for row in self.rows)

    @property
    def analog_share(self) -> float:
        """Share of the multiply-accumulates that the tiles do, 0..1 (1 if there are none)."""
        total = self.macs
        return sum(row.macs for row in self.analog) / total if total else 1.0

    def share(self, row: CoverageRow) -> float:
        """Share of the model's multiply-accumulates that a row does, 0..1."""
        return row.macs / self.macs if self.macs else 0.0

    @property
    def kinds(self) -> dict[str, tuple[int, int]]:
        """Number of nodes, and their multiply-accumulates, of each kind."""
        found = {kind: [row.macs for row in self.rows if row.kind == kind] for kind in KINDS}
        return {kind: (len(macs), sum(macs)) for kind, macs in found.items()}

    def summary(self) -> str:
        """One line."""
        layers = counted(len(self.analog), "layer")
        products = sum(1 for row in self.digital if row.macs and row.kind != "unsupported")
        left = f", {counted(products, 'product')} digital" if products else ""
        bad = f", {len(self.unsupported)} unsupported" if self.unsupported else ""
        return (
            f"{layers} analog, {100 * self.analog_share:.1f} % of "
            f"{count_text(self.macs)} MACs{left}{bad}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        fields = CoverageRow.__slots__
        return {
            "macs": self.macs,
            "analog_share": self.analog_share,
            "kinds": {
                kind: {"nodes": nodes, "macs": macs} for kind, (nodes, macs) in self.kinds.items()
            },
            "rows": [
                {**{name: getattr(row, name) for name in fields}, "share": self.share(row)}
                for row in self.rows
            ],
        }

    def to_html(self) -> str:
        """Self-contained page: every node with its kind, reason, module, source line and work."""
        from .picture.page import coverage_page, page

        return page("analogc: coverage", coverage_page(self))

    def _repr_html_(self) -> str:
        from .picture.page import coverage_page

        return coverage_page(self)

    def __str__(self) -> str:
        """Summary, then a line for each product, then the other digital nodes by kind."""
        lines = [self.summary()]
        products = {row for row in self.rows if row.macs or row.kind != "rule"}
        listed = steps_as_one(row for row in self.rows if row in products)
        long = max([24, *(len(row.node) for row in listed)])
        wide = max([7, *(len(_WHERE[row.kind]) for row in listed)])
        for row in listed:
            why = row.module or row.reason
            if row.kind != "analog":
                why = row.reason + (f"  [{row.place}]" if row.place else "")
            lines.append(
                f"  {_WHERE[row.kind]:<{wide}} {row.node:<{long}} {count_text(row.macs):>8} "
                f"{100 * self.share(row):5.1f} %  {why}"
            )
        others = Counter(row.op for row in self.rows if row not in products)
        if others:
            counted = ", ".join(f"{n} {op}" for op, n in sorted(others.items()))
            lines.append(f"  digital, no multiply with a weight: {counted}")
        return "\n".join(lines)

    def __rich__(self) -> Any:
        """Table for rich: the layers and products; a count of the other digital nodes below."""
        from rich.markup import escape
        from rich.table import Table

        listed = steps_as_one(row for row in self.rows if row.kind != "rule" or row.macs)
        others = Counter(row.op for row in self.rows if row.kind == "rule" and not row.macs)
        counted = ", ".join(f"{n} {op}" for op, n in sorted(others.items()))
        table = Table(
            title=escape(self.summary()),
            title_justify="left",
            caption=escape(f"digital, no multiply with a weight: {counted}") if others else None,
            caption_justify="left",
        )
        why = any(row.kind != "analog" for row in listed)
        for column in ("node", "op", "module", "where", *(["why"] if why else []), "MACs", "share"):
            right = column in ("MACs", "share")
            table.add_column(column, justify="right" if right else "left", no_wrap=right)
        colours = {"analog": "green", "unsupported": "red"}
        for row in listed:
            analog = row.kind == "analog"
            table.add_row(
                escape(row.node), escape(row.op), escape(row.module if analog else row.place),
                f"[{colours.get(row.kind, 'yellow')}]{_WHERE[row.kind]}",
                *(["" if analog else escape(row.reason)] if why else []),
                count_text(row.macs), f"{100 * self.share(row):.1f} %",
            )  # fmt: skip
        return table


def steps_as_one(rows: Iterable[CoverageRow]) -> list[CoverageRow]:
    """``rows`` with many uses of one weight, such as the steps of a recurrent layer, in one row."""
    uses: dict[tuple[str, ...], list[CoverageRow]] = {}
    for row in rows:
        weight = row.reason.partition("@")[0] if row.kind == "analog" else row.node
        uses.setdefault((row.kind, weight, row.module), []).append(row)
    found = []
    for first, *more in uses.values():
        if len(more) < _FEW:
            found += [first, *more]
            continue
        macs = first.macs + sum(row.macs for row in more)
        found.append(replace(first, node=f"{first.node} and {len(more)} more", macs=macs))
    return found


def count_text(number: int) -> str:
    """``number`` in three figures or so: ``589.8k``."""
    size = float(number)
    for unit in ("", "k", "M", "G", "T"):
        if size < 1000 or unit == "T":
            return f"{size:.0f}" if not unit else f"{size:.1f}{unit}"
        size /= 1000
    raise AssertionError("unreachable")
