"""The native gradient against a float64 one, block by block."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from analogc import Converter
from analogc.runtime.native import conv_backward, gradients, loader
from analogc.runtime.native.backward import backward, serves
from analogc.runtime.native.layer import sizes

from .oracle import Case, Layer, cases

pytestmark = pytest.mark.usefixtures("native")
fuzz = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
Found = tuple[Tensor | None, Tensor | None]

LINEAR = Case(out=100, channels=300, batch=33, rows=(101, 200))
CONV = Case(
    out=32, channels=24, kernel=(3, 3), size=(9, 7), stride=(1, 1), padding=(1, 1),
    dilation=(1, 1), rows=(100, 150), batch=5,
)  # fmt: skip
# Rows cut channels in two; many, few, odd and strided channels; any number of dims.
SHAPES = {
    "linear": LINEAR,
    "one block": replace(LINEAR, rows=()),
    "batch of one": replace(LINEAR, batch=1),
    "conv": CONV,
    "between channels": replace(CONV, rows=(90, 153)),
    "one block of 16": replace(CONV, out=16, channels=16, rows=()),
    "one block of 32": replace(CONV, out=32, channels=32, rows=()),
    "strided": replace(CONV, stride=(2, 1), padding=(0, 2), dilation=(1, 2), rows=(100,)),
    "strided block": replace(CONV, stride=(2, 2), rows=()),
    "channels last": replace(CONV, last=True),
    "channels last block": replace(CONV, last=True, rows=()),
    "1 x 1": replace(CONV, kernel=(1, 1), padding=(0, 0), rows=(7, 20)),
    "channel in three blocks": replace(CONV, rows=(100, 103, 150)),
    "grouped": replace(CONV, groups=3, rows=()),
    "1-d": replace(
        CONV, kernel=(5,), size=(31,), stride=(2,), padding=(3,), dilation=(2,), rows=(33, 61)
    ),
    "3-d": replace(
        CONV, channels=6, kernel=(2, 3, 2), size=(4, 5, 6), stride=(1, 2, 1), padding=(1, 0, 1),
        dilation=(1, 1, 2), rows=(17, 40),
    ),
}  # fmt: skip


class Gradient:
    """A layer with the gradient of its output and the ADCs' mask."""

    def __init__(self, case: Case, clipped: float, grad_last: bool | None = None) -> None:
        self.layer = Layer(case)
        self.case, self.spec, self.packed = case, self.layer.spec, self.layer.packed
        y, _ = self.layer.run()
        generator = torch.Generator().manual_seed(case.seed + 1)
        # Laid out as y, as the forward pass does.
        self.grad = torch.empty_like(y).normal_(generator=generator)
        self.mask = None
        if case.adc is not None:
            passes = torch.rand(len(self.spec.blocks), *y.shape, generator=generator) >= clipped
            self.mask = passes
            if case.last and y.dim() == 4:
                self.mask = passes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)

    def run(self, need_input: bool = True, need_weight: bool = True) -> Found:
        case, layer = self.case, self.layer
        geometry = (case.stride, case.padding, case.dilation)
        return backward(
            self.grad, layer.x, self.packed, layer.alpha, self.mask, layer.input_range, self.spec,
            geometry, need_input, need_weight,
        )  # fmt: skip

    def expected(self) -> tuple[Tensor, Tensor]:
        """In float64: every row block on its own, with the rows of the others 0."""
        case, layer = self.case, self.layer
        x, grad = layer.x.double(), self.grad.double()
        written = self.packed.unpack().double() * layer.alpha.double()[:, None]
        grad_x, grad_w = torch.zeros_like(x), torch.zeros_like(written)
        for r, (start, stop) in enumerate(self.spec.blocks):
            weight = torch.zeros_like(written)
            weight[:, start:stop] = written[:, start:stop]
            passed = grad if self.mask is None else grad * self.mask[r]
            driven, inside = self._driven(r, start, stop)
            if case.kernel:
                shape = (case.columns, case.channels, *case.kernel)
                found = torch.ops.aten.convolution_backward(
                    passed.contiguous(), driven.contiguous(), weight.view(shape), None, case.stride,
                    case.padding, case.dilation, False, [0] * len(case.kernel), case.groups,
                    [True, True, False],
                )  # fmt: skip
                of_x, of_w = found[0], found[1].reshape(written.shape)
            else:
                of_x, of_w = passed @ weight, passed.T @ driven
            grad_x += of_x * inside
            grad_w[:, start:stop] = of_w[:, start:stop]
        return grad_x, grad_w

    def _driven(self, r: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        x, dac = self.layer.x.double(), self.spec.dac
        inside = torch.ones_like(x, dtype=torch.bool)
        if dac is None:
            return x, inside
        if self.layer.input_range is None:
            full = x[:, start:stop].abs().amax(1, keepdim=True)
            full = torch.where(full == 0, 1.0, full)
        else:
            full = self.layer.input_range[r].double()
            inside = x.abs() <= full
            full = torch.where(full == 0, 1.0, full)
        # Codes as the hardware's float arithmetic has them, so that none falls the other way.
        steps = (torch.tensor(float(dac.levels)) / full.float()).float()
        codes = (x.float() * steps).round().clamp(-dac.levels, dac.levels)
        return codes.double() * full / dac.levels, inside

    def check(self) -> None:
        assert serves(self.packed, self.spec)
        wanted = self.expected()
        for need_input in (True, False):
            for need_weight in (True, False):
                found = self.run(need_input, need_weight)
                for needed, ours, true in zip(
                    (need_input, need_weight), found, wanted, strict=True
                ):
                    assert (ours is not None) == needed
                    if ours is not None:
                        ours = ours.reshape(true.shape)
                        size = max(1.0, float(true.abs().max()) if true.numel() else 1.0)
                        torch.testing.assert_close(ours.double(), true, rtol=0, atol=2e-5 * size)


@pytest.mark.parametrize("clipped", [0.0, 0.002, 0.3])
@pytest.mark.parametrize("name", SHAPES)
def test_gradient_is_that_of_each_block_on_its_own(name: str, clipped: float) -> None:
    Gradient(SHAPES[name], clipped).check()


@pytest.mark.parametrize("name", ["linear", "conv", "channels last", "3-d"])
@pytest.mark.parametrize("without", ["adc", "dac", "either"])
def test_gradient_without_converters(name: str, without: str) -> None:
    dac = None if without in ("dac", "either") else Converter(8)
    adc = None if without in ("adc", "either") else Converter(8)
    Gradient(replace(SHAPES[name], dac=dac, adc=adc), 0.002).check()


@fuzz
@given(
    cases(st.sampled_from([0, 1, 2, 3])), st.sampled_from([0.0, 0.01, 0.2]), st.sampled_from([1, 2])
)
def test_gradient_of_any_layer(case: Case, clipped: float, threads: int) -> None:
    gradient = Gradient(replace(case, noise=0.0), clipped)
    if not serves(gradient.packed, gradient.spec):
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        gradient.check()
    finally:
        torch.set_num_threads(before)


def test_blocks_are_joined_unless_many_outputs_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    by_block = conv_backward._Layer.by_block

    def spy(
        self: conv_backward._Layer, grad: Tensor, x: Tensor, masks: Tensor | None
    ) -> conv_backward.Found:
        used.append(self)
        return by_block(self, grad, x, masks)

    monkeypatch.setattr(conv_backward._Layer, "by_block", spy)
    Gradient(CONV, 0.002).run()
    assert not used
    Gradient(CONV, 0.3).run()
    assert len(used) == 1


@pytest.mark.parametrize("name", ["linear", "conv", "channels last"])
def test_what_clips_in_all_blocks_has_no_gradient_at_all(name: str) -> None:
    gradient = Gradient(SHAPES[name], 0.0)
    assert gradient.mask is not None
    gradient.mask[:, 1] = False
    gradient.mask[:, :, 3] = False
    gradient.mask[0, 0, 5] = False
    grad_x, grad_w = gradient.run()
    assert grad_x is not None and grad_w is not None
    assert not grad_x[1].any(), "to the bit"
    assert not grad_w[3].any()
    assert grad_x[0].any() and grad_w[5].any()


@pytest.mark.parametrize("name", ["linear", "conv"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_no_numbers_stay_in_their_blocks(name: str, value: float) -> None:
    case = SHAPES[name]
    gradient = Gradient(case, 0.0)
    assert gradient.mask is not None
    # Not at a border: whether padding times infinity counts is the convolution's choice.
    gradient.grad.view(-1)[31] = value
    gradient.mask[0].view(-1)[31] = False
    wanted = gradient.expected()
    for ours, true in zip(gradient.run(), wanted, strict=True):
        assert ours is not None
        # Sums of infinities meet NaN where codes are 0; which of them is finite is what counts.
        assert torch.equal(ours.reshape(true.shape).isfinite(), true.isfinite())
        assert not bool(true.isfinite().all())


@pytest.mark.parametrize("name", ["conv", "channels last", "1-d", "3-d", "strided"])
@pytest.mark.parametrize("wide", [0, 1])
def test_a_channel_of_two_blocks_clips_for_each_at_its_own_range(name: str, wide: int) -> None:
    gradient = Gradient(SHAPES[name], 0.002)
    ranges = gradient.layer.input_range
    assert ranges is not None
    ranges[:] = 0.4
    ranges[wide::2] = 1.8
    gradient.check()


def test_a_range_of_zero_passes_nothing_but_zeros() -> None:
    gradient = Gradient(CONV, 0.0)
    assert gradient.layer.input_range is not None
    gradient.layer.input_range[1] = 0
    gradient.layer.x[:, ::2] = 0
    gradient.check()


def test_threads_and_instruction_sets_list_the_same(native: loader.Library) -> None:
    torch.manual_seed(2)
    gradient = torch.randn(40_000)
    masks = torch.rand(3, 40_000) > 5e-4
    all_, some = masks.all(0), masks.any(0) & ~masks.all(0)
    for name in native.isas:
        native.isa = name
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found = gradients.mask_blocks(gradient, masks)
            assert found is not None
            assert torch.equal(found[0], gradient * all_)
            assert torch.equal(found[1], some.nonzero().flatten())
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["linear", "conv", "channels last"])
def test_what_is_added_is_the_same_in_any_number_of_threads(name: str) -> None:
    case = SHAPES[name]
    gradient = Gradient(replace(case, batch=400 if name == "linear" else 120), 0.0003)
    assert gradient.mask is not None
    layer = gradient.layer
    found = gradients.mask_blocks(gradient.grad, gradient.mask)
    assert found is not None and len(found[1]) > 32
    weight = layer.packed.unpack_scaled(layer.alpha)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        grad_x, grad_w = torch.zeros_like(layer.x), torch.zeros_like(weight)
        gradients.add_mixed(
            _sizes(gradient), layer.x, layer.input_range, gradient.mask, gradient.grad, found[1],
            weight, grad_x, grad_w,
        )  # fmt: skip
        results.append((grad_x, grad_w))
    torch.set_num_threads(1)
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][1], other[1])
    assert results[0][0].any() and results[0][1].any()


