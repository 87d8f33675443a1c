"""In which form the CUDA path multiplies weights: bits, faithfulness, and the choice."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from analogc import Converter
from analogc.runtime import gpu, gpu_weights, kernels, tiles
from analogc.runtime.mvm import ConvMVM
from analogc.runtime.native.layer import Packed, weight_limit
from analogc.runtime.native.layer import forward as native_forward

from .gpu_cases import CASES, DYNAMIC, Case, HostKernels, Operands, operands

INTEGER = [name for name, case in CASES.items()
           if "9-bit" not in name and case.get("dac", DYNAMIC) is not None]  # fmt: skip


def on_cpu(args: Operands) -> tuple[Tensor, Tensor | None]:
    """The same layer by the native library."""
    mvm, x, held, bias, ranges, spec, key = args
    kernel = tuple(held.blocks[0].shape[2:])
    columns = [w.flatten(1) for w in held.blocks]
    where: dict[str, Any] = {}
    if isinstance(mvm, ConvMVM):
        where = {
            "stride": mvm.stride, "padding": mvm.padding, "dilation": mvm.dilation,
            "groups": mvm.groups,
        }  # fmt: skip
        taps = math.prod(kernel)
        columns = [
            w[:, a % taps :][:, : b - a] for w, (a, b) in zip(columns, spec.blocks, strict=True)
        ]
    packed = Packed.pack(
        torch.cat(columns, 1), spec.rows, kernel, where.get("groups", 1), spec.dac.bits
    )
    assert packed.format == "int16"
    bits, call = (key.bits, key.counter) if key else (0, 0)
    return native_forward(
        x, packed, held.scale, bias, ranges.input, ranges.adc, spec, **where, key=bits, call=call,
        want_mask=True,
    )  # fmt: skip


@pytest.mark.parametrize("name", INTEGER)
def test_integer_weights_give_the_bits_of_the_native_library(host: HostKernels, name: str) -> None:
    args = operands(CASES[name])

    found, mask = gpu.forward(*args, want_mask=True)

    expected, expected_mask = on_cpu(args)
    assert torch.equal(found, expected)
    assert (mask is None) == (expected_mask is None)
    assert mask is None or (expected_mask is not None and torch.equal(mask, expected_mask))


def test_steps_of_columns_are_those_of_the_native_library() -> None:
    peaks = torch.cat([
        torch.rand(4000) + 0.5, 10.0 ** torch.linspace(-45, 38, 999), torch.tensor([0.0])
    ])  # fmt: skip
    weight = peaks[:, None] * torch.tensor([1.0, -0.3])
    for rows in ((0, 1, 2), (0, 2)):
        limit = weight_limit(rows)
        step = gpu_weights.column_steps((weight,), limit)
        packed = Packed.pack(weight, rows, dac_bits=8)
        assert torch.equal(step, packed.step)
    assert limit == int(packed.data.max()) == 32639


def test_formats_of_layers(host: HostKernels) -> None:
    expected = {
        "linear": "int8", "linear-dynamic": "int8", "linear-9-bit": "tf32",
        "linear-no-dac": "float32", "conv2d": "integer", "conv2d-dynamic-groups": "integer",
        "conv2d-no-dac": "float32",
    }  # fmt: skip
    for name, wanted in expected.items():
        args = operands(CASES[name])
        assert gpu_weights.format_of(args[2], args[5]) == wanted
    wide = operands({"n": 3, "k": 2065})
    assert gpu_weights.format_of(wide[2], wide[5]) == "tf32"
    args[2].blocks[0][0, 0] = math.inf
    assert gpu_weights.format_of(args[2], args[5]) == "float32"
    fine = operands({"n": 3, "k": 20, "dac": Converter(13)})
    assert gpu_weights.format_of(fine[2], fine[5]) == "float32"


def is_tf32(values: Tensor) -> bool:
    return not (values.contiguous().view(torch.int32) & 0x1FFF).any()


@pytest.mark.parametrize(
    "name", ["conv2d", "conv2d-groups", "linear-9-bit", "linear-9-bit-dynamic"]
)
def test_tf32_holds_what_it_multiplies(name: str) -> None:
    args = operands(CASES[name])
    mvm, x, held, _, ranges, spec, _ = args
    prepared = gpu_weights.prepared(held, spec, getattr(mvm, "groups", 1))

    for r, weight in enumerate(prepared.weights):
        codes, _, _ = kernels.drive(mvm, mvm.take(x, r), ranges, spec, r)
        assert is_tf32(codes) and is_tf32(weight)


def test_tf32_terms_are_22_bits() -> None:
    weight = torch.cat([torch.randn(10_000), torch.tensor([0.0, -0.0, 1.0, 2**-100, 1 - 2**-24])])

    high, low = gpu_weights.tf32_terms(weight)

    assert is_tf32(high) and is_tf32(low)
    assert ((high.double() + low.double() - weight).abs() <= weight.abs() * 2.0**-22).all()


SHAPES: dict[str, Case] = {
    "linear": {"n": 64, "k": 1024, "batch": (64,), "cuts": (0.5,)},
    "conv2d": {"n": 32, "k": 64, "kernel": (3, 3), "size": (12, 12), "cuts": (0.5,)},
}


def moved(found: Tensor, args: Operands) -> float:
    """Share of outputs that differ from the plain float32 path by a good part of an ADC step."""
    expected, _ = kernels.forward(*args)
    _, _, held, _, ranges, spec, _ = args
    step = ranges.adc.min() / spec.adc.levels * held.scale.min()
    if spec.dac.range != "dynamic":
        step *= ranges.input.min()
    return float(((found - expected).abs() > 0.5 * step).double().mean())


@pytest.mark.parametrize("bits", [8, 9, 12])
@pytest.mark.parametrize("name", SHAPES)
def test_formats_move_few_outputs_by_an_adc_step(host: HostKernels, name: str, bits: int) -> None:
    args = operands({**SHAPES[name], "dac": Converter(bits), "adc": Converter(10)})
    assert moved(gpu.forward(*args)[0], args) <= 0.01

    # What one bf16 weight would do.
    mvm, x, held, bias, ranges, spec, key = args
    short = tiles.Programmed(tuple(w.bfloat16().float() for w in held.blocks), held.scale)
    assert moved(kernels.forward(mvm, x, short, bias, ranges, spec, key)[0], args) > 0.05


def test_tf32_stays_only_where_it_is_exact(
    host: HostKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_EXACT", {})
    args = operands(CASES["conv2d"])
    expected, _ = gpu.forward(*args)
    assert list(gpu._EXACT.values()) == [True] * 3
    used: list[str] = []
    multiply = ConvMVM.multiply

    def inexact(self: ConvMVM, part: Tensor, weight: Tensor, block: int) -> Tensor:
        used.append(torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]
        sums = multiply(self, part, weight, block)
        return sums * (1 + 2**-12) if used[-1] == "tf32" else sums

    monkeypatch.setattr(ConvMVM, "multiply", inexact)
    assert not torch.equal(gpu.forward(*args)[0], expected)
    assert used == ["tf32"] * 3
    gpu._EXACT.clear()
    used.clear()
    for _ in range(2):
        assert torch.equal(gpu.forward(*args)[0], expected)
    assert used == ["ieee", "tf32"] * 3 + ["ieee"] * 3
