"""Difference of tensors: how many values, how much, and where the most."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..printing import Symbols, type_text
from .graphs import Change


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A value is equal if it is off by at most ``atol + rtol * (largest value of its tensor)``.

    Of the whole tensor, since what a tile gets wrong is a share of its full scale.
    """

    rtol: float = 0.0
    atol: float = 0.0


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """One tensor that differs."""

    name: str
    a: str | None
    """Type and shape, as printed; None: only in ``b``."""
    b: str | None
    values: int = 0
    """Number of values."""
    different: int = 0
    """Number of values that differ by more than the tolerance."""
    max_abs: float | None = None
    """Largest difference of finite values; None: no values were compared, or they are sealed."""
    max_rel: float | None = None
    """``max_abs`` as a share of the largest value of ``a``."""
    where: tuple[int, ...] = ()
    """Index of the largest difference."""
    nan: tuple[int, int] = (0, 0)
    """Number of NaNs in ``a`` and ``b``."""
    changes: tuple[Change, ...] = ()
    """What differs besides values: ``requires_grad``, the state of tiles."""

    @property
    def size(self) -> float:
        """For sorting: the relative difference; infinite for what cannot be compared."""
        if self.a != self.b or self.nan[0] != self.nan[1]:
            return math.inf
        if self.max_rel is None:
            return -1.0 if self.different == 0 else math.inf
        return self.max_rel

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("max_abs", "max_rel"):
            fields[name] = finite(fields[name])
        return {
            **fields,
            "where": list(self.where),
            "nan": list(self.nan),
            "changes": [change.to_dict() for change in self.changes],
        }

    def __str__(self) -> str:
        parts = []
        if (self.a is None) != (self.b is None):
            parts.append(f"only in {'b' if self.a is None else 'a'}: {self.b or self.a}")
        elif self.a != self.b:
            parts.append(f"{self.a} → {self.b}")
        if self.different:
            parts.append(f"{self.different} of {self.values} values")
            if self.max_abs is not None:
                where = f" at [{', '.join(map(str, self.where))}]" if self.where else ""
                parts.append(f"by at most {self.max_abs:.3g} ({_share(self.max_rel)}){where}")
        if self.nan[0] != self.nan[1]:
            parts.append(f"NaNs: {self.nan[0]} → {self.nan[1]}")
        return "; ".join([", ".join(parts)] * bool(parts) + list(map(str, self.changes)))


def finite(value: float | None) -> float | str | None:
    """``value`` as JSON takes it: text if it is infinite or NaN."""
    return value if value is None or math.isfinite(value) else str(value)


def _share(share: float | None) -> str:
    if share is None or not math.isfinite(share):
        return "of zeros"
    return f"{100 * share:.3g} % of the largest"


def compare(
    name: str,
    a: Tensor | None,
    b: Tensor | None,
    tolerance: Tolerance,
    changes: tuple[Change, ...] = (),
) -> TensorDiff | None:
    """Difference of two tensors; None if they are equal."""
    kinds = _kind(a), _kind(b)
    if a is None and b is None:
        return TensorDiff(name, None, None, changes=changes) if changes else None
    if a is None or b is None or a.shape != b.shape:
        return TensorDiff(name, *kinds, changes=changes)
    if a.is_meta or b.is_meta:
        if a.is_meta != b.is_meta:
            changes = (*changes, Change("device", str(a.device), str(b.device)))
        same = kinds[0] == kinds[1] and not changes
        return None if same else TensorDiff(name, *kinds, changes=changes)
    x, y = (t.detach().cpu() for t in (a, b))
    if kinds[0] == kinds[1] and not changes and torch.equal(x, y):
        return None
    wide = torch.complex128 if x.is_complex() or y.is_complex() else torch.float64
    u, v = x.to(wide), y.to(wide)
    same_values = (x == y) | (u.isnan() & v.isnan())
    # Infinite where a value is infinite or NaN on one side only.
    off = (v - u).abs().nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(same_values, 0)
    largest = _largest(u.abs())
    if wide.is_complex or x.is_floating_point() or y.is_floating_point():
        same_values |= off <= tolerance.atol + tolerance.rtol * largest
    different = int((~same_values).sum())
    nan = (int(u.isnan().sum()), int(v.isnan().sum()))
    if not different:
        same = kinds[0] == kinds[1] and not changes
        return None if same else TensorDiff(name, *kinds, x.numel(), nan=nan, changes=changes)
    most = _largest(off)
    share = most / largest if largest else math.inf if most else 0.0
    place = torch.unravel_index(off.reshape(-1).argmax(), x.shape) if x.dim() else ()
    where = tuple(map(int, place))
    return TensorDiff(name, *kinds, x.numel(), different, most, share, where, nan, changes)


