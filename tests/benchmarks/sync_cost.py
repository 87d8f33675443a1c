"""What weights that cannot fall out of sync cost: metadata access, the check, programming.

    python tests/benchmarks/sync_cost.py [--layers 12] [--width 768] [--length 128] [--repeat 7]

(a) A few attributes of a compiled parameter next to those of a plain one. (b) The check of an
untouched encoder of BERT-base size against its batch-1 forward: with the kernel's page tracking,
and with fingerprints only (where there is no tracking, or memory is shared with other processes).
(c) The time to program it. One thread, CPU time of the thread, best of several; nothing is
asserted.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from workloads import EncoderLayer

import analogc
from analogc.compiler.model import CompiledModel
from analogc.runtime import stamp, tiles, watch

Call = Callable[[], object]
METADATA: dict[str, Callable[[Tensor], object]] = {
    "size()": lambda w: w.size(),
    "numel()": lambda w: w.numel(),
    "shape": lambda w: w.shape,
    "dtype": lambda w: w.dtype,
    "device": lambda w: w.device,
    "data": lambda w: w.data,
    "[0, 0]": lambda w: w[0, 0],
}


def best(call: Call, repeat: int, number: int = 1) -> float:
    """Least seconds of the thread's CPU time that one call took."""
    found = []
    for _ in range(repeat):
        start = time.thread_time()
        for _ in range(number):
            call()
        found.append((time.thread_time() - start) / number)
    return min(found)


def table(title: str, rows: list[tuple[str, ...]]) -> None:
    """Print ``rows``, the first being the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        first, *rest = row
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        print(f"  {first.ljust(widths[0])}  {'  '.join(cells)}", flush=True)


def metadata(repeat: int) -> None:
    """(a) Attributes of a compiled weight of 2048 x 2048."""
    model, x = nn.Sequential(nn.Linear(2048, 2048)), torch.randn(1, 2048)
    plain = nn.Parameter(torch.randn(2048, 2048))
    compiled = analogc.compile(model, (x,), seed=0)
    weight = compiled.get_parameter("0.weight")
    rows: list[tuple[str, ...]] = [("", "plain ns", "compiled ns")]
    for name, read in METADATA.items():
        times = [best(partial(read, tensor), repeat, 20_000) for tensor in (plain, weight)]
        rows.append((name, *(f"{1e9 * t:.0f}" for t in times)))
    handle = compiled.weights["0"]
    rows.append(("weights[name].get()", "", f"{1e9 * best(handle.get, repeat, 2_000):.0f}"))
    table("(a) metadata, 2048 x 2048", rows)


def _checks(compiled: CompiledModel) -> Call:
    """The tests that a forward makes, without anything around them."""
    pairs = [(array, weight) for _, array, weight in compiled._live_weights()]

    def call() -> None:
        assert all(array.is_current(weight) for array, weight in pairs)

    return call


def check(options: argparse.Namespace, model: nn.Module, x: Tensor) -> None:
    """(b) and (c) on an encoder."""
    size = sum(p.nbytes for p in model.parameters()) / 2**20
    start = time.thread_time()
    compiled = analogc.compile(model, (x,), seed=0)
    seconds = time.thread_time() - start
    assert isinstance(compiled, CompiledModel)
    weights = list(compiled._live_weights())
    programmed = sum(w.nbytes for _, _, w in weights) / 2**20

    def forward(of: nn.Module) -> Call:
        def call() -> None:
            with torch.no_grad():
                of(x)

        return call

    for _ in range(3):  # a weight that stands still is watched from its second look on
        compiled.sync()
    digital = best(forward(model), options.repeat)
    rows: list[tuple[str, ...]] = [
        ("", "ms", "of the analog forward", "of the digital forward", "GiB/s")
    ]

    def add(name: str, seconds: float, analog: float, rate: bool = True) -> None:
        cells = f"{100 * seconds / analog:.2f} %", f"{100 * seconds / digital:.2f} %"
        speed = f"{programmed / 1024 / seconds:.1f}" if rate else ""
        rows.append((name, f"{1e3 * seconds:.3f}", *cells, speed))

    tracked = watch.page_watch() is not None
    analog = best(forward(compiled), options.repeat)
    how = "page tracking" if tracked else "no page tracking here"
    add(f"forward, {how}", analog, analog, False)
    add("  TileArray.is_current of all", best(_checks(compiled), options.repeat, 20), analog)
    add("  compiled.sync()", best(compiled.sync, options.repeat, 20), analog)
    if tracked:
        stamps: Any = stamp
        real, stamps.page_watch = stamps.page_watch, lambda: None
        try:
            slow = best(forward(compiled), options.repeat)
            add("forward, fingerprints only", slow, slow, False)
            add("  TileArray.is_current of all", best(_checks(compiled), options.repeat), slow)
            add("  compiled.sync()", best(compiled.sync, options.repeat), slow)
        finally:
            stamps.page_watch = real
    add("digital forward", digital, analog, False)
    table(
        f"(b) check of {len(weights)} untouched weights, {programmed:.0f} MiB, "
        f"batch 1, length {x.shape[1]}",
        rows,
    )

    def touch() -> None:
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(-1.001)

    def touch_and_sync() -> None:
        touch()
        compiled.sync()

    again = best(touch_and_sync, max(2, options.repeat // 2))
    writing = best(touch, 3)
    one = best(lambda: tiles.program(weights[0][2], weights[0][1].spec, _key()), options.repeat)
    table(
        "(c) programming",
        [
            ("", "ms"),
            ("compile: capture, passes, calibration, programming", f"{1e3 * seconds:.0f}"),
            ("compiled.sync() after a write to every weight", f"{1e3 * (again - writing):.1f}"),
            ("  one weight of " + " x ".join(map(str, weights[0][2].shape)), f"{1e3 * one:.2f}"),
        ],
    )
    print(f"\n  model {size:.0f} MiB, torch {torch.__version__}, {platform.machine()}")


def _key() -> Any:
    from analogc.runtime.noise import NoiseKey

    return NoiseKey(0, "", 0)


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    metadata(options.repeat)
    width = options.width
    layers = [EncoderLayer(width, width // 64, 4 * width) for _ in range(options.layers)]
    check(options, nn.Sequential(*layers).eval(), torch.randn(1, options.length, width))


if __name__ == "__main__":
    main()
