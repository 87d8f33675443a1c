"""The operators as torch.library citizens: schema, fake kernels, dtypes, layouts, bad operands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from analogc import Converter, GaussianDevice
from analogc.errors import FormatError
from analogc.runtime import fast, ops
from analogc.runtime.noise import NoiseSource
from analogc.runtime.spec import LayerSpec
from analogc.runtime.tiles import TileArray

SETTINGS: dict[str, dict[str, Any]] = {
    "ideal": {},
    "dac": {"dac": Converter(8)},
    "adc": {"adc": Converter(8)},
    "8bit": {"dac": Converter(8), "adc": Converter(8)},
    "per-column": {"dac": Converter(8), "adc": Converter(8, per_column=True)},
    "dynamic": {"dac": Converter(8, "dynamic"), "adc": Converter(8)},
    "capped": {"dac": Converter(8, "dynamic", cap=0.7), "adc": Converter(8)},
}
SIMULATED = [name for name in SETTINGS if name != "ideal"]
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[Any, ...]]] = {
    "linear": ((3, 6), (4, 6), ()),
    "conv1d": ((2, 4, 9), (6, 2, 3), ([2], [1], [1], 2)),
    "conv2d": ((2, 4, 6, 5), (6, 2, 3, 2), ([1, 2], [1, 0], [2, 1], 2)),
    "conv3d": ((2, 2, 4, 3, 5), (4, 2, 2, 1, 3), ([1, 1, 2], [0, 1, 1], [1, 1, 1], 1)),
}


def operands(
    name: str,
    kind: str,
    dtype: torch.dtype = torch.float32,
    requires_grad: bool = False,
    bias: bool = True,
    **more: Any,
) -> tuple[Any, ...]:
    """All arguments of operator ``name``; the tiles have two row blocks."""
    in_shape, weight_shape, geometry = SHAPES[name]
    rows = torch.Size(weight_shape[1:]).numel()
    spec = LayerSpec((0, rows // 2 - 1, rows), **SETTINGS[kind], **more)
    columns = (weight_shape[0],) if spec.adc is not None and spec.adc.per_column else ()
    x, weight = torch.randn(in_shape).to(dtype), torch.randn(weight_shape).to(dtype)
    tensors = [x, weight, torch.randn(weight_shape[0]).to(dtype) if bias else None]
    if requires_grad:
        tensors = [None if t is None else t.requires_grad_() for t in tensors]
    input_range = None if spec.dac is None or spec.dynamic else torch.tensor([1.5, 2.0])
    adc_range = None if spec.adc is None else torch.rand(2, *columns) + 2
    return (*tensors, input_range, adc_range, *geometry, spec.to_text(), "")


def operator(name: str) -> Any:
    return getattr(torch.ops.analogc, name).default


def digital(name: str, args: tuple[Any, ...]) -> Tensor:
    if name == "linear":
        return F.linear(*args[:3])
    found: Tensor = getattr(F, name)(*args[:3], *args[5:9])
    return found


# -- opcheck --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("name", ops.NAMES)
def test_opcheck(name: str, kind: str) -> None:
    torch.library.opcheck(operator(name), operands(name, kind, requires_grad=True))


@pytest.mark.parametrize("name", ops.NAMES)
def test_opcheck_without_gradients(name: str) -> None:
    torch.library.opcheck(operator(name), operands(name, "8bit"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_opcheck_of_other_dtypes(name: str, dtype: torch.dtype) -> None:
    torch.library.opcheck(operator(name), operands(name, "8bit", dtype, requires_grad=True))


@pytest.mark.parametrize("kind", ["8bit", "dynamic"])
@pytest.mark.parametrize("name", ops.NAMES)
def test_opcheck_of_single_inputs(name: str, kind: str) -> None:
    args = operands(name, kind)
    single = args[0][0].clone().requires_grad_()

    torch.library.opcheck(operator(name), (single, *args[1:]))


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_opcheck_of_noisy_layers(name: str) -> None:
    # Each call draws anew, so only what does not compare two calls can be checked.
    args = operands(name, "8bit", device=GaussianDevice(0.02), output_noise=0.04)

    torch.library.opcheck(
        operator(name),
        args,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_opcheck_of_the_decomposition() -> None:
    x, full = torch.randn(3, 5, requires_grad=True), torch.tensor(1.5)
    weight = torch.randn(4, 5, requires_grad=True)
    parts = [torch.randn(3, 4, requires_grad=True) for _ in range(2)]
    gains = [torch.rand(4), torch.tensor(0.5)]

    torch.library.opcheck(torch.ops.analogc.dac.default, (x, full, 8))
    torch.library.opcheck(torch.ops.analogc.dac.default, (x, torch.rand(3, 1) + 0.5, 4))
    torch.library.opcheck(torch.ops.analogc.adc.default, (x, full, 8))
    torch.library.opcheck(torch.ops.analogc.adc.default, (x, torch.rand(5) + 0.5, 4))
    torch.library.opcheck(torch.ops.analogc.mvm.default, (x, weight))
    for bias in (None, torch.randn(4, requires_grad=True)):
        torch.library.opcheck(torch.ops.analogc.accumulate.default, (parts, gains, bias))


# -- numbers and forms ----------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ops.NAMES)
def test_ideal_layers_are_the_digital_operator(name: str, bias: bool) -> None:
    args = operands(name, "ideal", bias=bias)

    assert torch.equal(operator(name)(*args), digital(name, args))


@pytest.mark.parametrize("kind", SIMULATED)
@pytest.mark.parametrize("name", ops.NAMES)
def test_many_bits_come_near_the_digital_operator(name: str, kind: str) -> None:
    args = list(operands(name, kind, torch.float64))
    spec = LayerSpec((0, torch.Size(SHAPES[name][1][1:]).numel()), **SETTINGS[kind])
    wide = [
        None if c is None else Converter(16, c.range, c.per_column) for c in (spec.dac, spec.adc)
    ]
    args[-2] = LayerSpec(spec.rows, wide[0], wide[1]).to_text()
    args[3] = None if args[3] is None else args[0].abs().max().float()[None]
    args[4] = None if args[4] is None else args[4][:1] * 4

    exact = digital(name, tuple(args))

    assert float((operator(name)(*args) - exact).abs().max() / exact.abs().max()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", SIMULATED)
@pytest.mark.parametrize("name", ops.NAMES)
def test_result_and_gradients_have_the_dtype_of_their_operand(
    name: str, kind: str, dtype: torch.dtype
) -> None:
    args = operands(name, kind, dtype, requires_grad=True)

    y = operator(name)(*args)
    y.sum().backward()

    exact = digital(name, tuple(a.double() if isinstance(a, Tensor) else a for a in args))
    assert y.dtype == dtype
    assert [t.grad.dtype for t in args[:3]] == [dtype] * 3
    assert [t.grad.shape for t in args[:3]] == [t.shape for t in args[:3]]
    assert y.shape == exact.shape


def test_low_precision_inputs_are_simulated_in_float32() -> None:
    args = operands("linear", "8bit")
    half = (args[0].bfloat16(), *args[1:])

    found = operator("linear")(*half)

    assert found.dtype == torch.bfloat16
    assert torch.equal(found, operator("linear")(half[0].float(), *args[1:]).bfloat16())


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("name", ops.NAMES)
def test_a_single_input_gives_the_row_of_a_batch(name: str, kind: str) -> None:
    args = operands(name, kind, torch.float64)

    whole, single = operator(name)(*args), operator(name)(args[0][1], *args[1:])

    assert single.shape == whole.shape[1:]
    torch.testing.assert_close(single, whole[1])


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("name", ops.NAMES)
def test_an_empty_batch_gives_an_empty_result_and_zero_gradients(name: str, kind: str) -> None:
    args = operands(name, kind, requires_grad=True)
    empty = args[0].detach()[:0].requires_grad_()

    y = operator(name)(empty, *args[1:])
    y.sum().backward()

    assert y.shape == (0, *operator(name)(*args).shape[1:])
    assert empty.grad is not None and empty.grad.shape == empty.shape
    assert all(float(t.grad.abs().sum()) == 0 for t in args[1:3])


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("name", ops.NAMES)
def test_inputs_need_not_be_contiguous(name: str, kind: str) -> None:
    args = operands(name, kind, torch.float64, requires_grad=True)
    x, weight = args[0].detach(), args[1].detach()
    turned = x.transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    sliced = torch.stack([weight, weight + 1], dim=-1)[..., 0].requires_grad_()
    assert not turned.is_contiguous() and not sliced.is_contiguous()

    found, exact = operator(name)(turned, sliced, *args[2:]), operator(name)(*args)
    grad = torch.randn_like(exact)

    torch.testing.assert_close(found, exact)
    ours = torch.autograd.grad(found, [turned, sliced], grad)
    theirs = torch.autograd.grad(exact, args[:2], grad)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", SETTINGS)
def test_channels_last_in_channels_last_out(kind: str) -> None:
    args = operands("conv2d", kind, torch.float64)
    last = args[0].to(memory_format=torch.channels_last)
    fake_args = (last.requires_grad_(), *args[1:])

    y = operator("conv2d")(*fake_args)

    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, operator("conv2d")(*args), check_stride=False)
    if kind in ("8bit", "dynamic"):
        torch.library.opcheck(operator("conv2d"), fake_args)
    y.sum().backward()
    assert last.grad is not None


@pytest.mark.parametrize("name", ops.NAMES)
def test_gradients_are_computed_only_where_wanted(name: str) -> None:
    for wanted in range(3):
        args = list(operands(name, "8bit", requires_grad=True))
        for i in range(3):
            if i != wanted:
                args[i] = args[i].detach()

        operator(name)(*args).sum().backward()

        assert [getattr(a, "grad", None) is not None for a in args[:3]] == [
            i == wanted for i in range(3)
        ]


def test_no_grad_and_inference_mode_keep_no_graph() -> None:
    args = operands("linear", "8bit", requires_grad=True)
    expected = operator("linear")(*args).detach()

    with torch.no_grad():
        assert not operator("linear")(*args).requires_grad
    with torch.inference_mode():
        assert torch.equal(operator("linear")(*args), expected)


def test_broadcast_biases_get_gradients_of_their_own_shape() -> None:
    args = list(operands("linear", "8bit", requires_grad=True))
    for shape in ((1,), (3, 4), (3, 1)):
        args[2] = torch.randn(shape, requires_grad=True)
        exact = digital("linear", tuple(args))

        operator("linear")(*args).sum().backward()

        (theirs,) = torch.autograd.grad(exact.sum(), args[2])
        torch.testing.assert_close(args[2].grad, theirs)


# -- state ----------------------------------------------------------------------------------------


def test_the_operator_uses_the_array_of_its_key_and_programs_it_again_on_change() -> None:
    args = operands("linear", "8bit", device=GaussianDevice(0.1))
    fc = TileArray("fc", "ops/fc", LayerSpec((0, 2, 6), device=GaussianDevice(0.1)), NoiseSource(1))
    run = operator("linear")

    first = run(*args[:-1], "ops/fc")
    assert torch.equal(run(*args[:-1], "ops/fc"), first)
    assert fc.times_programmed == 1
    assert not torch.equal(run(*args), first)  # programmed on the spot, with other noise

    args[1].mul_(2)
    assert not torch.equal(run(*args[:-1], "ops/fc"), first)
    assert fc.times_programmed == 2


def test_backward_uses_the_weight_that_the_tiles_hold() -> None:
    args = operands("linear", "dac", torch.float64, requires_grad=True, device=GaussianDevice(0.1))
    fc = TileArray(
        "fc", "ops/back", LayerSpec((0, 2, 6), device=GaussianDevice(0.1)), NoiseSource(1)
    )

    y = operator("linear")(*args[:-1], "ops/back")
    (grad,) = torch.autograd.grad(y.sum(), args[0])

    assert fc.programmed is not None and fc.times_programmed == 1
    held = torch.cat(fc.programmed.blocks, 1) * fc.programmed.scale[:, None]
    inside = args[0].abs() <= torch.tensor([1.5] * 2 + [2.0] * 4)
    torch.testing.assert_close(grad, held.sum(0).expand(3, 6) * inside)


def test_noise_of_a_key_without_array_follows_manual_seed() -> None:
    args = operands("linear", "8bit", output_noise=0.1)
    run = operator("linear")

    torch.manual_seed(3)
    first, second = run(*args), run(*args)
    torch.manual_seed(3)

    assert torch.equal(run(*args), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("shape", [(64, 300), (64, 12, 5, 5)], ids=["linear", "conv2d"])
def test_results_do_not_depend_on_the_number_of_threads(shape: tuple[int, ...]) -> None:
    rows = torch.Size(shape[1:]).numel()
    noisy = LayerSpec(
        (0, rows), Converter(8), Converter(8), device=GaussianDevice(0.1), output_noise=0.1
    )
    weight = torch.randn(shape)
    x, ranges = torch.randn(40, shape[1], 9, 9), (torch.tensor([2.0]), torch.tensor([9.0]))
    geometry: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], 1)
    if len(shape) == 2:
        x, geometry = x[..., 0, 0], ()
    run, found = operator("conv2d" if geometry else "linear"), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            fc = TileArray("fc", "ops/threads", noisy, NoiseSource(5))
            found.append(run(x, weight, None, *ranges, *geometry, noisy.to_text(), fc.key))
    finally:
        torch.set_num_threads(1)

    assert torch.equal(found[0], found[1])


# -- bad operands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["8bit", "dynamic"])
@pytest.mark.parametrize("name", ops.NAMES)
def test_operands_that_do_not_fit_raise(name: str, kind: str) -> None:
    args = operands(name, kind)
    x, weight = args[:2]
    wide = torch.cat([x, x], dim=-1 if name == "linear" else 1)
    flat = LayerSpec((0, 2), **SETTINGS[kind]).to_text()

    with pytest.raises(RuntimeError, match="do not fit"):
        operator(name)(wide, *args[1:])
    with pytest.raises(RuntimeError, match="do not fit"):
        operator(name)(x.long(), *args[1:])
    with pytest.raises(RuntimeError, match="do not fit"):
        operator(name)(*args[:-2], flat, "")
    with pytest.raises(RuntimeError, match="do not fit"):
        operator(name)(x, torch.cat([weight, weight], dim=1), *args[2:])


def test_a_text_that_is_no_spec_is_a_format_error() -> None:
    args = operands("linear", "8bit")

    with pytest.raises(FormatError):
        operator("linear")(*args[:-2], "8 bits please", "")


def test_operands_of_another_device_are_refused() -> None:
    args = list(operands("linear", "8bit"))
    for i in (0, 2, 3, 4):
        wrong = list(args)
        wrong[i] = args[i].to("meta")
        # The native kernel would read where there is no memory.
        with torch.no_grad(), pytest.raises((RuntimeError, ValueError), match="meta"):
            fast.linear(*wrong)
