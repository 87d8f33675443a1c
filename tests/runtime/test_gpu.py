"""The CUDA path without a GPU: its kernels compiled as C++, everything else as it is."""

from __future__ import annotations

import ctypes
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from analogc import Converter
from analogc.runtime import cuda_kernels, gpu, gpu_weights, kernels, philox, tiles
from analogc.runtime.kernels import Ranges

from .gpu_cases import CASES, DYNAMIC, HostKernels, Operands, assert_alike, operands

KERNELS = ["analogc_constants", "analogc_dac_int8", "analogc_dac_float", "analogc_epilogue_int",
           "analogc_epilogue_float", "analogc_epilogue_map"]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_forward_is_that_of_the_plain_path(host: HostKernels, name: str) -> None:
    args = operands(CASES[name])

    found, mask = gpu.forward(*args, want_mask=True)

    expected, expected_mask = kernels.forward(*args, want_mask=True)
    assert_alike(found, expected, args[5])
    if expected_mask is None:
        assert mask is None
        return
    assert mask is not None and (mask.shape, mask.dtype) == (expected_mask.shape, torch.bool)
    assert float((mask == expected_mask).double().mean()) > 0.999
    assert not expected_mask.all()


def test_each_layer_takes_the_kernels_meant_for_it(host: HostKernels) -> None:
    expected = {
        "linear": ["analogc_constants", "analogc_dac_int8", "analogc_epilogue_int"],
        "linear-9-bit": ["analogc_constants", "analogc_dac_float", "analogc_epilogue_float"],
        "linear-no-dac": ["analogc_constants", "analogc_epilogue_float"],
        "conv2d": ["analogc_constants", "analogc_epilogue_map"],
        "conv2d-dynamic": ["analogc_constants", "analogc_epilogue_map"],
    }
    for name, wanted in expected.items():
        host.launched.clear()
        gpu.forward(*operands(CASES[name]))
        assert host.launched == wanted


# -- bit for bit ----------------------------------------------------------------------------------

F32 = np.float32


def fma(a: Any, b: Any, c: Any) -> NDArray[np.float32]:
    # The product of two float32 numbers is exact in float64.
    total = np.asarray(a, np.float64) * np.asarray(b, np.float64) + np.asarray(c, np.float64)
    return total.astype(F32)


