"""The fast path against the decomposition, which is composed here a second time, on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analogc import Converter, GaussianDevice
from analogc.runtime import kernels, philox, reference, tiles
from analogc.runtime.kernels import Ranges
from analogc.runtime.mvm import ConvMVM, DenseMVM, PatchMVM, geometry
from analogc.runtime.noise import NoiseKey, NoiseSource
from analogc.runtime.spec import LayerSpec
from analogc.runtime.tiles import Programmed, TileArray

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Layer:
    """Sizes of a layer; a linear one if there is no kernel."""

    out: int
    """Outputs of one group."""
    channels: int
    """Inputs, or input channels of one group."""
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    cuts: tuple[float, ...] = ()
    """Where the rows are cut, as fractions of K."""
    dac: Converter | None = None
    adc: Converter | None = None
    bias: bool = True
    size: tuple[int, ...] = ()
    batch: tuple[int, ...] = (3,)
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> LayerSpec:
        rows = self.channels * math.prod(self.kernel)
        inner = {round(cut * rows) for cut in self.cuts} - {0, rows}
        return LayerSpec((0, *sorted(inner), rows), self.dac, self.adc, **self.extra)

    @property
    def geometry(self) -> tuple[Any, ...]:
        if not self.kernel:
            return ()
        return list(self.stride), list(self.padding), list(self.dilation), self.groups

    def tensors(self, dtype: torch.dtype) -> list[Tensor | None]:
        """Input, weight, bias, input range, ADC range."""
        generator = torch.Generator().manual_seed(self.seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        def rand(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        n, blocks = self.out * self.groups, len(self.spec.blocks)
        x = randn(*self.batch, self.channels * self.groups, *self.size)
        weight = randn(n, self.channels, *self.kernel)
        bias = randn(n) if self.bias else None
        input_range = None
        if self.dac is not None and self.dac.range != "dynamic":
            input_range = rand(blocks) + 1.2
        adc_range = None
        if self.adc is not None:
            per_column = (n,) if self.adc.per_column else ()
            # About one and a half sigma of the sums, so that some of them clip.
            adc_range = (rand(blocks, *per_column) + 0.5) * math.sqrt(self.spec.rows[1]) / 2
        for tensor in (x, weight, bias):
            if tensor is not None:
                tensor.requires_grad_()
        return [x, weight, bias, input_range, adc_range]

    def run(self, tensors: Sequence[Tensor | None], key: str = "") -> Tensor:
        name = f"conv{len(self.kernel)}d" if self.kernel else "linear"
        op = getattr(torch.ops.analogc, name)
        y: Tensor = op(*tensors, *self.geometry, self.spec.to_text(), key)
        return y


def patches(x: Tensor, layer: Layer) -> Tensor:
    """im2col in any number of dims: ``[B, *out, C, *kernel]``, by plain indexing."""
    dims = len(layer.kernel)
    x = F.pad(x, [amount for side in reversed(layer.padding) for amount in (side, side)])
    for d in reversed(range(dims)):
        step, tap, width = layer.stride[d], layer.dilation[d], layer.kernel[d]
        count = (x.shape[2 + d] - tap * (width - 1) - 1) // step + 1
        index = torch.arange(count)[:, None] * step + torch.arange(width) * tap
        x = x.index_select(2 + d, index.flatten()).unflatten(2 + d, (count, width))
    where = list(range(2, 2 + 2 * dims))
    return x.permute(0, *where[::2], 1, *where[1::2])


def slow(
    layer: Layer,
    tensors: Sequence[Tensor | None],
    held: Programmed | None = None,
    noise: Sequence[Tensor] | None = None,
) -> Tensor:
    """The layer from the decomposed operators, on im2col patches, group by group.

    ``noise`` holds for each row block ``[B, groups, P, N / groups]`` (linear: ``[..., N]``).
    """
    x, weight, bias, input_range, adc_range = tensors
    assert x is not None and weight is not None
    spec = layer.spec
    held = held or tiles.stateless(weight, spec)
    # Straight through programming: the value is what the tiles hold, the gradient the weight's.
    normal = (weight.flatten(1) / held.scale[:, None]).to(held.scale.dtype)
    matrix = reference.flat_weight(held, weight.shape, spec) + (normal - normal.detach())
    if not layer.kernel:
        blocks = [matrix[:, a:b] for a, b in spec.blocks]
        return reference.linear(x, blocks, held.scale, bias, input_range, adc_range, spec, noise)
    outputs = []
    for g, part in enumerate(x.chunk(layer.groups, dim=1)):
        columns = slice(g * layer.out, (g + 1) * layer.out)
        wide = (
            adc_range[:, columns] if adc_range is not None and adc_range.dim() == 2 else adc_range
        )
        found = patches(part, layer)
        size = found.shape[1 : 1 + len(layer.kernel)]
        y = reference.linear(
            found.flatten(1 + len(size)).flatten(1, len(size)),
            [matrix[columns, a:b] for a, b in spec.blocks],
            held.scale[columns],
            None if bias is None else bias[columns],
            input_range,
            wide,
            spec,
            None if noise is None else [draw[:, g] for draw in noise],
        )
        outputs.append(y.mT.unflatten(-1, size))
    return torch.cat(outputs, dim=1)


def gradients(y: Tensor, tensors: Sequence[Tensor | None], grad: Tensor) -> list[Tensor]:
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    return list(torch.autograd.grad(y, wanted, grad))


def assert_agree(layer: Layer, dtype: torch.dtype = torch.float64, rtol: float = 1e-12) -> None:
    """Output and all gradients of the operator are those of the decomposition."""
    tensors = layer.tensors(dtype)
    fast, exact = layer.run(tensors), slow(layer, tensors)
    grad = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    assert_near(fast, exact, rtol)
    for ours, theirs in zip(
        gradients(fast, tensors, grad), gradients(exact, tensors, grad), strict=True
    ):
        assert_near(ours, theirs, rtol)


def assert_near(found: Tensor, expected: Tensor, rtol: float) -> None:
    peak = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * peak)


DACS = [None, Converter(8), Converter(4, "dynamic"), Converter(3)]
ADCS = [None, Converter(8), Converter(6, per_column=True), Converter(4)]

LINEAR = Layer(20, 30)
CONV1 = Layer(6, 4, (3,), (2,), (1,), (2,), size=(17,))
CONV2 = Layer(6, 4, (3, 2), (2, 1), (1, 2), (1, 2), size=(9, 7))
CONV3 = Layer(4, 3, (2, 3, 1), (1, 2, 1), (1, 0, 1), (2, 1, 1), size=(5, 6, 4), batch=(2,))
LAYERS = {
    "linear": LINEAR,
    "linear-3d-input": replace(LINEAR, batch=(2, 5), cuts=(0.3, 0.5)),
    "linear-vector": replace(LINEAR, batch=(), cuts=(0.5,)),
    "conv1d": replace(CONV1, cuts=(0.5,)),
    "conv1d-cut-in-channel": replace(CONV1, cuts=(0.2, 0.4)),
    "conv2d": CONV2,
    "conv2d-cut-in-channel": replace(CONV2, cuts=(0.3, 0.6)),
    "conv2d-groups": replace(CONV2, groups=2, cuts=(0.3, 0.6)),
    "conv2d-depthwise": replace(CONV2, out=1, channels=1, groups=5),
    "conv2d-depthwise-twice": replace(CONV2, out=2, channels=1, groups=3, cuts=(0.5,)),
    "conv2d-pointwise": replace(CONV2, kernel=(1, 1), dilation=(1, 1), cuts=(0.5,)),
    "conv2d-one-row-blocks": replace(CONV2, channels=1, cuts=tuple(i / 6 for i in range(1, 6))),
    "conv3d": replace(CONV3, cuts=(0.4,)),
    "conv3d-groups": replace(CONV3, groups=2, cuts=(0.5,)),
}


def name_of(value: Converter | None) -> str:
    if value is None:
        return "none"
    return f"{value.bits}-{value.range}" + ("-per-column" if value.per_column else "")


PAIRS = [(dac, adc) for dac in DACS for adc in ADCS if dac or adc]


@pytest.mark.parametrize(("dac", "adc"), PAIRS, ids=name_of)
@pytest.mark.parametrize("name", LAYERS)
def test_operator_and_gradients_equal_the_decomposition(
    name: str, dac: Converter | None, adc: Converter | None
) -> None:
    assert_agree(replace(LAYERS[name], dac=dac, adc=adc))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", ["column", "tensor"])
@pytest.mark.parametrize("device", [GaussianDevice(0), GaussianDevice(0.1)])
@pytest.mark.parametrize("name", ["linear-3d-input", "conv2d-groups"])
def test_bias_scale_and_device_equal_the_decomposition(
    name: str, device: GaussianDevice, scale: str, bias: bool
) -> None:
    extra = {"weight_scale": scale, "device": device}
    assert_agree(replace(LAYERS[name], dac=Converter(6), adc=Converter(6), bias=bias, extra=extra))


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    dims = draw(st.integers(0, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, padding, dilation = each(1, 3), each(1, 3), each(0, 2), each(1, 2)
    size = tuple(
        max(draw(st.integers(1, 7)), d * (k - 1) + 1 - 2 * p)
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    )
    batch = (
        (draw(st.integers(1, 3)),) if dims else tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    )
    bits = st.integers(2, 9)
    dac = draw(st.none() | st.builds(Converter, bits, st.sampled_from(["calibrated", "dynamic"])))
    adc = draw(st.none() | st.builds(Converter, bits, st.just("calibrated"), st.booleans()))
    return Layer(
        draw(st.integers(1, 4)), draw(st.integers(1, 5)), kernel, stride, padding, dilation,
        draw(st.integers(1, 3)) if dims else 1,
        tuple(draw(st.lists(st.floats(0, 1), max_size=4))),
        dac or (None if adc else Converter(5)), adc, draw(st.booleans()), size, batch,
        draw(st.integers(0, 1000)),
    )  # fmt: skip


@given(layers())
@settings(max_examples=120)
def test_any_layer_equals_the_decomposition(layer: Layer) -> None:
    assert_agree(layer)


@pytest.mark.parametrize("dac", [Converter(8), Converter(8, "dynamic")], ids=name_of)
@pytest.mark.parametrize("name", ["linear-3d-input", "conv1d", "conv2d-groups", "conv3d"])
def test_float32_differs_by_one_adc_step_at_most_and_seldom(name: str, dac: Converter) -> None:
    layer = replace(LAYERS[name], dac=dac, adc=Converter(8), out=16, bias=False, batch=(8,))
    tensors = layer.tensors(torch.float32)
    fast = layer.run(tensors).detach().double()
    exact = slow(layer, tensors).detach().double()
    x, weight, _, input_range, adc_range = tensors
    assert x is not None and weight is not None and adc_range is not None
    unit = float(x.detach().abs().max()) if input_range is None else float(input_range.max())
    step = unit * float(adc_range.max()) * float(weight.detach().abs().max()) / 127

    difference = (fast - exact).abs()

    assert float(difference.max()) < 1.001 * step * len(layer.spec.blocks)
    assert float((difference > 1e-5 * exact.abs().max()).double().mean()) < 0.002


def without_converters(layer: Layer, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Simulated and digital output, and the difference of their gradients."""
    tensors = layer.tensors(dtype)
    x, weight, bias = tensors[:3]
    assert x is not None and weight is not None
    spec = layer.spec
    held = tiles.program(weight, spec, NoiseKey(0, "", 0))
    mvm = geometry(spec, weight.shape, *(layer.geometry or ((), (), (), 1)))
    with torch.no_grad():
        found, mask = kernels.forward(mvm, x, held, bias, Ranges(None, None), spec, None)
    assert mask is None
    if layer.kernel:
        digital = CONVS[len(layer.kernel)](x, weight, bias, *layer.geometry)
    else:
        digital = F.linear(x, weight, bias)
    grad = torch.randn_like(digital)
    with torch.no_grad():
        ours = kernels.backward(
            mvm, grad, x, weight, held, None, Ranges(None, None), spec, True, True
        )
    theirs = torch.autograd.grad(digital, [x, weight], grad)
    differences = [a - b for a, b in zip(ours, theirs, strict=True) if a is not None]
    return found, digital.detach(), differences


