"""CPU time of native layers over that of the digital operator, layer by layer.

    python tests/benchmarks/native_layers.py [--budget 0.8] [--noise 0.04] [--only linear,conv]

8-bit converters, tiles of at most 512 rows, one thread. Calls are interleaved; a figure is the
ratio of medians of the thread's CPU time. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from analogc import Converter
from analogc.runtime.native import loader
from analogc.runtime.native.layer import Format, Packed, forward
from analogc.runtime.spec import LayerSpec

Call = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """A layer; linear if it has no kernel."""

    name: str
    batch: int
    channels: int
    out: int
    size: int = 0
    kernel: int = 0
    stride: int = 1
    groups: int = 1
    last: bool = False
    dynamic: bool = False
    tile: int = 512


SHAPES = [
    Shape("linear 512, b256", 256, 512, 512),
    Shape("linear 512, b256, tiles of 256", 256, 512, 512, tile=256),
    Shape("linear 512, b256, dynamic", 256, 512, 512, dynamic=True),
    Shape("linear 4096, b64", 64, 4096, 4096),
    Shape("linear 4096, b1", 1, 4096, 4096),
    Shape("linear 512, b1", 1, 512, 512),
    Shape("conv 64 3x3 16x16 b32", 32, 64, 64, 16, 3),
    Shape("conv 64 3x3 16x16 b32, NHWC", 32, 64, 64, 16, 3, last=True),
    Shape("conv 64 3x3 16x16 b32, dynamic", 32, 64, 64, 16, 3, dynamic=True),
    Shape("conv 16 3x3 32x32 b32", 32, 16, 16, 32, 3),
    Shape("conv 32 3x3 16x16 b32", 32, 32, 32, 16, 3),
    Shape("conv 64 3x3 8x8 b32", 32, 64, 64, 8, 3),
    Shape("conv 64 3x3 56x56 b4", 4, 64, 64, 56, 3),
    Shape("conv 128 3x3 28x28 b4", 4, 128, 128, 28, 3),
    Shape("conv 256 3x3 14x14 b4", 4, 256, 256, 14, 3),
    Shape("conv 512 3x3 7x7 b4", 4, 512, 512, 7, 3),
    Shape("conv 3->64 7x7/2 224x224 b2", 2, 3, 64, 224, 7, 2),
    Shape("conv 64->128 1x1/2 56x56 b4", 4, 64, 128, 56, 1, 2),
    Shape("conv 128 3x3 28x28 b8, depthwise", 8, 128, 128, 28, 3, groups=128),
]


def ratio(digital: Call, analog: Call, budget: float) -> tuple[float, float]:
    """Median milliseconds of ``digital``, and of ``analog`` over it."""
    for call in (digital, analog, digital, analog):
        call()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(times[0]) < 5:
        for call, kept in ((digital, times[0]), (analog, times[1])):
            start = time.thread_time()
            call()
            kept.append(time.thread_time() - start)
    first, second = (statistics.median(kept) for kept in times)
    return 1e3 * first, second / first


def boundaries(inputs: int, tile: int) -> tuple[int, ...]:
    """Balanced row blocks of at most ``tile`` rows."""
    blocks = -(-inputs // tile)
    return tuple(round(inputs * i / blocks) for i in range(blocks + 1))


def calls(shape: Shape, noise: float) -> Iterator[tuple[Call, Call]]:
    """Digital and analog call of a layer for each weight format."""
    size = (shape.size, shape.size) if shape.kernel else ()
    taps = (shape.kernel, shape.kernel) if shape.kernel else ()
    x = torch.randn(shape.batch, shape.channels, *size)
    weight = torch.randn(shape.out, shape.channels // shape.groups, *taps) / 3
    bias, alpha = torch.randn(shape.out), torch.rand(shape.out) + 0.5
    if shape.last:
        x = x.to(memory_format=torch.channels_last)
    inputs = weight[0].numel()
    dac = Converter(8, range="dynamic" if shape.dynamic else "calibrated")
    spec = LayerSpec(boundaries(inputs, shape.tile), dac, Converter(8), output_noise=noise)
    blocks = len(spec.blocks)
    input_range = None if shape.dynamic else torch.full((blocks,), 2.5)
    adc_range = torch.full((blocks,), 10.0)
    step: tuple[int, ...] = ()
    edge: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    digital: Call = partial(F.linear, x, weight, bias)
    if taps:
        step, edge, dilation = (shape.stride,) * 2, (shape.kernel // 2,) * 2, (1, 1)
        digital = partial(F.conv2d, x, weight, bias, step, edge, dilation, shape.groups)
    formats: tuple[Format, ...] = ("int16", "float32")
    for format in formats:
        packed = Packed.pack(weight.flatten(1), spec.rows, taps, shape.groups, 8, format)
        analog = partial(
            forward, x, packed, alpha, bias, input_range, adc_range, spec, step, edge, dilation,
            shape.groups, 5, 1,
        )  # fmt: skip
        yield digital, analog


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=0.8, help="seconds a figure")
    parser.add_argument("--noise", type=float, default=0.04)
    parser.add_argument("--only", default="", help="comma-separated parts of names")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    library = loader.library()
    if library is None:
        raise SystemExit("the native library is not there")
    print(f"{library.isa}, noise {options.noise}: CPU time over digital, 1 thread")
    print(f"{'layer':36}{'digital ms':>12}{'int16':>8}{'float32':>9}")
    for shape in SHAPES:
        if not any(part in shape.name for part in options.only.split(",")):
            continue
        pairs = calls(shape, options.noise)
        found = [ratio(digital, analog, options.budget) for digital, analog in pairs]
        figures = "".join(f"{value:9.2f}" for _, value in found)
        print(f"{shape.name:36}{found[0][0]:12.3f}{figures[1:]}", flush=True)


if __name__ == "__main__":
    main()
