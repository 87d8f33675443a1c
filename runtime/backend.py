"""Which kernel computes a layer, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import cuda_kernels
from .gpu_weights import GemmFormat, format_of
from .native.loader import library
from .spec import LayerSpec
from .tiles import Programmed

KernelName = Literal[
    "digital", "native-int16", "native-float32", "torch", "physical", "none",
    "cuda-int8", "cuda-integer", "cuda-tf32", "cuda-float32",
]  # fmt: skip
_GEMMS: dict[GemmFormat, tuple[KernelName, str]] = {
    "int8": ("cuda-int8", "weights as two int8 halves, sums are exact integers"),
    "integer": (
        "cuda-integer",
        "weights as two 8-bit integers in TF32, where its sums proved exact; else float32",
    ),
    "tf32": ("cuda-tf32", "weights as two TF32 terms, 22 bits; codes are exact"),
    "float32": ("cuda-float32", "float32 without TF32, which would cut inputs or weights"),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """What computes a layer."""

    name: KernelName
    """``digital``: torch's own operator. ``native-int16``, ``native-float32``: the C++ library, by
    how it holds the weight. ``torch``: the reference path. ``physical``: torch operations, for what
    the plain kernels do not have. ``cuda-*``: torch's GEMMs and our CuPy kernels, by the form in
    which GEMMs take the weight (``gpu_weights``). ``none``: the layer has no memory yet (meta
    device)."""
    why: str


def kernel_of(weight: Tensor, spec: LayerSpec, held: Programmed | None, groups: int) -> Kernel:
    """The kernel of a layer whose weight is ``weight`` and whose tiles hold ``held``."""
    if spec.is_ideal:
        return Kernel("digital", "ideal tiles: nothing to simulate")
    if held is None or weight.is_meta:
        return Kernel("none", "the weight has no memory: nothing is programmed")
    if spec.physical:
        return Kernel("physical", _why_physical(spec))
    if weight.is_cuda:
        return _on_cuda(held, spec)
    if weight.dtype == torch.float64:
        return Kernel("torch", "weights in float64")
    if held.packed is None:
        return Kernel("torch", _why_plain())
    if (held.packed.groups, held.packed.rows) != (groups, spec.rows):
        return Kernel("torch", "the weight is packed for another layer that shares it")
    native = library()
    isa = native.isa if native is not None else "?"
    if held.packed.format == "int16":
        assert spec.dac is not None, "int16 weights meet the codes of a DAC"
        return Kernel("native-int16", f"{isa}: {spec.dac.bits}-bit codes, sums are exact integers")
    return Kernel("native-float32", f"{isa}: {_why_float(spec)}")


def _on_cuda(held: Programmed, spec: LayerSpec) -> Kernel:
    if held.scale.dtype != torch.float32:
        return Kernel("torch", "weights in float64")
    if cuda_kernels.kernels_for(held.scale.device) is None:
        return Kernel("torch", "CuPy or its driver is missing: pip install 'analogc[cuda]'")
    return Kernel(*_GEMMS[format_of(held, spec)])


def _why_physical(spec: LayerSpec) -> str:
    found = []
    if (slicing := spec.slicing) is not None:
        pulses = 1 if slicing.input_bits is None else len(slicing.input_bits)
        found.append(f"{slicing.slices} weight slice(s), {pulses} input pulse(s)")
    for name, converter in (("DAC", spec.dac), ("ADC", spec.adc)):
        if converter is not None and not converter.is_plain:
            found.append(f"{name} {converter.describe()}")
    if spec.periphery is not None:
        found.append("periphery")
    if spec.device.reads_noisily:
        found.append("read noise")
    return ", ".join(found)


def _why_plain() -> str:
    native = library()
    if native is None:
        return "the native library is missing or switched off"
    if not native.runs_layers:
        return "no AVX2 here: torch operations are faster than the native library"
    return "the weight is empty"


def _why_float(spec: LayerSpec) -> str:
    if spec.dac is None:
        return "inputs without a DAC are no integers"
    if spec.dac.bits > 8:
        return f"{spec.dac.bits}-bit codes times 16-bit weights overflow 32 bits"
    return "row blocks too long for exact 32-bit sums, or weights that are not finite"
