"""What the ``analog`` operations compute, in linalg, tensor, arith and math.

Each function builds one operation of the decomposition in ``runtime/reference.py``, in the same
order of rounding: equal sums give equal bits. A NaN stays one, and infinities clip.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch_mlir import ir
from torch_mlir.dialects import arith, math

from . import build
from .build import ZERO, Map, Size, Value


def _all_but_last(dims: int) -> list[int]:
    return [*range(dims - 1), ZERO]


def cast(x: Value, kind: object) -> Value:
    """``x`` in the float type ``kind``, rounded half to even."""
    if build.element(x) == kind:
        return x
    wider = kind.width > build.element(x).width  # type: ignore[attr-defined]
    change = arith.ExtFOp if wider else arith.TruncFOp
    every = range(build.rank(x))
    return build.pointwise([x], [every], build.sizes(x), kind, lambda a: change(kind, a).result)


def compute_type(weight: Value) -> object:
    """Float type of the simulation: the weight's, and at least float32."""
    kind = build.element(weight)
    return kind if kind.width >= 32 else ir.F32Type.get()


def _largest(x: Value, kept: Sequence[int], extents: list[Size]) -> Value:
    """Abs-max over the dims that are not ``kept``; 1 where that is zero."""
    kind = build.element(x)
    dims = build.rank(x)
    found = build.generic(
        [x],
        [range(dims)],
        build.filled(extents, kind, 0.0),
        kept,
        dims,
        lambda a, most: arith.MaximumFOp(most, math.AbsFOp(a).result).result,
    )
    return _ones_for_zeros(found)


def _ones_for_zeros(x: Value) -> Value:
    kind = build.element(x)
    zero, one = build.number(0.0, kind), build.number(1.0, kind)

    def body(a: Value) -> Value:
        positive = arith.CmpFOp(arith.CmpFPredicate.OGT, a, zero).result
        return arith.SelectOp(positive, a, one).result

    every = range(build.rank(x))
    return build.pointwise([x], [every], build.sizes(x), kind, body)


def peak(x: Value) -> Value:
    """Abs-max ``[..., 1]`` of each vector of ``x [..., K]``; 1 where it is zero or NaN."""
    dims = build.rank(x)
    extents = build.sizes(x)[:-1]
    lead = list(range(dims - 1))
    most = _largest(x, lead, extents)
    return build.pointwise([most], [lead], [*extents, 1], build.element(x), lambda a: a)


def scale(weight: Value, kind: str) -> Value:
    """Weight scale ``[N]`` of ``weight [N, ...]``: of each column, or the tensor's."""
    columns = build.dim(weight, 0)
    if kind == "column":
        return _largest(weight, [0], [columns])
    whole = _largest(weight, [], [])
    return build.pointwise([whole], [[]], [columns], build.element(weight), lambda a: a)


def normalised(weight: Value, by: Value) -> Value:
    """``weight [N, ...] / by [N]``."""
    return build.pointwise(
        [weight, by],
        [range(build.rank(weight)), [0]],
        build.sizes(weight),
        build.element(weight),
        lambda w, s: arith.DivFOp(w, s).result,
    )


def _quantise(value: Value, full: Value, levels: Value, low: Value) -> Value:
    """Code of a scalar: an integer in ``[low, levels]``."""
    steps = arith.MulFOp(value, arith.DivFOp(levels, full).result).result
    code = math.RoundEvenOp(steps).result
    return arith.MinimumFOp(arith.MaximumFOp(code, low).result, levels).result


def dac(x: Value, full: Value, bits: int) -> Value:
    """Codes in [-1, 1] of ``x``; ``full`` is a scalar or ``[..., 1]``."""
    kind = build.element(x)
    count = (1 << (bits - 1)) - 1
    levels, low = build.number(count, kind), build.number(-count, kind)
    dims = build.rank(x)
    full_map = _all_but_last(dims) if build.rank(full) else []
    return build.pointwise(
        [x, full],
        [range(dims), full_map],
        build.sizes(x),
        kind,
        lambda a, r: arith.DivFOp(_quantise(a, r, levels, low), levels).result,
    )


def adc(sums: Value, full: Value, bits: int, columns: Map) -> Value:
    """Levels of partial sums; ``full`` is a scalar or lies along the dims ``columns``."""
    kind = build.element(sums)
    count = (1 << (bits - 1)) - 1
    levels, low = build.number(count, kind), build.number(-count, kind)
    dims = build.rank(sums)

    def body(a: Value, r: Value) -> Value:
        step = arith.DivFOp(r, levels).result
        return arith.MulFOp(_quantise(a, r, levels, low), step).result

    full_map = columns if build.rank(full) else []
    return build.pointwise([sums, full], [range(dims), full_map], build.sizes(sums), kind, body)


def accumulate(
    parts: Sequence[Value],
    units: Sequence[Value],
    by: Value | None,
    bias: Value | None,
    columns: Map,
) -> Value:
    """``sum_r parts_r · (units_r · by) + bias``; where ``units`` or ``by`` are missing they are 1.

    ``by`` and ``bias`` lie along the dims ``columns``; a unit is a scalar or ``[..., 1]``.
    """
    dims = build.rank(parts[0])
    every = list(range(dims))
    unit_maps = [_all_but_last(dims) if build.rank(unit) else [] for unit in units]
    digital = [value for value in (by, bias) if value is not None]
    inputs = [*parts, *units, *digital]
    maps = [*[every] * len(parts), *unit_maps, *[columns] * len(digital)]

    def body(*scalars: Value) -> Value:
        left = list(scalars)
        held = left[: len(parts)]
        gains = left[len(parts) : len(parts) + len(units)]
        rest = left[len(parts) + len(units) :]
        factor = rest.pop(0) if by is not None else None
        total = None
        for r, part in enumerate(held):
            if gains and factor is not None:
                part = arith.MulFOp(part, arith.MulFOp(gains[r], factor).result).result
            elif gains or factor is not None:
                part = arith.MulFOp(part, gains[r] if gains else factor).result
            total = part if total is None else arith.AddFOp(total, part).result
        return arith.AddFOp(total, rest[0]).result if rest else total

    return build.pointwise(inputs, maps, build.sizes(parts[0]), build.element(parts[0]), body)


def product(x: Value, weight: Value) -> Value:
    """``x [..., K]`` times ``weight [N, K]``: ``[..., N]``."""
    lead = build.rank(x) - 1
    columns, inputs = lead, lead + 1
    return build.contract(
        x, [*range(lead), inputs],
        weight, [columns, inputs],
        [*build.sizes(x)[:-1], build.dim(weight, 0)], [*range(lead), columns],
        lead + 2,
    )  # fmt: skip
