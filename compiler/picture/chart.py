"""Line charts with error bars, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...runtime.errors import InputError
from .text import SANS, escape, width_of

_INK, _DIM, _GRID = "#1c2733", "#66727f", "#e4e8ec"
_COLOURS = ("#0b665e", "#d9772b", "#6f4fb0", "#2f7fc1", "#a33a4d", "#6b7280")
"""Apart in lightness too, so that they can be told in grey and with colour-blind eyes."""
_LEFT, _RIGHT, _BOTTOM, _LEGEND = 62.0, 18.0, 50.0, 22.0


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart."""

    label: str
    points: tuple[tuple[float, float, float], ...]
    """(x, y, half height of the error bar)."""


def line_chart_svg(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    unit: str = "",
    level: tuple[str, float] | None = None,
    ceiling: float | None = None,
    size: tuple[float, float] = (680.0, 400.0),
) -> str:
    """SVG chart of ``series``.

    Args:
        series: one to six lines.
        x_label: what is on the horizontal axis, with its unit.
        y_label: what is on the vertical axis, with its unit.
        unit: written behind the numbers of both axes.
        level: label and value of a dashed horizontal line.
        ceiling: largest possible y: neither the axis nor an error bar goes beyond.
        size: width and height in px.

    Raises:
        InputError: no points, a value that is not finite, or too many series.
    """
    values = [value for line in series for point in line.points for value in point]
    if not values or not all(map(math.isfinite, values)):
        raise InputError("a chart needs at least one point, and finite numbers")
    if len(series) > len(_COLOURS):
        raise InputError(f"a chart takes {len(_COLOURS)} series at most, got {len(series)}")
    top = math.inf if ceiling is None else ceiling
    xs = [x for line in series for x, _, _ in line.points]
    lows = [y - e for line in series for _, y, e in line.points]
    highs = [min(y + e, top) for line in series for _, y, e in line.points]
    if level is not None:
        lows.append(level[1])
        highs.append(level[1])
    x_ticks, y_ticks = ticks(min(xs), max(xs), 9), ticks(min(lows), max(highs), 7)
    if y_ticks[-1] > top:
        y_ticks = [tick for tick in y_ticks if tick <= top]
    frame = _Frame(size, (min(xs), max(xs)), (y_ticks[0], y_ticks[-1]), len(series) + bool(level))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(y_label)} against '
        f'{escape(x_label)}" width="{size[0]:g}" height="{size[1]:g}" '
        f'viewBox="0 0 {size[0]:g} {size[1]:g}" font-family="{SANS}" font-size="11.5" '
        f'fill="{_INK}">',
        *_axes(frame, x_ticks, y_ticks, x_label, y_label, unit),
    ]
    if level is not None:
        y = frame.y(level[1])
        parts.append(
            f'<path d="M{frame.left} {y:.1f}H{frame.right}" stroke="{_INK}" stroke-width="1.2" '
            'stroke-dasharray="6 4"/>'
        )
    for i, line in enumerate(series):
        # Error bars at the same x would hide each other.
        parts += _line(line, frame, _COLOURS[i], (i - (len(series) - 1) / 2) * 3.0, top, unit)
    labels = [(line.label, _COLOURS[i], "") for i, line in enumerate(series)]
    if level is not None:
        labels.append((level[0], _INK, ' stroke-dasharray="6 4"'))
    parts += _legend(labels, frame)
    return "\n".join([*parts, "</svg>"])


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``, about ``most`` of them."""
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
        low, high = low - span / 2, high + span / 2
    raw = span / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


class _Frame:
    """From values to pixels."""

    def __init__(
        self,
        size: tuple[float, float],
        xs: tuple[float, float],
        ys: tuple[float, float],
        labels: int,
    ) -> None:
        self.left, self.right = _LEFT, size[0] - _RIGHT
        self.top, self.bottom = 12.0 + _LEGEND * math.ceil(labels / 2), size[1] - _BOTTOM
        self.height = size[1]
        self.xs = xs if xs[1] > xs[0] else (xs[0] - 0.5, xs[0] + 0.5)
        self.ys = ys

    def x(self, value: float) -> float:
        """Pixel of a value on the horizontal axis; the outermost points stand off the frame."""
        low, high = self.xs
        return self.left + 14 + (value - low) / (high - low) * (self.right - self.left - 28)

    def y(self, value: float) -> float:
        """Pixel of a value on the vertical axis."""
        low, high = self.ys
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def _axes(
    frame: _Frame,
    x_ticks: list[float],
    y_ticks: list[float],
    x_label: str,
    y_label: str,
    unit: str,
) -> list[str]:
    parts = []
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(
            f'<path d="M{frame.left} {y:.1f}H{frame.right}" stroke="{_GRID}"/>'
            f'<text x="{frame.left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="{_DIM}">'
            f"{tick:g}{escape(unit)}</text>"
        )
    for tick in x_ticks:
        if not frame.xs[0] <= tick <= frame.xs[1]:
            continue
        x = frame.x(tick)
        parts.append(
            f'<path d="M{x:.1f} {frame.bottom}v5" stroke="{_DIM}"/>'
            f'<text x="{x:.1f}" y="{frame.bottom + 18:.1f}" text-anchor="middle" fill="{_DIM}">'
            f"{tick:g}{escape(unit)}</text>"
        )
    middle = (frame.top + frame.bottom) / 2
    parts.append(
        f'<path d="M{frame.left} {frame.bottom}H{frame.right}" stroke="{_DIM}"/>'
        f'<text x="{(frame.left + frame.right) / 2:.1f}" y="{frame.height - 10:.1f}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(16 {middle:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _line(
    line: Series, frame: _Frame, colour: str, shift: float, ceiling: float, unit: str
) -> list[str]:
    points = [(frame.x(x) + shift, frame.y(y)) for x, y, _ in line.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    parts = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for (px, py), (x, y, error) in zip(points, line.points, strict=True):
        title = f"{line.label}, {x:g}{unit}: {y:.1f} ± {error:.1f}{unit}"
        low, high = frame.y(y - error), frame.y(min(y + error, ceiling))
        bar = f'<path d="M{px:.1f} {low:.1f}V{high:.1f}m-3 0h6m-6 {low - high:.1f}h6" '
        parts.append(
            f"<g><title>{escape(title)}</title>"
            + (f'{bar}stroke="{colour}" fill="none"/>' if error > 0 else "")
            + f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.2" fill="{colour}" stroke="#fff"/></g>'
        )
    return parts


def _legend(labels: Sequence[tuple[str, str, str]], frame: _Frame) -> list[str]:
    """Two columns above the frame."""
    left = [width_of(label, 11.5) for label, _, _ in labels[::2]]
    second = frame.left + max(max(left, default=0.0) + 60, (frame.right - frame.left) / 2)
    parts = []
    for i, (label, colour, dash) in enumerate(labels):
        x, y = second if i % 2 else frame.left, 14.0 + _LEGEND * (i // 2)
        parts.append(
            f'<path d="M{x:.1f} {y}h24" stroke="{colour}" stroke-width="2"{dash}/>'
            + ("" if dash else f'<circle cx="{x + 12:.1f}" cy="{y}" r="3.2" fill="{colour}"/>')
            + f'<text x="{x + 32:.1f}" y="{y + 4}">{escape(label)}</text>'
        )
    return parts