@given(layers())
@settings(max_examples=60)
def test_row_blocks_without_converters_sum_to_the_digital_layer(layer: Layer) -> None:
    bare = replace(layer, dac=None, adc=None)

    found, digital, differences = without_converters(bare, torch.float64)

    torch.testing.assert_close(found, digital, rtol=1e-12, atol=1e-12)
    assert all(float(d.abs().amax()) < 1e-11 for d in differences if d.numel())


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv2d-groups", "conv3d"])
def test_own_im2col_is_that_of_a_convolution(name: str) -> None:
    layer = LAYERS[name]
    x, weight, bias = layer.tensors(torch.float64)[:3]
    assert x is not None and weight is not None

    found = patches(x, replace(layer, groups=1)).unflatten(
        1 + len(layer.kernel), (layer.groups, -1)
    )
    grouped = weight.unflatten(0, (layer.groups, -1)).flatten(2)
    y = torch.einsum("b...gk,gnk->b...gn", found.flatten(2 + len(layer.kernel)), grouped)
    y = y.flatten(-2) + (0 if bias is None else bias)

    digital = CONVS[len(layer.kernel)](x, weight, bias, *layer.geometry)
    torch.testing.assert_close(y.movedim(-1, 1), digital)


@pytest.mark.parametrize("dac", [Converter(6), Converter(6, "dynamic")], ids=name_of)
@pytest.mark.parametrize("name", ["conv2d", "conv2d-cut-in-channel", "conv2d-groups"])
def test_reference_conv_is_the_decomposition(name: str, dac: Converter) -> None:
    layer = replace(LAYERS[name], dac=dac, adc=Converter(6, per_column=True))
    tensors = layer.tensors(torch.float64)
    x, weight, bias, input_range, adc_range = tensors
    assert x is not None and weight is not None
    held = tiles.stateless(weight, layer.spec)

    found = reference.conv(
        x, held, bias, input_range, adc_range, layer.spec, weight.shape, *layer.geometry
    )

    torch.testing.assert_close(found, slow(layer, tensors), rtol=1e-13, atol=1e-13)