def by_numpy(args: Operands) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A linear layer with integer weights, operation by operation in float32."""
    _, x, held, bias, ranges, spec, key = args
    x, alpha = x.numpy(), held.scale.numpy()
    dac, adc = F32(spec.dac.levels), F32(spec.adc.levels)
    vectors, n = len(x), len(alpha)
    longest = max(b - a for a, b in spec.blocks)
    limit = F32(min(32639, (2**31 - 1) // (127 * longest)))
    step = np.abs(np.concatenate([w.numpy() for w in held.blocks], 1)).max(1) / limit
    while (step != step * limit / limit).any():
        step = step * limit / limit
    y = np.zeros((vectors, n), F32)
    masks = []
    for r, (start, stop) in enumerate(spec.blocks):
        part = x[:, start:stop]
        if spec.dynamic:
            unit, ratio = np.abs(part).max(1, keepdims=True), F32(1)
            codes = np.clip(np.rint(part * (dac / unit)), -dac, dac)
        else:
            unit, ratio = np.ones((vectors, 1), F32), F32(ranges.input[r])
            codes = np.clip(np.rint(part * (dac / ratio)), -dac, dac)
        whole = np.rint(held.blocks[r].numpy() * (F32(1) / step)[:, None]).astype(np.int64)
        p = (codes.astype(np.int64) @ whole.T).astype(F32)
        full = ranges.adc[r].numpy()
        z = philox.normals(key.bits, r, key.counter, vectors, n)
        t = fma(z, F32(spec.output_noise) * adc / full, p * (adc / (full * dac) * step))
        masks.append(np.abs(t) <= adc)
        a = np.clip(np.rint(t), -adc, adc) * unit
        gain = ratio * full / adc * alpha
        y = a * gain if r == 0 else fma(a, gain, y)
    return y + bias.numpy(), np.stack(masks)


@pytest.mark.parametrize("dac", [Converter(8), DYNAMIC, Converter(4)])
@pytest.mark.parametrize("n", [5, 32, 70, 128])
def test_integer_path_equals_numpy_bit_for_bit(host: HostKernels, n: int, dac: Converter) -> None:
    args = operands({"n": n, "k": 200, "batch": (41,), "cuts": (0.35, 0.7), "dac": dac})

    found, mask = gpu.forward(*args, want_mask=True)

    expected, expected_mask = by_numpy(args)
    assert mask is not None
    assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(mask.numpy(), expected_mask)


def test_float_epilogues_equal_the_integer_one(host: HostKernels) -> None:
    # Sums are exact in float32, too, if weights are small integers times a power of two.
    args = operands({"n": 24, "k": 64, "batch": (10,), "cuts": (0.5,), "dac": Converter(8)})
    mvm, x, held, bias, ranges, spec, key = args
    whole = [torch.randint(-200, 200, b.shape).float() / 256 for b in held.blocks]
    held = tiles.Programmed(tuple(whole), held.scale)
    integer, _ = gpu.forward(mvm, x, held, bias, ranges, spec, key)

    layer = gpu._Layer(host, held, bias, ranges, spec, key, False)
    sums = torch.stack([
        kernels.drive(mvm, mvm.take(x, r), ranges, spec, r)[0] @ held.blocks[r].mT
        for r in range(2)
    ])  # fmt: skip
    # As it is, and as images of 5 pixels whose columns lie apart: [R, N, vectors].
    flat = gpu._Strides(0, 24, 0, 1)
    y = torch.empty(10, 24)
    places = gpu._Places(10, 1, 24, flat, flat)
    layer._epilogue("float", sums, None, layer._constants(None), y, None, places)
    apart = torch.empty(24, 10)
    strides = gpu._Strides(5, 1, 80, 10)
    places = gpu._Places(10, 5, 8, strides, strides)
    layer._epilogue("map", sums.mT.contiguous(), None, layer._constants(None), apart, None, places)

    assert torch.equal(apart.mT, y)
    # The integer path rounds its weights to 32639 steps; noise, and most codes, are the same.
    assert_alike(integer, y, spec)


def test_dac_kernels_fill_padded_blocks_of_codes(host: HostKernels) -> None:
    x = torch.randn(5, 40)
    rows = torch.tensor([0, 7, 40], dtype=torch.int32)
    starts = torch.tensor([0, 16, 64], dtype=torch.int32)
    full = torch.tensor([1.5, 2.5])
    for name, dtype, levels in (("int8", torch.int8, 127), ("float", torch.float32, 2047)):
        for given in (full, None):
            codes = torch.full((8 * 64,), 99, dtype=dtype)
            unit = torch.empty(2, 5)
            sizes = [np.int32(5), np.int32(8), np.float32(levels)]
            host.launch(
                f"analogc_dac_{name}",
                (2, 2),
                (32, 4),
                [x, codes, unit, rows, starts, given, *sizes],
            )
            for r, (a, b, part) in enumerate([(0, 7, codes[:128]), (7, 40, codes[128:])]):
                peak = x[:, a:b].abs().amax(1, keepdim=True) if given is None else full[r]
                expected = (x[:, a:b] * (levels / peak)).round().clamp(-levels, levels)
                matrix = part.view(8, -1)
                assert torch.equal(matrix[:5, : b - a].float(), expected)
                assert not matrix[:5, b - a :].any()
                assert (matrix[5:] == 99).all()
                expected_unit = peak[:, 0] if given is None else torch.ones(5)
                assert torch.equal(unit[r], expected_unit)


def test_noise_counter_reaches_beyond_32_bits(host: HostKernels) -> None:
    case = {"n": 10, "k": 8, "dac": None, "adc": None, "noise": 1.0, "bias": False}
    _, _, held, bias, ranges, spec, key = operands(case)
    held = tiles.Programmed(held.blocks, torch.ones(10))
    layer = gpu._Layer(host, held, bias, ranges, spec, key, False)
    y, flat = torch.empty(6, 10), gpu._Strides(0, 10, 0, 1)

    first = 2**30
    layer._epilogue(
        "float", torch.zeros(1, 6, 10), None, layer._constants(None), y, None,
        gpu._Places(6, 1, 10, flat, flat), first,
    )  # fmt: skip

    assert np.array_equal(y.numpy(), philox.normals(key.bits, 0, key.counter, 6, 10, first))


def test_chunks_give_the_same_numbers(host: HostKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("linear-many-vectors", "linear-9-bit"):
        case = {**CASES[name], "batch": (150,)}
        for n in (10, 30, 130):
            args = operands({**case, "n": n})
            whole, whole_mask = gpu.forward(*args, want_mask=True)
            with monkeypatch.context() as patch:
                # 64 vectors at a time, 70 rounded down.
                wide = -(-n // 8) * 16 if name == "linear-many-vectors" else 2 * n
                patch.setattr(gpu, "_SUMS", 70 * 4 * wide * len(args[5].blocks))
                host.launched.clear()
                parts, parts_mask = gpu.forward(*args, want_mask=True)
            assert host.launched.count("analogc_epilogue_" + whole_kind(args)) == 3
            assert torch.equal(whole, parts)
            assert whole_mask is not None and parts_mask is not None
            assert torch.equal(whole_mask, parts_mask)


def whole_kind(args: Operands) -> str:
    return "int" if args[5].dac.levels <= 127 else "float"


def test_halves_of_weights_are_8_bit_and_give_them_back() -> None:
    integers = torch.arange(-32639, 32640, dtype=torch.int32).repeat(2, 1)

    halves = gpu_weights.int8_halves(integers)

    rows = integers.shape[1]
    assert halves.dtype == torch.int8 and halves.shape[0] % 16 == 0 and halves.shape[1] == 16
    whole = halves[:, :8].int() * 256 + halves[:, 8:].int()
    assert torch.equal(whole[:rows, :2], integers.mT)
    assert not whole[rows:].any() and not whole[:, 2:].any()


def test_large_sums_do_not_overflow(host: HostKernels) -> None:
    # All at full scale: 127 * 600 rows * limit is just under 2^31.
    args = operands(
        {"n": 8, "k": 600, "adc": None, "noise": 0.0, "bias": False, "dac": Converter()}
    )
    mvm, x, held, bias, ranges, spec, key = args
    held = tiles.Programmed((torch.ones(8, 600),), torch.ones(8))
    x = torch.stack([torch.full((600,), 9.0), torch.full((600,), -9.0)])

    y, _ = gpu.forward(mvm, x, held, bias, Ranges(torch.ones(1), None), spec, key)

    torch.testing.assert_close(y, torch.tensor([600.0, -600.0])[:, None].expand(2, 8))


# -- NaN and infinity -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "linear-dynamic", "linear-9-bit", "conv2d-dynamic"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_inputs_do_what_they_do_in_torch(
    host: HostKernels, name: str, value: float
) -> None:
    args = operands(CASES[name])
    args[1].view(-1)[3] = value

    found, mask = gpu.forward(*args, want_mask=True)

    expected, expected_mask = kernels.forward(*args, want_mask=True)
    assert mask is not None and expected_mask is not None
    assert torch.equal(found.isnan(), expected.isnan())
    assert found.isnan().any() == (math.isnan(value) or args[5].dynamic)
    assert float((mask == expected_mask).double().mean()) > 0.999


def test_a_vector_of_zeros_has_range_one(host: HostKernels) -> None:
    args = operands(CASES["linear-dynamic"])
    args[1].zero_()

    found, _ = gpu.forward(*args)

    assert_alike(found, kernels.forward(*args)[0], args[5])


# -- where it does not apply ----------------------------------------------------------------------


def test_layers_in_float64_and_empty_inputs_run_as_plain_torch(host: HostKernels) -> None:
    mvm, x, held, bias, ranges, spec, key = operands(CASES["linear"])
    double = tiles.Programmed(tuple(b.double() for b in held.blocks), held.scale.double())

    y, _ = gpu.forward(mvm, x.double(), double, bias, ranges, spec, key)
    empty, _ = gpu.forward(mvm, x[:0], held, bias, ranges, spec, key)

    assert host.launched == []
    assert torch.equal(y, kernels.forward(mvm, x.double(), double, bias, ranges, spec, key)[0])
    assert empty.shape == (0, 70)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_result_has_the_dtype_of_the_input(host: HostKernels, dtype: torch.dtype) -> None:
    for name in ("linear", "conv2d"):
        mvm, x, *rest = operands(CASES[name])
        found, _ = gpu.forward(mvm, x.to(dtype), *rest)
        assert found.dtype == dtype
        assert torch.equal(found, gpu.forward(mvm, x.to(dtype).float(), *rest)[0].to(dtype))


def test_channels_last_convolutions_stay_so(host: HostKernels) -> None:
    mvm, x, *rest = operands(CASES["conv2d"])

    found, _ = gpu.forward(mvm, x.contiguous(memory_format=torch.channels_last), *rest)

    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_alike(found, gpu.forward(mvm, x, *rest)[0], rest[3])


def test_float32_precision_of_the_user_is_left_alone(host: HostKernels) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        gpu.forward(*operands(CASES["linear-9-bit"]))
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.parametrize("name", ["linear", "linear-9-bit"])
def test_weights_are_prepared_once_and_freed_with_the_tiles(host: HostKernels, name: str) -> None:
    args = operands(CASES[name])
    before = len(gpu_weights._PREPARED)
    gpu.forward(*args)
    first = gpu_weights._PREPARED[args[2].blocks[0]]

    gpu.forward(*args)

    assert gpu_weights._PREPARED[args[2].blocks[0]] is first
    assert len(gpu_weights._PREPARED) == before + 1
    del args
    assert len(gpu_weights._PREPARED) == before


def test_without_cupy_there_is_one_warning_and_plain_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    cuda_kernels.kernels_for.cache_clear()
    args = operands(CASES["linear"])
    try:
        with pytest.warns(UserWarning, match=r"plain torch.*pip install 'analogc\[cuda\]'"):
            found, _ = gpu.forward(*args)
        again, _ = gpu.forward(*args)  # no second warning: warnings are errors here
    finally:
        cuda_kernels.kernels_for.cache_clear()

    assert torch.equal(found, kernels.forward(*args)[0])
    assert torch.equal(again, found)


# -- compiled for GPUs ----------------------------------------------------------------------------


def compile_cuda(architecture: str) -> str:
    """Log of NVRTC for the source; fails with it if the source does not compile."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="pip install 'analogc[cuda-test]'")
    options = [f"--gpu-architecture={architecture}", "--ptxas-options=-v", *cuda_kernels.OPTIONS]
    try:
        _, program = nvrtc.nvrtcCreateProgram(
            cuda_kernels.source().encode(), b"kernels.cu", 0, [], []
        )
    except RuntimeError as error:  # cuda-bindings without a library
        pytest.skip(str(error).splitlines()[0])
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    text: str = log.rstrip(b"\0").decode()
    assert result == nvrtc.nvrtcResult.NVRTC_SUCCESS, text
    return text


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_kernels_compile_and_keep_everything_in_registers(architecture: str) -> None:
    log = compile_cuda(architecture)

    parts = re.split(r"Compiling entry function '(\w+)'", log)[1:]
    entries = dict(zip(parts[::2], parts[1::2], strict=True))
    assert sorted(entries) == sorted(KERNELS)
    for name, text in entries.items():
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in text, name
        registers = re.search(r"Used (\d+) registers", text)
        # 64 let eight thread blocks of 128 share a multiprocessor.
        assert registers is not None and int(registers[1]) <= 64, (name, text)
    assert "warning" not in log


