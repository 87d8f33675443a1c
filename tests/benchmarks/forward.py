"""Forward passes against the digital model: layers, weight formats, reference path, models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict

import torch
from tables import RATIOS, Table, ratio_cells
from timing import Call, Ratio, compare, elsewhere, seconds
from torch import Tensor, nn
from workloads import (
    CONV,
    DEPTHWISE,
    LARGE,
    LAYERS,
    LINEAR,
    MODELS,
    RESNET20,
    Workload,
    linear,
    mlp,
)

import analogc

MACHINES = {
    "": {},
    ", AVX2": {
        "ANALOGC_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    ", no AVX": {
        "ANALOGC_ISA": "baseline",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}
"""Environments that hold torch, its libraries and ours to what older machines have."""


def inference(model: nn.Module, x: Tensor) -> Call:
    """A forward pass without gradients."""

    def call() -> None:
        with torch.no_grad():
            model(x)

    return call


def measure(workload: Workload, budget: float, dac_bits: int = 8) -> tuple[Ratio, str]:
    """Ratio of the compiled forward to the digital one, and the kernels that it ran on."""
    model, x = workload.build()
    compiled = workload.compile(model, x, dac_bits)
    found = compare(inference(model, x), inference(compiled, x), budget)
    return found, compiled.backend.summary().partition(" on ")[2]


def layers(budget: float) -> Iterator[Table]:
    """Single layers, as compiled models."""
    yield _ratios("Layers", LAYERS, budget)


def models(budget: float) -> Iterator[Table]:
    """Whole models."""
    yield _ratios("Models", MODELS, budget)


def _ratios(title: str, workloads: Iterable[Workload], budget: float) -> Table:
    table = Table(title, ("forward", *RATIOS))
    for workload in workloads:
        found, _ = measure(workload, budget)
        table.add(workload.name, *ratio_cells(found, workload.limit))
    return table


BY_NAME = {w.name: w for w in (*LAYERS, *MODELS)}


def measure_named(
    names: list[str], budget: float, dac_bits: int
) -> list[tuple[dict[str, float], str]]:
    """``measure`` of several workloads, in plain values: for a process of its own."""
    found = [measure(BY_NAME[name], budget, dac_bits) for name in names]
    return [(asdict(ratio), kernels) for ratio, kernels in found]


def formats(budget: float) -> Iterator[Table]:
    """Weight formats: a DAC of more than 8 bits takes float32 weights."""
    note = (
        "The rows of older machines ask torch and its libraries to keep to their instruction sets, "
        "too; the targets are for AVX2 and better."
    )
    table = Table("Weight formats", ("forward", "kernel", *RATIOS), note)
    limits = {LINEAR.name: 1.25, CONV.name: 1.6, DEPTHWISE.name: None}
    for machine, env in MACHINES.items():
        for bits in (8, 10):
            rows = elsewhere(measure_named, list(limits), budget, bits, env=env)
            held = bits > 8 and env.get("ANALOGC_ISA") != "baseline"
            for (name, limit), (found, kernel) in zip(limits.items(), rows, strict=True):
                cells = ratio_cells(Ratio(**found), limit if held else None)
                table.add(f"{name}, {bits}-bit DAC{machine}", kernel, *cells)
    yield table


def reference(budget: float) -> Iterator[Table]:
    """The torch path, which is there without the native library, too."""
    table = Table("Torch reference path (ANALOGC_NATIVE=0)", ("forward", *RATIOS))
    limits = {LINEAR.name: 3.0, LARGE.name: 3.0, CONV.name: 5.0}
    names = [*limits, DEPTHWISE.name, RESNET20.name]
    rows = elsewhere(measure_named, names, budget, 8, env={"ANALOGC_NATIVE": "0"})
    for name, (found, _) in zip(names, rows, strict=True):
        table.add(name, *ratio_cells(Ratio(**found), limits.get(name)))
    yield table


def overhead(budget: float) -> Iterator[Table]:
    """What a compiled layer costs beside its arithmetic: layers that have next to none."""
    note = "µs a layer. The target, 15 µs, is for one layer more in a compiled model."
    head = ("layers of 16×16, batch 1", "digital", "analog", "difference", "target", "")
    table = Table("Dispatch overhead", head, note)

    def add(name: str, model: nn.Module, x: Tensor, layers: int, limit: float | None) -> None:
        compiled = analogc.compile(model.eval(), (x,), target="generic-8bit-noisy", seed=0)
        for suffix, wrap in (("", inference), (", gradients recorded", _recorded)):
            times = [seconds(wrap(m, x), budget / 2) * 1e6 / layers for m in (model, compiled)]
            cells = [f"{t:.1f}" for t in (*times, times[1] - times[0])]
            if limit is not None and not suffix:
                cells += [f"≤ {limit:g}", "met" if times[1] <= limit else "NOT MET"]
            table.add(name + suffix, *cells)

    add("a model of one", *linear(16, 16, 1)(), 1, None)
    chain = nn.Sequential(*(nn.Linear(16, 16) for _ in range(32)))
    add("a chain of 32", chain, torch.randn(1, 16), 32, 15.0)
    model, x = mlp(784, 512, 512, 10, batch=1)()
    add("MLP 784-512-512-10", model, x, 3, None)
    yield table


def _recorded(model: nn.Module, x: Tensor) -> Call:
    return lambda: model(x)
