"""How cost grows with layer size, tiles, batch and depth: a flat unit cost is linear growth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from forward import inference, measure
from tables import RATIOS, Table, ratio_cells
from timing import compare, once
from workloads import Workload, linear, mlp

PLAIN = RATIOS[:3]
Cases = Sequence[tuple[Workload, int]]


def growth(budget: float) -> Iterator[Table]:
    """One table for each of the four; ``budget`` seconds a row."""
    sizes = [64 << i for i in range(7)]
    cases = [(Workload(f"Linear {n}×{n}, b64", linear(n, n, 64)), 64 * n * n) for n in sizes]
    yield _series("layer size", cases, "ps a MAC", 1e12, budget)
    yield _tiles(budget)
    batches = [1 << i for i in range(0, 13, 2)]
    cases = [(Workload(f"Linear 512×512, b{n}", linear(512, 512, n)), n) for n in batches]
    yield _series("batch", cases, "ns a row", 1e9, budget)
    yield _depth(budget)


def _series(title: str, cases: Cases, unit: str, scale: float, budget: float) -> Table:
    table = Table(f"Growth: {title}", ("forward", *PLAIN, unit))
    for workload, units in cases:
        found, _ = measure(workload, budget)
        table.add(workload.name, *ratio_cells(found), f"{scale * found.candidate / units:.4g}")
    return table


def _tiles(budget: float) -> Table:
    head = ("Linear 2048×2048, b64", *PLAIN, "ns a further conversion")
    table = Table("Growth: tiles", head)
    first = 0.0
    for n in (1 << i for i in range(7)):
        workload = Workload(f"{n}×{n} of {2048 // n}", linear(2048, 2048, 64), tile=2048 // n)
        found, _ = measure(workload, budget)
        first = first or found.candidate
        more = f"{1e9 * (found.candidate - first) / (64 * 2048 * (n - 1)):.2f}" if n > 1 else ""
        table.add(workload.name, *ratio_cells(found), more)
    return table


def _depth(budget: float) -> Table:
    head = ("Linear 256×256 with ReLU, b64", *PLAIN, "µs a layer", "compile ms a layer")
    table = Table("Growth: depth", head)
    for depth in (1, 2, 4, 8, 16, 32, 64):
        workload = Workload(f"depth {depth}", mlp(*[256] * (depth + 1), batch=64))
        model, x = workload.build()
        taken, compiled = once(lambda: workload.compile(model, x))  # noqa: B023
        found = compare(inference(model, x), inference(compiled, x), budget)
        units = f"{1e6 * found.candidate / depth:.1f}", f"{1e3 * taken / depth:.1f}"
        table.add(workload.name, *ratio_cells(found), *units)
    return table