# -- output noise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("adc", [None, Converter(8)], ids=name_of)
@pytest.mark.parametrize("dac", [None, Converter(8), Converter(8, "dynamic")], ids=name_of)
@pytest.mark.parametrize("name", ["linear-3d-input", "conv2d-groups", "conv3d"])
def test_output_noise_is_added_to_the_partial_sums(
    name: str, dac: Converter | None, adc: Converter | None
) -> None:
    extra = {"output_noise": 0.3, "device": GaussianDevice(0.05)}
    layer = replace(LAYERS[name], dac=dac, adc=adc, extra=extra)
    tensors = layer.tensors(torch.float64)
    fc = TileArray("fc", f"kernels/{name}/{dac}/{adc}", layer.spec, NoiseSource(7))

    first = layer.run(tensors, fc.key)
    second = layer.run(tensors, fc.key)

    for call, found in enumerate((first, second)):
        # One matrix for a row block: a row for each vector or output pixel, a column for each
        # output.
        columns = found.shape[1] if layer.kernel else found.shape[-1]
        noise = []
        for r in range(len(layer.spec.blocks)):
            drawn = philox.normals(
                NoiseKey(7, "read/fc", 0).bits, r, call, found.numel() // columns, columns
            )
            draw = torch.from_numpy(drawn).to(found.dtype) * 0.3
            if layer.kernel:
                draw = draw.view(len(found), -1, layer.groups, layer.out).movedim(2, 1)
            else:
                draw = draw.view(found.shape)
            noise.append(draw)
        exact = slow(layer, tensors, fc.programmed, noise)
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    assert not torch.equal(first, second)