def _kind(value: Tensor | None) -> str | None:
    return None if value is None else type_text(value, Symbols())


def _largest(values: Tensor) -> float:
    """Largest finite one of ``values``, which are not negative; 0 if there is none."""
    known = values[values.isfinite()]
    return float(known.max()) if known.numel() else 0.0


def diff_tensors(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], rtol: float = 0.0, atol: float = 0.0
) -> tuple[TensorDiff, ...]:
    """Tensors that differ, those that differ most first.

    Args:
        a: tensors by name.
        b: as ``a``.
        rtol: difference that is allowed, as a share of a tensor's largest value in ``a``.
        atol: difference that is allowed, besides.
    """
    tolerance = Tolerance(rtol, atol)
    found = (compare(name, a.get(name), b.get(name), tolerance) for name in dict.fromkeys((*a, *b)))
    return biggest_first(diff for diff in found if diff is not None)


def biggest_first(found: Any) -> tuple[TensorDiff, ...]:
    """Sorted by relative difference; equal ones stay in order."""
    return tuple(sorted(found, key=lambda diff: -diff.size))


@dataclass(frozen=True, slots=True)
class RangeDiff:
    """A converter range that differs."""

    layer: str
    converter: str
    """``DAC`` or ``ADC``."""
    block: int
    """Row block."""
    a: float
    """Range; with a range for each column, that of the column that changed most."""
    b: float
    columns: int = 1
    """Number of columns that changed; with ranges by slice or pulse, of ranges."""
    unit: str = "columns"
    """What ``columns`` counts."""

    @property
    def change(self) -> float:
        """``b / a - 1``; infinite if either is not known."""
        if not (math.isfinite(self.a) and math.isfinite(self.b)) or self.a == 0:
            return math.inf
        return self.b / self.a - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**fields, "a": finite(self.a), "b": finite(self.b), "change": finite(self.change)}

    def __str__(self) -> str:
        columns = f" ({self.columns} {self.unit})" if self.columns > 1 else ""
        change = f"{100 * self.change:+.3g} %" if math.isfinite(self.change) else "not comparable"
        return (
            f"{self.converter} block {self.block}: {self.a:.6g} → {self.b:.6g}, {change}{columns}"
        )


def compare_ranges(
    layer: str, converter: str, a: Tensor | None, b: Tensor | None, tolerance: Tolerance
) -> list[RangeDiff]:
    """Row blocks whose ranges differ; shapes are those of ``LayerSpec.adc_shape``.

    Here the tolerance is a share of each range. What has another shape is another kind of range,
    which the layer's settings or tiles tell of.
    """
    if a is None or b is None or a.shape != b.shape:
        return []
    x, y = (t.detach().cpu().double().reshape(t.shape[0], -1) for t in (a, b))
    same = (x - y).abs() <= tolerance.atol + tolerance.rtol * x.abs()
    same |= (x == y) | (x.isnan() & y.isnan())
    found = []
    for r in range(x.shape[0]):
        columns = (~same[r]).nonzero().flatten()
        if columns.numel():
            change = ((y[r] - x[r]).abs() / x[r].abs())[columns].nan_to_num(nan=math.inf)
            k = int(columns[int(change.argmax())])
            unit = "columns" if a.ndim <= 2 else "ranges"
            ends = float(x[r, k]), float(y[r, k])
            found.append(RangeDiff(layer, converter, r, *ends, columns.numel(), unit))
    return found
