"""What the benchmarks print: tables for a terminal and in markdown, and the head of a report."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from timing import Ratio

import analogc
from analogc.runtime.native.loader import library

PEERS = ("aihwkit", "aihwkit-lightning", "CrossSim")


@dataclass
class Table:
    """Rows of text under a head; the first column names the row."""

    title: str
    head: tuple[str, ...]
    note: str = ""
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Append a row; missing cells at its end are empty."""
        self.rows.append((*cells, *[""] * (len(self.head) - len(cells))))

    def markdown(self) -> str:
        """As a markdown section."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join(part for part in (f"## {self.title}", self.note, text) if part)

    def __rich__(self) -> Any:
        from rich.markup import escape
        from rich.table import Table as Rich

        table = Rich(title=escape(self.title), caption=escape(self.note), title_justify="left")
        for i, name in enumerate(self.head):
            table.add_column(escape(name), justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table


RATIOS = ("digital ms", "analog ms", "ratio", "target", "")
"""Columns that ``ratio_cells`` fills."""


def ratio_cells(found: Ratio, limit: float | None = None) -> tuple[str, ...]:
    """Both times, their ratio, the target for it and whether it is met."""
    cells = f"{1e3 * found.reference:.3f}", f"{1e3 * found.candidate:.3f}", f"{found.ratio:.2f}"
    if limit is None:
        return cells
    return *cells, f"≤ {limit:g}", "met" if found.ratio <= limit else "NOT MET"


def environment() -> dict[str, str]:
    """Machine, versions and settings that figures depend on."""
    threads = torch.get_num_threads()
    one = "thread CPU time, medians" if threads == 1 else "wall time, 5th percentile"
    native = library()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "load average": ", ".join(f"{load:.1f}" for load in os.getloadavg()),
        "threads": f"{threads} ({one})",
        "instruction set": native.isa if native else "no native library",
        "analogc": f"{analogc.__version__}{_commit()}",
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
        "Python": platform.python_version(),
        **{name: _version(name) for name in PEERS},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({platform.machine()})"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" ({done.stdout.strip()})"
