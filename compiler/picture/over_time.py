"""A metric over the time since programming, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...runtime.extras import require
from ..evaluation import time_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..evaluation import EvaluationResult


def plot(result: EvaluationResult, metrics: Sequence[str]) -> Figure:
    """Figure with a panel for each of ``metrics``: mean and confidence band of each variant.

    Raises:
        InputError: matplotlib is not installed.
    """
    # Not pyplot: it keeps every figure, and looks for a display.
    made = require("matplotlib.figure", "evaluate").Figure
    figure: Figure = made(figsize=(5.2 * max(len(metrics), 1), 3.6), layout="constrained")
    for i, metric in enumerate(metrics):
        _panel(figure.add_subplot(1, len(metrics), i + 1), result, metric)
    return figure


def _panel(axes: Any, result: EvaluationResult, metric: str) -> None:
    for variant in result.variants:
        found = [s for s in result.statistics if (s.variant, s.metric) == (variant, metric)]
        times = [s.time for s in found]
        (line,) = axes.plot(times, [s.mean for s in found], marker="o", ms=4, label=variant)
        if any(s.count > 1 for s in found):
            low, high = [s.low for s in found], [s.high for s in found]
            axes.fill_between(times, low, high, color=line.get_color(), alpha=0.2, lw=0)
    after = [time for time in result.times if time > 0]
    if after:
        axes.set_xscale("symlog" if result.times[0] == 0 else "log",
                        **({"linthresh": after[0]} if result.times[0] == 0 else {}))  # fmt: skip
    axes.set_xticks(result.times, map(time_text, result.times), rotation=30)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("time since programming")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    if any(result.variants):
        axes.legend()
