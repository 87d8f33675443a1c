"""What compiling costs beside torch.export: seconds, growth with the number of nodes, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from costs import peak
from tables import Table
from timing import elsewhere, once
from torch import nn
from workloads import ResNet50, Workload, encoder, mlp

import analogc

LIMIT = 10.0
"""Seconds beyond torch.export that a model of ResNet-50's or BERT-base's size may take."""
MEMORY = 1.2
"""Peak memory of an ideal compile, as a multiple of the model's."""
LARGE = (
    Workload("ResNet-50, 224×224, b1", lambda: (ResNet50(), torch.randn(1, 3, 224, 224))),
    Workload("Encoder of BERT-base size, b1 s128", encoder(12, 768, 12, 1, 128)),
)
DEPTHS = (1, 2, 4, 8, 16, 32, 64)


def convs(depth: int) -> Workload:
    """Convolutions with batch norm and ReLU, which passes fold."""

    def make() -> tuple[nn.Module, torch.Tensor]:
        blocks = (
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
            for _ in range(depth)
        )
        return nn.Sequential(*blocks), torch.randn(1, 8, 8, 8)

    return Workload(f"{depth} convolutions", make)


def compiling(budget: float) -> Iterator[Table]:
    """Tables of time, of growth, and of memory; each figure is the least of ``repeats``."""
    repeats = 3 if budget >= 1 else 1
    yield _seconds(repeats)
    yield _growth(repeats, DEPTHS if budget >= 1 else DEPTHS[:3])
    yield _memory(500 if budget >= 1 else 50)


def _seconds(repeats: int) -> Table:
    table = Table(
        "Compile: beyond torch.export",
        ("model", "target", "export s", "passes s", "compile s", "beyond export", "target s", ""),
        "Compile is all of analogc.compile: capture by torch.export, passes, calibration with the "
        "example input, and programming. Passes are wall time.",
    )
    _warm_up()
    for workload in LARGE:
        for target in ("ideal", "generic-8bit"):
            export, compiled, passes = (min(column) for column in zip(
                *(measure_compile(workload, target) for _ in range(repeats)), strict=True
            ))  # fmt: skip
            beyond = compiled - export
            table.add(
                workload.name, target, f"{export:.2f}", f"{passes:.2f}", f"{compiled:.2f}",
                f"{beyond:.2f}", f"≤ {LIMIT:g}", "met" if beyond <= LIMIT else "NOT MET",
            )  # fmt: skip
    return table


def measure_compile(workload: Workload, target: str) -> tuple[float, float, float]:
    """Seconds of torch.export, of all of compile, and of the passes."""
    model, x = workload.build()
    export, _ = once(lambda: torch.export.export(model, (x,)))
    taken, compiled = once(lambda: analogc.compile(model, (x,), target=target))
    return export, taken, compiled.compile_seconds[1]


def _growth(repeats: int, depths: Sequence[int]) -> Table:
    table = Table(
        "Compile: growth with depth",
        ("model", *(f"{depth}" for depth in depths), "exponent", "of export"),
        "Milliseconds of compile (generic-8bit) for each layer. Exponents of the time over the "
        "depth, of compile and of torch.export alone, by least squares from the second depth on.",
    )
    _warm_up()
    makes: dict[str, Callable[[int], Workload]] = {
        "convolutions with batch norm": convs,
        "encoder layers": lambda n: Workload(f"{n} layers", encoder(n, 64, 4, 1, 16)),
        "linear layers": lambda n: Workload(f"{n} layers", mlp(*[64] * (n + 1), batch=4)),
    }
    for name, make in makes.items():
        measure_compile(make(1), "generic-8bit")
        exports, totals = [], []
        for depth in depths:
            runs = [measure_compile(make(depth), "generic-8bit") for _ in range(repeats)]
            exports.append(min(run[0] for run in runs))
            totals.append(min(run[1] for run in runs))
        cells = (f"{1e3 * t / depth:.1f}" for t, depth in zip(totals, depths, strict=True))
        fits = (f"{exponent(depths[1:], times[1:]):.2f}" for times in (totals, exports))
        table.add(name, *cells, *fits)
    return table


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Slope of the logarithms: 1 is linear growth."""
    x, y = [math.log(s) for s in sizes], [math.log(t) for t in times]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return above / sum((a - mx) ** 2 for a in x)


def _memory(size: int) -> Table:
    table = Table(
        "Compile: memory",
        ("model", "weights MiB", "peak MiB", "peak of weights", "target", ""),
        "Ideal target, in a process of its own. The peak is that of compile, with the model that "
        "was there before.",
    )
    found = elsewhere(measure_memory, size)
    share = 1 + found["rise"] / found["weights"]
    mark = "met" if share <= MEMORY else "NOT MET"
    peak_size = f"{found['weights'] + found['rise']:.0f}"
    cells = f"{found['weights']:.0f}", peak_size, f"{share:.3f}", f"≤ {MEMORY}", mark
    table.add("linear layers of 2048×2048", *cells)
    return table


def measure_memory(size: int) -> dict[str, float]:
    """MiB of the weights, and by which resident memory rose in an ideal compile of them."""
    _warm_up()
    depth = max(1, size // 16)
    model, x = Workload("", mlp(*[2048] * (depth + 1), batch=1)).build()
    model(x)
    rise = peak(lambda: analogc.compile(model, (x,), target="ideal"))
    return {"weights": sum(p.nbytes for p in model.parameters()) / 2**20, "rise": rise}


def _warm_up() -> None:
    """torch imports much of itself at the first capture."""
    analogc.compile(nn.Linear(2, 2), (torch.randn(1, 2),))
