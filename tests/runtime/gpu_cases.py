"""Layers for the tests of the CUDA path, and its kernels compiled as C++."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from analogc import Converter, GaussianDevice
from analogc.runtime import cuda_kernels, tiles
from analogc.runtime.kernels import Ranges
from analogc.runtime.mvm import geometry
from analogc.runtime.noise import NoiseKey
from analogc.runtime.spec import LayerSpec

KEY = NoiseKey(11, "read/fc", 5)

LETTERS: dict[str, Any] = {
    "P": ctypes.c_void_p, "f": ctypes.c_float, "i": ctypes.c_int, "I": ctypes.c_uint,
    "q": ctypes.c_longlong,
}  # fmt: skip


class HostKernels:
    """The kernels of kernels.cu on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.host_kernel.restype = ctypes.c_void_p
        library.host_signature.restype = ctypes.c_char_p
        self.library = library
        self.launched: list[str] = []

    def launch(
        self,
        name: str,
        grid: tuple[int, int],
        block: tuple[int, int],
        args: Sequence[cuda_kernels.Argument],
    ) -> None:
        self.launched.append(name)
        values = [cuda_kernels.address(a) for a in args]
        found = "".join(
            "P" if a is None or isinstance(a, Tensor) else a.dtype.char.replace("l", "q")
            for a in args
        )
        assert found == self.library.host_signature(name.encode()).decode()
        for arg in args:
            assert arg is None or not isinstance(arg, Tensor) or arg.numel()
        kinds = [LETTERS[letter] for letter in found]
        run = ctypes.CFUNCTYPE(None, *[ctypes.c_uint] * 4, *kinds)(
            self.library.host_kernel(name.encode())
        )
        run(*grid, *block, *(v.item() for v in values))


Case = dict[str, Any]
Operands = tuple[Any, Any, Any, Any, Any, Any, Any]


def operands(case: Case, seed: int = 0) -> Operands:
    """Arguments of ``forward`` for a case: sizes, converters and options of a layer."""
    generator = torch.Generator().manual_seed(seed)
    kernel = case.get("kernel", ())
    groups, n, channels = case.get("groups", 1), case["n"], case["k"]
    dac, adc = case.get("dac", Converter(8)), case.get("adc", Converter(8))
    rows = channels * math.prod(kernel)
    cuts = sorted({round(rows * c) for c in case.get("cuts", ())} - {0, rows})
    noise, device = case.get("noise", 0.05), GaussianDevice(0.02)
    spec = LayerSpec((0, *cuts, rows), dac, adc, output_noise=noise, device=device)
    size = case.get("size", (7, 6, 5)[: len(kernel)])
    x = torch.randn(*case.get("batch", (5,)), channels * groups, *size, generator=generator)
    weight = torch.randn(n, channels, *kernel, generator=generator)
    bias = torch.randn(n, generator=generator) if case.get("bias", True) else None
    blocks = len(spec.blocks)
    input_range = None
    if dac is not None and not spec.dynamic:
        input_range = torch.rand(blocks, generator=generator) + 2
    adc_range = None
    if adc is not None:
        columns = (n,) if adc.per_column else ()
        # About two sigma of the sums, so that a few clip.
        adc_range = torch.rand(blocks, *columns, generator=generator) + 0.8
        adc_range *= math.sqrt(rows / blocks) / 4
    held = tiles.program(weight, spec, NoiseKey(0, "program/fc", 0))
    ones = [1] * len(kernel)
    stride, padding = case.get("stride", ones), case.get("padding", [0] * len(kernel))
    mvm = geometry(spec, weight.shape, stride, padding, ones, groups)
    key = KEY if noise else None
    return mvm, x, held, bias, Ranges(input_range, adc_range), spec, key


DYNAMIC = Converter(8, "dynamic")
CASES: dict[str, Case] = {
    "linear": {"n": 70, "k": 40, "cuts": (0.3, 0.6)},
    "linear-16-columns": {"n": 16, "k": 24, "batch": (9,)},
    "linear-narrow": {"n": 5, "k": 24, "batch": (9,), "cuts": (0.5,)},
    "linear-20-columns": {"n": 20, "k": 24, "batch": (7,), "cuts": (0.5,)},
    "linear-many-vectors": {"n": 130, "k": 50, "batch": (3, 50), "cuts": (0.2, 0.5)},
    "linear-vector": {"n": 20, "k": 24, "batch": ()},
    "linear-dynamic": {"n": 70, "k": 40, "cuts": (0.5,), "dac": DYNAMIC},
    "linear-per-column": {"n": 70, "k": 40, "cuts": (0.5,), "adc": Converter(6, per_column=True)},
    "linear-9-bit": {"n": 70, "k": 40, "cuts": (0.5,), "dac": Converter(9)},
    "linear-9-bit-dynamic": {"n": 40, "k": 40, "cuts": (0.3,), "dac": Converter(9, "dynamic")},
    "linear-no-dac": {"n": 33, "k": 40, "cuts": (0.5,), "dac": None},
    "linear-no-adc": {"n": 33, "k": 40, "cuts": (0.5,), "adc": None},
    "linear-noise-only": {"n": 33, "k": 40, "dac": None, "adc": None, "noise": 0.2},
    "linear-no-noise": {"n": 33, "k": 40, "cuts": (0.5,), "noise": 0.0, "bias": False},
    "conv1d": {"n": 6, "k": 4, "kernel": (3,), "size": (17,), "stride": [2], "cuts": (0.5,)},
    "conv2d": {"n": 24, "k": 6, "kernel": (3, 2), "padding": [1, 1], "cuts": (0.2, 0.7)},
    "conv2d-groups": {"n": 12, "k": 3, "kernel": (3, 3), "groups": 4, "cuts": (0.4,)},
    "conv2d-one-pixel": {"n": 12, "k": 3, "kernel": (3, 3), "size": (3, 3)},
    "conv2d-no-dac": {"n": 12, "k": 3, "kernel": (3, 3), "dac": None},
    "conv2d-dynamic": {"n": 12, "k": 3, "kernel": (3, 3), "dac": DYNAMIC, "cuts": (0.4,)},
    "conv2d-dynamic-groups": {
        "n": 72, "k": 3, "kernel": (2, 3), "dac": DYNAMIC, "groups": 4, "cuts": (0.4,),
    },
    "conv3d": {"n": 6, "k": 3, "kernel": (2, 3, 1), "padding": [1, 0, 1], "cuts": (0.5,)},
}  # fmt: skip


def assert_alike(found: Tensor, expected: Tensor, spec: LayerSpec) -> None:
    """Equal but for rounding, and a few outputs that rounding moved by a step of an ADC."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    difference = (found - expected).abs().double()
    peak = float(expected.abs().max())
    if spec.adc is None:
        # What 16-bit weights differ by.
        assert float(difference.max()) < 1e-4 * peak
        return
    near = difference <= 2e-5 * peak
    assert near.double().mean() > 0.98
    assert float(difference.max()) < 3 * len(spec.blocks) * peak / spec.adc.levels
