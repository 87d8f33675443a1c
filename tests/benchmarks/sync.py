"""What weights that cannot fall out of sync cost: metadata access, and the check before a forward.

The check runs on an untouched encoder of BERT-base size at batch 1: with the kernel's page
tracking, and with fingerprints only (where there is no tracking, or memory is shared with other
processes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from forward import inference
from tables import Table
from timing import Call, seconds
from torch import Tensor, nn
from workloads import encoder

import analogc
from analogc.compiler.model import CompiledModel
from analogc.runtime import stamp, watch

METADATA: dict[str, Callable[[Tensor], object]] = {
    "size()": lambda w: w.size(),
    "numel()": lambda w: w.numel(),
    "shape": lambda w: w.shape,
    "dtype": lambda w: w.dtype,
    "device": lambda w: w.device,
    "data": lambda w: w.data,
    "[0, 0]": lambda w: w[0, 0],
}


def sync(budget: float) -> Iterator[Table]:
    """Both tables; ``budget`` seconds a figure at most."""
    yield _metadata(budget / 4)
    yield _check(budget)


def _metadata(budget: float) -> Table:
    model, x = nn.Sequential(nn.Linear(2048, 2048)), torch.randn(1, 2048)
    plain = nn.Parameter(torch.randn(2048, 2048))
    compiled = analogc.compile(model, (x,), seed=0)
    weight = compiled.get_parameter("0.weight")
    table = Table("Sync: metadata of a weight", ("", "plain ns", "compiled ns"))
    for name, read in METADATA.items():
        times = [seconds(partial(read, tensor), budget) for tensor in (plain, weight)]
        table.add(name, *(f"{1e9 * t:.0f}" for t in times))
    handle = compiled.weights["0"]
    table.add("weights[name].get()", "", f"{1e9 * seconds(handle.get, budget):.0f}")
    return table


def _check(budget: float) -> Table:
    model, x = encoder(12, 768, 12, 1, 128)()
    compiled = analogc.compile(model.eval(), (x,), target="generic-8bit-noisy", seed=0)
    for _ in range(3):  # a weight that stands still is watched from its second look on
        compiled.sync()
    head = ("BERT-base-sized encoder, b1 s128", "ms", "of the analog", "of the digital", "GiB/s")
    table = Table("Sync: check of an untouched model", head)
    digital = seconds(inference(model, x), budget)
    _rows(
        table,
        "page tracking" if watch.page_watch() else "no tracking here",
        compiled,
        x,
        budget,
        digital,
    )
    if watch.page_watch() is not None:
        # Old questions ask the one, new ones are made by the other.
        places: list[Any] = [stamp, watch]
        real = watch.page_watch
        for place in places:
            place.page_watch = lambda: None
        try:
            _rows(table, "fingerprints only", compiled, x, budget, digital)
        finally:
            for place in places:
                place.page_watch = real
    return table


def _rows(
    table: Table, how: str, compiled: CompiledModel, x: Tensor, budget: float, digital: float
) -> None:
    live = [(array, weight) for _, array, weight in compiled._live_weights()]
    size = sum(weight.nbytes for _, weight in live) / 2**30

    def arrays() -> None:
        assert all(array.is_current(weight) for array, weight in live)

    analog = seconds(inference(compiled, x), budget)
    calls: dict[str, Call] = {"is_current of all": arrays, "compiled.sync()": compiled.sync}
    table.add(f"{how}: forward", f"{1e3 * analog:.3f}", "", f"{100 * analog / digital:.1f} %")
    for name, call in calls.items():
        taken = seconds(call, budget / 2)
        shares = f"{100 * taken / analog:.2f} %", f"{100 * taken / digital:.2f} %"
        table.add(f"{how}: {name}", f"{1e3 * taken:.3f}", *shares, f"{size / taken:.1f}")
