"""How the benchmarks measure: interleaved calls and ratios, so that a busy machine hardly matters.

With one thread the clock is the thread's CPU time, which does not count what other processes take,
and a ratio is the median over pairs. With more it is wall time, where only the quick calls tell
what the code costs: a low percentile of each, which needs a quiet machine.

Memory that was freed is kept by the process. Otherwise the figures of layers with outputs above
128 KiB are those of the kernel's page faults, or not, depending on what ran before: 0.5 ms or 5 ms
for the same depthwise convolution.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], object]

SAMPLE = 2e-4
"""Seconds that a sample takes at least: shorter calls are repeated within it."""
LEAST = 5
"""Samples taken at least, unless they take more than four times the budget."""
LOW = 0.05
"""The percentile of wall times."""


@dataclass(frozen=True)
class Ratio:
    """Two calls compared: seconds of each, and the second over the first."""

    reference: float
    candidate: float
    ratio: float


def clock() -> Callable[[], float]:
    """Thread CPU time with one thread, wall time with more."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def keep_memory() -> None:
    """Have the allocator keep what is freed; does nothing where it is not glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


def trim_memory() -> None:
    """Give back to the system what the allocator keeps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def compare(reference: Call, candidate: Call, budget: float = 1.0) -> Ratio:
    """Measure both calls for ``budget`` seconds, in turn.

    Each sample of the candidate lies between two of the reference and is divided by their mean.
    """
    first, second = _Sampler(reference), _Sampler(candidate)
    references = [first.sample()]
    candidates: list[float] = []
    go = _until(budget)
    while go(len(candidates)):
        candidates.append(second.sample())
        references.append(first.sample())
    if torch.get_num_threads() > 1:
        low, high = _low(references), _low(candidates)
        return Ratio(low, high, high / low)
    means = [(a + b) / 2 for a, b in zip(references, references[1:], strict=False)]
    pairs = [c / r for c, r in zip(candidates, means, strict=True)]
    return Ratio(
        statistics.median(references), statistics.median(candidates), statistics.median(pairs)
    )


def seconds(call: Call, budget: float = 0.5) -> float:
    """What one call takes: median of CPU time, low percentile of wall time."""
    sampler = _Sampler(call)
    found: list[float] = []
    go = _until(budget)
    while go(len(found)):
        found.append(sampler.sample())
    return statistics.median(found) if torch.get_num_threads() == 1 else _low(found)


def once(call: Callable[[], Any]) -> tuple[float, Any]:
    """What a call that cannot be repeated takes, and its result."""
    now = clock()
    start = now()
    result = call()
    return now() - start, result


def elsewhere(
    function: Callable[..., Any], *args: Any, env: Mapping[str, str] | None = None
) -> Any:
    """Result of a function of a benchmark module in a fresh process with ``env`` added.

    Arguments and result go through JSON.

    Raises:
        RuntimeError: the process failed; its last line says why.
    """
    module, name = function.__module__, function.__name__
    code = (
        f"import json, sys, timing, torch, {module} as m; "
        f"timing.keep_memory(); torch.set_num_threads({torch.get_num_threads()}); "
        f"print(json.dumps(m.{name}(*json.loads(sys.argv[1]))))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(args)],
        env={**os.environ, "PYTHONPATH": path, **(env or {})},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


class _Sampler:
    """Takes samples of a call, after two calls to warm up and as many as fill a sample."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.clock = clock()
        self.number = 1
        self.sample()
        one = self.sample()
        self.number = max(1, min(1000, round(SAMPLE / max(one, 1e-9))))

    def sample(self) -> float:
        """Seconds of one call, the mean of a few quick ones."""
        call, now = self.call, self.clock
        start = now()
        for _ in range(self.number):
            call()
        return (now() - start) / self.number


def _until(budget: float) -> Callable[[int], bool]:
    start = time.perf_counter()

    def go(samples: int) -> bool:
        spent = time.perf_counter() - start
        return samples == 0 or spent < (budget if samples >= LEAST else 4 * budget)

    return go


def _low(values: Sequence[float]) -> float:
    return sorted(values)[int(LOW * len(values))]