def test_noise_passes_gradients_where_the_noisy_sum_did_not_clip() -> None:
    layer = replace(LINEAR, adc=Converter(4), extra={"output_noise": 1.0}, cuts=(0.5,))
    tensors = layer.tensors(torch.float64)
    fc = TileArray("fc", "kernels/noisy-gradient", layer.spec, NoiseSource(3))
    found = layer.run(tensors, fc.key)

    rows, columns = found.shape
    noise = [
        NoiseKey(3, "read/fc", 0).matrix(r, rows, columns, found.dtype, found.device)
        for r in range(2)
    ]
    exact = slow(layer, tensors, fc.programmed, noise)

    grad = torch.randn_like(found)
    for ours, theirs in zip(
        gradients(found, tensors, grad), gradients(exact, tensors, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# -- details --------------------------------------------------------------------------------------


def test_gradient_is_zero_where_a_converter_clips() -> None:
    spec = LayerSpec((0, 2), Converter(8), Converter(8)).to_text()
    x = torch.tensor([[0.5, 3.0], [0.5, -3.0], [0.5, 0.5]], requires_grad=True)
    weight = torch.tensor([[1.0, 1.0]], requires_grad=True)

    # Input range 1: the threes clip. ADC range 0.9: the sum of 1.5 clips, that of -0.5 does not.
    y = torch.ops.analogc.linear(
        x, weight, None, torch.tensor([1.0]), torch.tensor([0.9]), spec, ""
    )
    y.sum().backward()

    assert x.grad is not None and weight.grad is not None
    assert x.grad.tolist() == [[0, 0], [1, 0], [0, 0]]
    torch.testing.assert_close(weight.grad, torch.tensor([[64 / 127, -1.0]]))


def test_mask_tells_where_the_adc_did_not_clip() -> None:
    spec = LayerSpec((0, 1, 2), adc=Converter(8))
    held = tiles.program(torch.ones(1, 2), spec, NoiseKey(0, "", 0))
    x = torch.tensor([[0.5, 0.5], [2.0, 0.5], [-2.0, 2.0]])

    _, mask = kernels.forward(
        DenseMVM(spec), x, held, None, Ranges(None, torch.tensor([1.0, 1.0])), spec, None, True
    )

    assert mask is not None
    assert mask[..., 0].tolist() == [[True, False, False], [True, True, False]]


def test_static_convolutions_build_no_patches() -> None:
    shape = torch.Size([4, 2, 3, 3])
    args: tuple[Any, ...] = (shape, [1, 1], [0, 0], [1, 1], 1)

    assert type(geometry(LayerSpec((0, 18), Converter()), *args)) is ConvMVM
    assert type(geometry(LayerSpec((0, 18), Converter(range="dynamic")), *args)) is PatchMVM
    assert type(geometry(LayerSpec((0, 18)), torch.Size([4, 18]), [], [], [], 1)) is DenseMVM


def test_inputs_and_tiles_are_left_as_they_were() -> None:
    for name in ("linear", "conv2d", "conv2d-depthwise"):
        for dac in (None, Converter(4), Converter(4, "dynamic")):
            layer = replace(LAYERS[name], dac=dac, adc=Converter(4))
            tensors = layer.tensors(torch.float64)
            before = [None if t is None else t.detach().clone() for t in tensors]
            fc = TileArray("fc", f"kernels/untouched/{name}/{dac}", layer.spec, NoiseSource(0))
            assert tensors[1] is not None
            blocks = [block.clone() for block in fc.current(tensors[1]).blocks]

            layer.run(tensors, fc.key).sum().backward()

            for tensor, old in zip(tensors, before, strict=True):
                assert (tensor is None and old is None) or torch.equal(tensor, old)  # type: ignore[arg-type]
            assert fc.programmed is not None
            assert all(map(torch.equal, fc.programmed.blocks, blocks))
