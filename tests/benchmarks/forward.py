"""Forward and training step against the digital model, next to aihwkit where it is installed.

    python tests/benchmarks/forward.py [--threads 1] [--budget 3] [--only linear,resnet20,encoder]

Digital and analog calls are interleaved; the figure is the ratio of medians: of the thread's CPU
time with one thread (robust on a busy machine), of wall time with more. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from workloads import WORKLOADS

import analogc

Call = Callable[[], object]


def systems(model: nn.Module, x: Tensor) -> Iterator[tuple[str, nn.Module, float]]:
    """Name, analog twin of ``model`` and the seconds that making it took."""
    for target in ("ideal", "generic-8bit", "generic-8bit-noisy"):
        start = time.perf_counter()
        compiled = analogc.compile(copy.deepcopy(model), (x,), target=target, seed=0)
        yield f"analogc {target}", compiled, time.perf_counter() - start
    try:
        from aihwkit.nn.conversion import convert_to_analog
        from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
    except ImportError:
        return
    for config in (TorchInferenceRPUConfig(), InferenceRPUConfig()):
        start = time.perf_counter()
        twin = convert_to_analog(copy.deepcopy(model), config)
        yield f"aihwkit {type(config).__name__}", twin.eval(), time.perf_counter() - start


def ratio(digital: Call, analog: Call, budget: float) -> tuple[float, float]:
    """Median milliseconds of ``digital``, and of ``analog`` over it."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for call in (digital, analog, digital, analog):
        call()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(times[0]) < 5:
        for call, kept in ((digital, times[0]), (analog, times[1])):
            start = clock()
            call()
            kept.append(clock() - start)
    first, second = (statistics.median(kept) for kept in times)
    return 1e3 * first, second / first


def _forward(model: nn.Module, x: Tensor) -> Call:
    def call() -> None:
        with torch.no_grad():
            model(x)

    return call


def _train(model: nn.Module, x: Tensor) -> Call:
    parameters = [p for p in model.parameters() if p.requires_grad]

    def call() -> None:
        for p in parameters:
            p.grad = None
        model(x).square().mean().backward()
        with torch.no_grad():
            for p in parameters:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=1e-6)

    return call


def main() -> None:
    """Print one line for each workload and system."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds for each figure")
    parser.add_argument("--only", default=",".join(WORKLOADS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = "thread CPU time" if options.threads == 1 else "wall time"
    print(f"torch {torch.__version__}, {options.threads} thread(s), {platform.machine()}, {clock}")
    print(
        f"{'workload':<10}{'system':<34}{'make s':>8}{'digital ms':>12}{'forward':>9}{'train':>8}"
    )
    for name in options.only.split(","):
        torch.manual_seed(0)
        model, x = WORKLOADS[name]()
        model.eval()
        for system, twin, seconds in systems(model, x):
            digital, forward = ratio(_forward(model, x), _forward(twin, x), options.budget)
            train = ratio(_train(model, x), _train(twin, x), options.budget)[1]
            figures = f"{seconds:>8.2f}{digital:>12.2f}{forward:>9.2f}{train:>8.2f}"
            print(f"{name:<10}{system:<34}{figures}", flush=True)


if __name__ == "__main__":
    main()
