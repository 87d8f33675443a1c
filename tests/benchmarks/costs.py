"""What a compiled model costs beside its forward: time to make it, and memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from forward import inference
from tables import Table
from timing import elsewhere, once, seconds, trim_memory
from workloads import MODELS

from analogc import CompiledModel

STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def costs(budget: float) -> Iterator[Table]:
    """Seconds to compile, calibrate and program; MiB of weights, tiles and peaks."""
    table = Table(
        "Compile, program, calibrate",
        ("model", "compile s", "capture", "passes", "calibrate s", "program s", "sync ms"),
        "Compile is all of it, with the shares of capture and passes; calibration and programming "
        "are the rest. Sync finds that no weight changed.",
    )
    memory = Table(
        "Memory",
        ("model", "weights", "tiles", "kept", "compile peak", "digital peak", "analog peak"),
        "MiB. Kept is what compile adds to resident memory; peaks are of compile, and of a forward "
        "without gradients, above what was there before.",
    )
    for index, workload in enumerate(MODELS):
        found = elsewhere(measure_costs, index, budget)
        shares = (f"{100 * found[name]:.0f} %" for name in ("capture", "passes"))
        times = (f"{found[name]:.3f}" for name in ("calibrate", "program"))
        compiled = f"{found['compile']:.2f}"
        table.add(workload.name, compiled, *shares, *times, f"{1e3 * found['sync']:.3f}")
        names = ("weights", "tiles", "kept", "compile_peak", "digital_peak", "analog_peak")
        memory.add(workload.name, *(f"{found[name]:.1f}" for name in names))
    yield table
    yield memory


def measure_costs(index: int, budget: float) -> dict[str, float]:
    """All figures of ``MODELS[index]``: seconds, shares and MiB; for a process of its own."""
    small = MODELS[-1]
    model, x = small.build()
    inference(small.compile(model, x), x)()  # torch imports its compiler at the first one
    workload = MODELS[index]
    model, x = workload.build()
    inference(model, x)()
    digital_peak = peak(inference(model, x))
    trim()
    before = resident("VmRSS")
    made: list[tuple[float, CompiledModel]] = []
    start = time.perf_counter()
    compile_peak = peak(lambda: made.append(once(lambda: workload.compile(model, x))))
    wall = time.perf_counter() - start
    taken, compiled = made.pop()
    trim()
    kept = resident("VmRSS") - before
    inference(compiled, x)()
    analog_peak = peak(inference(compiled, x))
    capture, passes = compiled.compile_seconds
    arrays = [array for _, array, _ in compiled._live_weights()]
    held = sum(b.nbytes for a in arrays if a.programmed for b in a.programmed.buffers)
    return {
        "compile": taken,
        "capture": capture / wall,
        "passes": passes / wall,
        "calibrate": once(compiled.calibrate)[0],
        "program": seconds(compiled.program, budget / 2),
        "sync": seconds(compiled.sync, budget / 2),
        "weights": sum(p.nbytes for p in model.parameters()) / 2**20,
        "tiles": held / 2**20,
        "kept": kept,
        "compile_peak": compile_peak,
        "digital_peak": digital_peak,
        "analog_peak": analog_peak,
    }


def trim() -> None:
    """Free what can be freed, so that resident memory is memory in use."""
    gc.collect()
    trim_memory()


def resident(key: str) -> float:
    """MiB of resident memory now (VmRSS) or at its peak (VmHWM); nan where Linux does not tell."""
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) / 1024
    return float("nan")


def peak(call: Callable[[], object]) -> float:
    """MiB by which resident memory rose during the call, at most."""
    trim()
    try:
        REFS.write_text("5")  # the peak starts anew
    except OSError:
        return float("nan")
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before
