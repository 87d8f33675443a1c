"""The native forward pass against the float64 oracle, and what must not change a bit of it."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from analogc import Converter
from analogc.runtime.native.layer import Packed, forward
from analogc.runtime.native.loader import Library
from analogc.runtime.spec import LayerSpec

from .oracle import Case, Layer, cases

pytestmark = pytest.mark.usefixtures("native")
# The fixture is put back after all examples, not after each.
fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
CONV = Case(
    out=64, channels=24, kernel=(3, 3), size=(9, 7), stride=(1, 1), padding=(1, 1),
    dilation=(1, 1), rows=(100,), noise=0.2,
)  # fmt: skip
LINEAR = Case(out=100, channels=300, batch=33, rows=(101, 200), noise=0.2)


def bits(y: Tensor) -> Tensor:
    return y.contiguous().view(torch.int32)


def check(layer: Layer) -> None:
    y, mask = layer.run(want_mask=True)
    wanted, loose, t = layer.expected()
    assert loose.mean() < 0.1, "the oracle must decide nearly all outputs"
    found = layer.as_vectors(y)
    close = np.abs(found - wanted) <= 2e-5 * (1 + np.abs(wanted).max())
    assert (close | loose).all()
    assert (mask is None) == (layer.case.adc is None)
    if mask is not None:
        assert layer.case.adc is not None
        levels = layer.case.adc.levels
        for block, inputs in zip(mask, t, strict=True):
            clear = np.abs(np.abs(inputs) - levels) > 1e-3 * levels
            inside = layer.as_vectors(block.float()) > 0
            assert (inside == (np.abs(inputs) <= levels))[clear].all()


@fuzz
@given(cases(st.just(0)))
def test_linear_is_what_the_oracle_says(case: Case) -> None:
    check(Layer(case))


@fuzz
@given(cases(st.sampled_from([1, 2, 2, 2, 3])))
def test_convolution_is_what_the_oracle_says(case: Case) -> None:
    check(Layer(case))


@pytest.mark.parametrize("dac", [Converter(8), Converter(8, "dynamic"), None])
@pytest.mark.parametrize("change", [
    # An odd number of channels whose taps are no neighbours: int16 pairs would span two of them.
    {"channels": 5, "dilation": (1, 2), "rows": ()},
    {"channels": 7, "dilation": (2, 2), "rows": (20, 31)},
    {"channels": 5, "groups": 3, "out": 20, "rows": (22,)},
    {"channels": 5, "groups": 2, "out": 4, "rows": (22,)},
    {"channels": 3, "rows": (2, 4, 13)},
    {"channels": 40, "out": 300, "rows": (100, 201), "stride": (2, 1)},
])  # fmt: skip
def test_geometries_of_their_own(change: dict[str, Any], dac: Converter | None) -> None:
    for last in (False, True):
        check(Layer(replace(CONV, dac=dac, last=last, **change)))


@fuzz
@given(case=cases(st.sampled_from([0, 1, 2, 2, 3])))
def test_every_instruction_set_and_thread_count_gives_the_same_bits(
    native: Library, case: Case
) -> None:
    layer = Layer(case)
    results = []
    for isa in native.isas:
        native.isa = isa
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(layer.run(want_mask=True))
    torch.set_num_threads(1)

    (first, first_mask), *others = results
    for y, mask in others:
        assert torch.equal(bits(y), bits(first))
        assert (mask is None) == (first_mask is None)
        assert mask is None or first_mask is None or torch.equal(mask, first_mask)


@pytest.mark.parametrize("case", [
    LINEAR, replace(LINEAR, out=16), replace(LINEAR, out=20), replace(LINEAR, out=300),
    replace(LINEAR, format="float32"), replace(CONV, batch=9), replace(CONV, batch=9, out=10),
    replace(CONV, batch=9, groups=8, out=1), replace(CONV, batch=9, dac=Converter(8, "dynamic")),
])  # fmt: skip
@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_batch_gives_its_first_vectors_what_a_small_one_does(
    case: Case, threads: int
) -> None:
    large = Layer(replace(case, batch=40 * case.batch))
    torch.set_num_threads(threads)
    whole, mask = large.run(want_mask=True)
    torch.set_num_threads(1)

    for count in (1, 3, case.batch + 5):
        part, part_mask = large.run(large.x[:count], want_mask=True)
        assert torch.equal(bits(part), bits(whole[:count]))
        assert mask is not None and part_mask is not None
        assert torch.equal(part_mask, mask[:, :count])


@pytest.mark.parametrize("case", [LINEAR, CONV])
def test_noise_is_of_the_key_and_the_call(case: Case) -> None:
    layer = Layer(case)
    y = layer.run(key=5, call=1)[0]

    assert torch.equal(layer.run(key=5, call=1)[0], y)
    assert not torch.equal(layer.run(key=5, call=2)[0], y)
    assert not torch.equal(layer.run(key=5 + (1 << 40), call=1)[0], y)


@pytest.mark.parametrize("last", [False, True])
def test_output_and_mask_have_the_memory_format_of_the_input(last: bool) -> None:
    y, mask = Layer(replace(CONV, last=last)).run(want_mask=True)

    assert mask is not None
    for tensor in (y, mask[0]):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == last
        assert tensor.is_contiguous() != last


@pytest.mark.parametrize("case", [LINEAR, CONV])
def test_strided_and_misaligned_operands(case: Case) -> None:
    layer = Layer(case)
    y = layer.run()[0]
    shifted = torch.empty(layer.x.numel() + 1)[1:].view_as(layer.x).copy_(layer.x)
    strided = layer.x.repeat_interleave(2, dim=-1)[..., ::2]
    assert shifted.data_ptr() % 8 == 4 and not strided.is_contiguous()

    assert torch.equal(layer.run(shifted)[0], y)
    assert torch.equal(layer.run(strided)[0], y)
    data = layer.packed.data
    layer.packed.data = torch.empty(data.numel() + 1, dtype=data.dtype)[1:].copy_(data)
    assert torch.equal(layer.run()[0], y)


def test_leading_dimensions_of_a_linear_layer() -> None:
    layer = Layer(replace(LINEAR, batch=24))
    flat = layer.run()[0]

    assert torch.equal(layer.run(layer.x.view(2, 3, 4, 300))[0], flat.view(2, 3, 4, 100))
    assert layer.run(layer.x[0])[0].shape == (100,)


@pytest.mark.parametrize("case", [LINEAR, CONV, replace(CONV, groups=8, out=1)])
def test_an_empty_batch(case: Case) -> None:
    layer = Layer(case)
    y, mask = layer.run(layer.x[:0], want_mask=True)

    assert y.shape[0] == 0 and mask is not None and mask.shape[1] == 0


def test_ranges_are_read_on_every_call() -> None:
    layer = Layer(replace(LINEAR, noise=0.0))
    before = layer.run()[0]
    assert layer.adc_range is not None and layer.bias is not None
    layer.adc_range *= 0.5
    layer.bias += 1.0

    check(layer)
    assert not torch.equal(layer.run()[0], before)


def test_settings_and_geometry_may_change_between_calls() -> None:
    layer = Layer(replace(CONV, noise=0.0))
    for stride in ((1, 1), (2, 1), (1, 1)):
        layer.case = replace(layer.case, stride=stride)
        check(layer)
    layer.spec = replace(layer.spec, adc=Converter(4))
    layer.case = replace(layer.case, adc=Converter(4))
    check(layer)


def test_the_largest_sums_do_not_overflow(native: Library) -> None:
    # All codes 127, all weights the largest code: 512 rows come within 1 % of 2^31.
    rows = 512
    spec = LayerSpec((0, rows), Converter(8), None)
    packed = Packed.pack(torch.ones(70, rows), (0, rows), (), 1, 8, "int16")
    for sign in (1.0, -1.0):
        x = torch.full((7, rows), sign)
        for isa in native.isas:
            native.isa = isa
            y, _ = forward(x, packed, torch.ones(70), None, torch.ones(1), None, spec)
            torch.testing.assert_close(y, torch.full((7, 70), sign * rows))
    limit = (2**31 - 1) // (127 * rows)
    assert packed.data.max() == min(limit, 32639) and 127 * rows * int(packed.data.max()) < 2**31


def test_a_block_of_more_rows_has_smaller_codes() -> None:
    packed = Packed.pack(torch.ones(3, 2000), (0, 2000), (), 1, 8, "int16")

    assert int(packed.data.max()) == (2**31 - 1) // (127 * 2000)


@pytest.mark.parametrize("format", ["int16", "float32"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["calibrated", "dynamic"])
def test_values_that_are_no_numbers_reach_what_they_drive(
    format: str, value: float, kind: str, native: Library
) -> None:
    dac = Converter(8, "dynamic" if kind == "dynamic" else "calibrated")
    for case in (
        replace(LINEAR, rows=(100,), dac=dac),
        replace(CONV, dac=dac, rows=(9 * 12,)),
        replace(CONV, dac=dac, rows=(), groups=4, out=3, channels=2),
        replace(CONV, dac=dac, rows=(), groups=2, out=20, channels=3, dilation=(1, 2)),
    ):
        layer = Layer(replace(case, format="int16" if format == "int16" else "float32"))
        clean = layer.run()[0]
        where = (1, 2) if not case.kernel else (1, 2, 4, 3)
        layer.x[where] = value
        y, mask = layer.run(want_mask=True)
        hit = reached(layer)
        if kind == "calibrated" and math.isinf(value):
            assert not y.isnan().any(), "a static range clips"
            assert torch.equal(y[~hit], clean[~hit])
            continue
        assert y[hit].isnan().all() and hit.any() and not hit.all()
        assert torch.equal(y[~hit], clean[~hit])
        assert mask is not None and not mask[0][hit].any()
        native.isa = "baseline"
        assert torch.equal(bits(layer.run()[0].nan_to_num(1e9)), bits(y.nan_to_num(1e9)))
        native.isa = native.isas[-1]


def reached(layer: Layer) -> Tensor:
    """Where an output has an input that is no finite number."""
    case = layer.case
    hit = ~np.isfinite(layer.patches()).all(-1)  # [vectors, groups]
    wide = torch.from_numpy(np.repeat(hit, case.out, axis=1))
    if not case.kernel:
        return wide
    return wide.view(case.batch, *layer.out_size, case.columns).movedim(-1, 1)


def test_int16_weights_are_a_faithful_simulation() -> None:
    """Against float32 weights hardly any ADC code moves (no noise, 8-bit converters)."""
    x, weight = torch.randn(256, 512), torch.randn(512, 512)
    weight /= weight.abs().amax(1, keepdim=True)
    spec = LayerSpec((0, 512), Converter(8), Converter(8))
    scale, full = torch.ones(512), torch.tensor([20.0])
    outputs = [
        forward(x, Packed.pack(weight, (0, 512), (), 1, 8, format), scale, None,
                torch.tensor([3.0]), full, spec)[0]
        for format in ("int16", "float32")
    ]  # fmt: skip
    step = 3.0 * 20.0 / 127
    moved = (outputs[0] - outputs[1]).abs() > 0.5 * step

    assert 0 < moved.float().mean() <= 0.01


def test_one_layer_in_many_threads() -> None:
    layer = Layer(CONV)
    inputs = [torch.randn_like(layer.x) for _ in range(8)]
    wanted = [layer.run(x, key=i)[0] for i, x in enumerate(inputs)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: layer.run(inputs[i % 8], key=i % 8)[0], range(64)))

    assert all(torch.equal(y, wanted[i % 8]) for i, y in enumerate(found))


def test_a_copy_of_packed_weights_stands_alone() -> None:
    layer = Layer(LINEAR)
    y = layer.run()[0]
    twin = copy.deepcopy(layer.packed)
    layer.packed.data.zero_()
    layer.packed = twin

    assert torch.equal(layer.run()[0], y)


def test_input_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Layer(CONV).run(torch.randn(1, 7, 9, 9))
    with pytest.raises(ValueError, match="does not fit"):
        Layer(LINEAR).run(torch.randn(1, 299))