def _sizes(gradient: Gradient) -> loader.Layer:
    case = gradient.case
    geometry = (case.stride, case.padding, case.dilation)
    return sizes(gradient.packed, gradient.spec, gradient.layer.x, case.last, geometry)


@pytest.mark.parametrize("name", SHAPES)
def test_an_empty_batch_has_zero_gradients(name: str) -> None:
    gradient = Gradient(replace(SHAPES[name], batch=0), 0.0)
    grad_x, grad_w = gradient.run()
    assert grad_x is not None and grad_x.shape == gradient.layer.x.shape
    assert grad_w is not None and not grad_w.any()


def test_gradient_in_another_layout_than_the_output() -> None:
    gradient = Gradient(CONV, 0.002)
    wanted = gradient.expected()
    gradient.grad = gradient.grad.to(memory_format=torch.channels_last)
    for ours, true in zip(gradient.run(), wanted, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours.double().reshape(true.shape), true, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("batch", [1, 5])
def test_a_constant_gradient_without_memory_of_its_own(name: str, batch: int) -> None:
    gradient = Gradient(replace(SHAPES[name], batch=batch), 0.002)
    gradient.grad = torch.ones(1).expand_as(gradient.grad)
    gradient.check()


@pytest.mark.parametrize("name", SHAPES)
def test_a_single_sample_may_have_any_stride(name: str) -> None:
    gradient = Gradient(replace(SHAPES[name], batch=1), 0.002)
    gradient.grad = gradient.grad.as_strided(gradient.grad.shape, (7, *gradient.grad.stride()[1:]))
    gradient.check()
