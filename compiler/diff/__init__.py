"""What differs between two compiled models: graph, mapping, settings, ranges, weights, tiles."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ...runtime.converters import is_number
from ...runtime.errors import InputError
from ..archive import load
from ..model import CompiledModel
from .graphs import Change, GraphDiff, NodeDiff, diff_texts
from .models import (
    changed,
    diff_all_graphs,
    diff_ranges,
    diff_signatures,
    diff_tiles,
    diff_weights,
    settings_of,
)
from .report import Diff
from .values import RangeDiff, TensorDiff, Tolerance, diff_tensors

__all__ = [
    "Change",
    "Diff",
    "GraphDiff",
    "NodeDiff",
    "RangeDiff",
    "TensorDiff",
    "diff",
    "diff_tensors",
    "diff_texts",
]


def diff(
    a: CompiledModel | str | Path,
    b: CompiledModel | str | Path,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    allow_ops: Collection[str] = (),
) -> Diff:
    """What differs between two compiled models.

    Nodes are matched by what they compute and what is done with it, not by name alone. Source lines
    do not count. Nothing in a file is executed.

    Args:
        a: a compiled model, or a file that ``CompiledModel.save`` wrote.
        b: as ``a``.
        rtol: difference of numbers that is allowed, as a share of the largest value of their
            tensor in ``a`` (of a converter range: of itself).
        atol: difference that is allowed, besides.
        allow_ops: namespaces of custom operators that files may use, as for ``analogc.load``.

    Returns:
        A Diff: true if anything differs, and readable by ``print``.

    Raises:
        InputError: no such file, no compiled model, or a tolerance below 0.
        FormatError: a file is damaged or not one of analogc's.
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not is_number(value) or value < 0:
            raise InputError(f"{name} must be a finite number >= 0, got {value!r}")
    one, other = _model(a, allow_ops), _model(b, allow_ops)
    tolerance = Tolerance(float(rtol), float(atol))
    graphs = diff_all_graphs(one, other)
    return Diff(
        a=str(a) if isinstance(a, str | Path) else "a",
        b=str(b) if isinstance(b, str | Path) else "b",
        settings=changed(settings_of(one), settings_of(other)),
        signature=diff_signatures(one, other),
        graphs=graphs,
        ranges=diff_ranges(one, other, graphs, tolerance),
        weights=diff_weights(one, other, graphs, tolerance),
        tiles=diff_tiles(one, other, graphs, tolerance),
    )


def _model(value: CompiledModel | str | Path, allow_ops: Collection[str]) -> CompiledModel:
    if isinstance(value, str | Path):
        return load(value, allow_ops=allow_ops)
    if isinstance(value, CompiledModel):
        return value
    raise InputError(
        f"diff() takes compiled models or files, got {type(value).__name__}",
        fix="analogc.diff(analogc.compile(...), 'model.analogc')",
    )