# -- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_cuda_equals_the_host_kernels(
    build_host: Callable[..., ctypes.CDLL], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mvm, x, held, bias, ranges, spec, key = operands(CASES[name])
    there = torch.device("cuda", torch.cuda.current_device())
    moved = tiles.Programmed(tuple(b.to(there) for b in held.blocks), held.scale.to(there))
    on_cuda = Ranges(*(None if t is None else t.to(there) for t in (ranges.input, ranges.adc)))
    cuda_bias = None if bias is None else bias.to(there)
    found, _ = gpu.forward(mvm, x.to(there), moved, cuda_bias, on_cuda, spec, key)

    host_kernels = HostKernels(build_host("cuda_host.cpp", "-Wno-unknown-pragmas"))
    monkeypatch.setattr(cuda_kernels, "kernels_for", lambda device: host_kernels)
    expected, _ = gpu.forward(mvm, x, held, bias, ranges, spec, key)

    if gpu_weights.format_of(held, spec) in ("int8", "integer"):
        assert torch.equal(found.cpu(), expected)
    else:
        assert_alike(found.cpu(), expected, spec)


@pytest.mark.gpu
def test_calls_can_be_captured_in_a_cuda_graph() -> None:
    mvm, x, held, bias, ranges, spec, key = operands(CASES["linear"])
    there = torch.device("cuda", torch.cuda.current_device())
    assert bias is not None and ranges.input is not None and ranges.adc is not None
    moved = tiles.Programmed(tuple(b.to(there) for b in held.blocks), held.scale.to(there))
    on_cuda = Ranges(ranges.input.to(there), ranges.adc.to(there))
    static, cuda_bias = x.to(there), bias.to(there)
    expected, _ = gpu.forward(mvm, static, moved, cuda_bias, on_cuda, spec, key)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found, _ = gpu.forward(mvm, static, moved, cuda_bias, on_cuda, spec, key)
    graph.replay()

    assert torch.equal(found, expected)
