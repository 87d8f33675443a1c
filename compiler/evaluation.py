"""Measurements of a model over seeds and times, as a tidy table with statistics."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import InputError
from ..runtime.extras import require

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_UNITS = ((365 * 86400.0, "y"), (86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One number that was measured."""

    variant: str
    """Name of the model, if several are compared; else ``""``."""
    seed: int
    time: float
    """Time since programming [s]."""
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class Statistic:
    """A metric at one time, over the seeds."""

    variant: str
    metric: str
    time: float
    """Time since programming [s]."""
    count: int
    """Number of seeds."""
    mean: float
    std: float
    """Sample standard deviation over the seeds; NaN for one seed."""
    low: float
    """Confidence interval of the mean, by Student's t; NaN for one seed."""
    high: float

    def __str__(self) -> str:
        if self.count == 1 or not math.isfinite(self.std):
            return f"{self.mean:.4g}"
        # As many decimals as two figures of the deviation have.
        if self.std == 0:
            return f"{self.mean:.4g} ± 0"
        decimals = max(1 - math.floor(math.log10(self.std)), 0)
        if decimals > 8 or abs(self.mean) >= 1e8:
            return f"{self.mean:.4g} ± {self.std:.2g}"
        return f"{self.mean:.{decimals}f} ± {self.std:.{decimals}f}"


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Table of ``evaluate``: a row for each variant, seed, time and metric.

    ``print`` shows mean ± standard deviation over the seeds.
    """

    rows: tuple[EvaluationRow, ...]
    confidence: float = 0.95
    """Of the intervals in ``statistics``, 0..1."""

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the models, in order."""
        return tuple(dict.fromkeys(row.variant for row in self.rows))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, in order."""
        return tuple(dict.fromkeys(row.metric for row in self.rows))

    @property
    def times(self) -> tuple[float, ...]:
        """Times since programming [s], in rising order."""
        return tuple(sorted({row.time for row in self.rows}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds, in order."""
        return tuple(dict.fromkeys(row.seed for row in self.rows))

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """Mean, standard deviation and confidence interval over the seeds, times rising."""
        cells: dict[tuple[str, str, float], list[float]] = {}
        for row in self.rows:
            cells.setdefault((row.variant, row.metric, row.time), []).append(row.value)
        return tuple(
            _statistic(variant, metric, time, cells[variant, metric, time], self.confidence)
            for variant in self.variants
            for metric in self.metrics
            for time in self.times
            if (variant, metric, time) in cells
        )

    def at(self, time: float, metric: str | None = None, variant: str | None = None) -> Statistic:
        """Statistic of one metric of one variant at ``time`` [s].

        Args:
            time: one of ``times``.
            metric: its name; may be left out if there is one.
            variant: its name; may be left out if there is one.

        Raises:
            InputError: there is no such cell, or several.
        """
        metric = _one("metric", metric, self.metrics)
        variant = _one("variant", variant, self.variants)
        for found in self.statistics:
            if (found.variant, found.metric, found.time) == (variant, metric, time):
                return found
        known = ", ".join(f"{t:g}" for t in self.times)
        raise InputError(f"nothing was measured at {time!r} s", fix=f"times: {known}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: the rows and the statistics."""
        return {
            "confidence": self.confidence,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "statistics": [dataclasses.asdict(found) for found in self.statistics],
        }

    def to_csv(self, path: str | Path | None = None) -> str:
        """The rows as CSV with a header, also written to ``path`` if there is one."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(f.name for f in dataclasses.fields(EvaluationRow))
        writer.writerows(dataclasses.astuple(row) for row in self.rows)
        if path is not None:
            Path(path).write_text(out.getvalue(), encoding="utf-8")
        return out.getvalue()

    def dataframe(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame.

        Raises:
            InputError: pandas is not installed.
        """
        pandas = require("pandas", "evaluate")
        names = [f.name for f in dataclasses.fields(EvaluationRow)]
        found: pd.DataFrame = pandas.DataFrame(map(dataclasses.astuple, self.rows), columns=names)
        return found

    def plot(self, path: str | Path | None = None, metric: str | None = None) -> Figure:
        """Mean over time with the band of its confidence interval, one line for each variant.

        Time is logarithmic, linear from 0 to the first time after it.

        Args:
            path: file to write the figure to, of any type that matplotlib knows.
            metric: which one to show; default: all, side by side.

        Returns:
            The figure, which no window shows.

        Raises:
            InputError: matplotlib is not installed, or no such metric.
        """
        from .picture.over_time import plot

        metrics = self.metrics if metric is None else (_one("metric", metric, self.metrics),)
        figure = plot(self, metrics)
        if path is not None:
            figure.savefig(path)
        return figure

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells: a row for each variant and metric, a column for each time."""
        named = any(self.variants)
        header = [*(["variant"] if named else []), "metric", *map(time_text, self.times)]
        cells = {(s.variant, s.metric, s.time): str(s) for s in self.statistics}
        rows = [
            [*([variant] if named else []), metric,
             *(cells.get((variant, metric, time), "") for time in self.times)]
            for variant in self.variants
            for metric in self.metrics
        ]  # fmt: skip
        return header, rows

    def __str__(self) -> str:
        header, rows = self._table()
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        left = len(header) - len(self.times)
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (header, *rows)
        )

    __repr__ = __str__

    def __rich__(self) -> Any:
        """Table for rich."""
        from rich.markup import escape
        from rich.table import Table

        header, rows = self._table()
        count = len(self.seeds)
        table = Table(title=f"mean ± standard deviation, seeds: {count}", title_justify="left")
        for i, name in enumerate(header):
            left = i < len(header) - len(self.times)
            table.add_column(escape(name), justify="left" if left else "right")
        for row in rows:
            table.add_row(*map(escape, row))
        return table


def time_text(seconds: float) -> str:
    """``seconds`` in the largest unit that it is a whole number of: ``20 s``, ``1 h``, ``1 y``."""
    for size, unit in _UNITS:
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _one(what: str, name: str | None, names: tuple[str, ...]) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name not in names or name is None:
        known = ", ".join(map(repr, names))
        which = f"no {what} {name!r}" if name is not None else f"there are several {what}s"
        raise InputError(which, fix=f"{what}={'|'.join(map(repr, names))}" if names else known)
    return name


def _statistic(
    variant: str, metric: str, time: float, values: list[float], confidence: float
) -> Statistic:
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Statistic(variant, metric, time, 1, mean, math.nan, math.nan, math.nan)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = student_t(confidence, count - 1) * std / math.sqrt(count)
    return Statistic(variant, metric, time, count, mean, std, mean - half, mean + half)


def student_t(confidence: float, freedom: int) -> float:
    """``t`` such that a Student's t of ``freedom`` degrees is within ±t with that probability.

    By bisection on the finite sums for whole degrees of freedom (Abramowitz and Stegun, Handbook of
    Mathematical Functions, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, math.pi / 2
    while high - low > 1e-15:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
