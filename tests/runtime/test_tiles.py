from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from analogc import Converter, GaussianDevice
from analogc.errors import SyncError
from analogc.runtime import reference, tiles
from analogc.runtime.noise import NoiseKey, NoiseSource
from analogc.runtime.spec import LayerSpec
from analogc.runtime.stamp import Stamp, version_of
from analogc.runtime.tiles import TileArray

KEY = NoiseKey(0, "program/fc", 0)


def slow_program(weight: Tensor, scale: str) -> tuple[np.ndarray[Any, Any], list[float]]:
    """Normalised weight and scales, one number at a time."""
    flat = weight.detach().double().reshape(len(weight), -1).tolist()
    peaks = [max((abs(value) for value in row), default=0.0) for row in flat]
    if scale == "tensor":
        peaks = [max(peaks)] * len(peaks)
    alpha = [peak if peak > 0 else 1.0 for peak in peaks]
    return np.array([[v / a for v in row] for row, a in zip(flat, alpha, strict=True)]), alpha


# -- programming ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["column", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_program_equals_the_slow_formula(scale: Any, dtype: torch.dtype) -> None:
    weight = torch.randn(5, 7).to(dtype)
    weight[2] = 0

    held = tiles.program(weight, LayerSpec((0, 3, 7), weight_scale=scale), KEY)

    matrix, alpha = slow_program(weight, scale)
    wide = torch.promote_types(dtype, torch.float32)
    assert {held.scale.dtype, *(block.dtype for block in held.blocks)} == {wide}
    assert [tuple(block.shape) for block in held.blocks] == [(5, 3), (5, 4)]
    np.testing.assert_allclose(torch.cat(held.blocks, 1).numpy(), matrix, rtol=1e-6)
    np.testing.assert_allclose(held.scale.numpy(), alpha, rtol=1e-6)


def test_normalised_weights_reach_full_scale_and_no_further() -> None:
    held = tiles.program(torch.randn(6, 40), LayerSpec((0, 40)), KEY)

    assert held.blocks[0].abs().amax(1).tolist() == [1.0] * 6


def test_a_zero_column_has_scale_one() -> None:
    weight = torch.zeros(2, 3)
    weight[1, 0] = -4

    assert tiles.program(weight, LayerSpec((0, 3)), KEY).scale.tolist() == [1.0, 4.0]
    per_tensor = LayerSpec((0, 3), weight_scale="tensor")
    assert tiles.program(weight, per_tensor, KEY).scale.tolist() == [4.0, 4.0]
    assert tiles.program(torch.zeros(2, 3), per_tensor, KEY).scale.tolist() == [1.0, 1.0]


def test_programming_leaves_the_weight_and_its_graph_alone() -> None:
    weight = nn.Parameter(torch.randn(3, 4))
    before = weight.detach().clone()

    held = tiles.program(weight, LayerSpec((0, 4), device=GaussianDevice(0.1)), KEY)

    assert torch.equal(weight, before)
    assert not held.blocks[0].requires_grad and not held.scale.requires_grad
    assert held.blocks[0].data_ptr() != weight.data_ptr()


def test_noise_is_drawn_over_the_whole_matrix_whatever_the_row_blocks() -> None:
    weight = torch.randn(4, 9)
    device = GaussianDevice(0.1)

    whole = tiles.program(weight, LayerSpec((0, 9), device=device), KEY)
    cut = tiles.program(weight, LayerSpec((0, 2, 5, 9), device=device), KEY)

    assert torch.equal(torch.cat(cut.blocks, 1), whole.blocks[0])


@st.composite
def conv_cases(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    channels = draw(st.integers(1, 4))
    rows = channels * math.prod(kernel)
    cuts = draw(st.sets(st.integers(1, rows), max_size=4)) - {rows}
    return (draw(st.integers(1, 4)), channels, *kernel), (0, *sorted(cuts), rows)


@given(conv_cases(), st.integers(0, 99))
def test_conv_blocks_reassemble_to_the_matrix(
    case: tuple[tuple[int, ...], tuple[int, ...]], seed: int
) -> None:
    shape, rows = case
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    spec = LayerSpec(rows, device=GaussianDevice(0.1))

    held = tiles.program(weight, spec, KEY)

    whole = tiles.program(weight.flatten(1), LayerSpec((0, rows[-1]), device=spec.device), KEY)
    assert torch.equal(reference.flat_weight(held, weight.shape, spec), whole.blocks[0])
    for block, (start, stop) in zip(held.blocks, spec.blocks, strict=True):
        first, last = tiles.channel_span(start, stop, math.prod(shape[2:]))
        assert block.shape == (shape[0], last - first, *shape[2:])
        # The taps of neighbouring blocks are zero: the block is a convolution of its own.
        assert int(block.flatten(1).count_nonzero(dim=1).max()) <= stop - start


@pytest.mark.parametrize(
    ("start", "stop", "taps", "span"),
    [
        (0, 9, 9, (0, 1)),
        (0, 10, 9, (0, 2)),
        (8, 9, 9, (0, 1)),
        (9, 27, 9, (1, 3)),
        (4, 6, 1, (4, 6)),
    ],
)
def test_channel_span(start: int, stop: int, taps: int, span: tuple[int, int]) -> None:
    assert tiles.channel_span(start, stop, taps) == span


def test_flat_weight_of_a_linear_layer_joins_its_blocks() -> None:
    weight = torch.randn(3, 8)
    spec = LayerSpec((0, 5, 8))

    held = tiles.program(weight, spec, KEY)

    found = reference.flat_weight(held, weight.shape, spec) * held.scale[:, None]
    torch.testing.assert_close(found, weight)


# -- stamps ---------------------------------------------------------------------------------------


def test_a_stamp_matches_what_it_was_made_of() -> None:
    weight = nn.Parameter(torch.randn(3, 4))

    stamp = Stamp(weight)

    assert stamp.matches(weight)
    assert stamp.matches(weight.detach())


def swap_data(p: nn.Parameter) -> None:
    p.data = p.data.clone()


def swap_dtype(p: nn.Parameter) -> None:
    p.data = p.data.double()


def swap_shape(p: nn.Parameter) -> None:
    p.data = p.data.reshape(4, 3)


def restride(p: nn.Parameter) -> None:
    p.data = p.data.as_strided((3, 4), (1, 3))


def write_in_place(p: nn.Parameter) -> None:
    with torch.no_grad():
        p.add_(1.0)


def write_through_a_view(p: nn.Parameter) -> None:
    with torch.no_grad():
        p[1:2].zero_()


def write_through_an_alias(p: nn.Parameter) -> None:
    p.detach().add_(1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swap_data, "memory was replaced"),
        (swap_dtype, "dtype changed from torch.float32 to torch.float64"),
        (swap_shape, "shape changed"),
        (restride, "strides changed"),
        (write_in_place, "written in place"),
        (write_through_a_view, "written in place"),
        (write_through_an_alias, "written in place"),
    ],
)
def test_a_stamp_notices(change: Callable[[nn.Parameter], None], words: str) -> None:
    weight = nn.Parameter(torch.randn(3, 4))
    stamp = Stamp(weight)

    change(weight)

    assert not stamp.matches(weight)
    assert words in stamp.difference(weight)


def test_a_stamp_notices_freed_and_reused_memory() -> None:
    weight: Tensor | None = torch.randn(64, 64)
    assert weight is not None
    stamp = Stamp(weight)
    del weight
    gc.collect()

    again = [torch.randn(64, 64) for _ in range(50)]

    assert not any(stamp.matches(tensor) for tensor in again)


def test_an_inference_tensor_has_no_version() -> None:
    with torch.inference_mode():
        weight = torch.randn(2, 2)

    assert version_of(weight) == -1
    assert version_of(torch.zeros(1)) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1, foreach=True),
        lambda p: torch.optim.Adam(p, fused=True),
        lambda p: torch.optim.AdamW(p, fused=True),
        lambda p: torch.optim.Adagrad(p, fused=True),
    ],
    ids=["sgd", "sgd-fused", "sgd-foreach", "adam-fused", "adamw-fused", "adagrad-fused"],
)
def test_an_optimizer_step_is_noticed(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    weight, idle = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(2))
    optimizer = make([weight, idle])
    weight.square().sum().backward()
    stamps = Stamp(weight), Stamp(idle)

    optimizer.step()

    assert not stamps[0].matches(weight)
    assert stamps[1].matches(idle)  # it had no gradient, so it was not written


# -- tile arrays ----------------------------------------------------------------------------------

_made = iter(range(10**6))


def array(spec: LayerSpec | None = None, **fields: Any) -> TileArray:
    spec = spec or LayerSpec((0, 4), Converter(range=1.0))
    return TileArray("fc", f"test/{next(_made)}", spec, NoiseSource(0), **fields)


def test_an_array_is_programmed_only_when_its_weight_changed() -> None:
    weight = nn.Parameter(torch.randn(3, 4))
    fc = array()

    first = fc.current(weight)
    assert fc.current(weight) is first
    assert fc.current(weight.detach()) is first
    assert fc.times_programmed == 1

    write_in_place(weight)
    second = fc.current(weight)
    assert second is not first
    assert fc.current(weight) is second
    assert fc.times_programmed == 2

    other = nn.Parameter(weight.detach() + 1)
    fc.current(other)
    assert fc.times_programmed == 3


def assert_holds(held: tiles.Programmed, weight: Tensor) -> None:
    """Within half a step of the native kernels' 16 bits, if it is packed."""
    off = (held.blocks[0] * held.scale[:, None] - weight).abs()
    assert (off <= held.scale[:, None] * (0.51 / 32767)).all()


def test_an_array_holds_the_new_content() -> None:
    weight = nn.Parameter(torch.randn(3, 4))
    fc = array()
    fc.current(weight)

    with torch.no_grad():
        weight.copy_(torch.arange(12.0).view(3, 4))

    held = fc.current(weight)
    assert_holds(held, weight.detach())


def test_each_programming_draws_fresh_noise() -> None:
    weight = torch.randn(3, 4)
    spec = LayerSpec((0, 4), device=GaussianDevice(0.1))
    fc, twin = array(spec), array(spec)

    first, second = fc.write(weight), fc.write(weight)

    assert not torch.equal(first.blocks[0], second.blocks[0])
    assert torch.equal(first.blocks[0], twin.write(weight).blocks[0])


def test_an_inference_tensor_is_programmed_when_its_content_changed() -> None:
    with torch.inference_mode():
        weight = torch.randn(3, 4)
        fc = array()
        fc.current(weight)
        fc.current(weight)
        assert fc.times_programmed == 1
        weight.add_(1)
        held = fc.current(weight)

    assert fc.times_programmed == 2
    assert_holds(held, weight)


def test_equal_content_in_new_memory_is_current() -> None:
    weight = torch.randn(3, 4)
    fc = array()
    fc.current(weight)

    fc.current(weight.clone())
    fc.current(weight.clone())

    assert fc.times_programmed == 1


def test_other_content_in_new_memory_is_noticed() -> None:
    weight = torch.randn(3, 4)
    fc = array()
    fc.current(weight)

    changed = weight.clone()
    changed[0, 0] += 1

    assert not fc.is_current(changed)
    fc.current(changed)
    assert fc.times_programmed == 2


def test_a_copy_of_what_the_old_memory_holds_now_is_not_trusted() -> None:
    weight = torch.randn(3, 4)
    fc = array()
    fc.current(weight)

    weight.add_(1)  # the stamp's alias now holds this content as well
    copy = weight.clone()

    fc.current(copy)
    assert fc.times_programmed == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_weight_of_another_dtype_is_programmed(dtype: torch.dtype) -> None:
    weight = torch.ones(3, 4)
    fc = array()
    fc.current(weight)

    fc.current(weight.to(dtype))

    assert fc.times_programmed == 2


def test_without_auto_sync_a_stale_array_is_an_error_that_names_the_layer() -> None:
    weight = nn.Parameter(torch.randn(3, 4))
    fc = array(auto_sync=False)
    held = fc.current(weight)  # never programmed yet: nothing is stale

    write_in_place(weight)

    with pytest.raises(SyncError, match="layer 'fc' are stale: .* written in place") as caught:
        fc.current(weight)
    assert caught.value.where == "layer fc"
    assert "sync()" in str(caught.value.fix)
    assert fc.programmed is held and fc.times_programmed == 1

    fc.write(weight)
    fc.current(weight)
    assert fc.times_programmed == 2


def test_is_current() -> None:
    weight = nn.Parameter(torch.randn(3, 4))
    fc, ideal = array(), array(LayerSpec((0, 4)))

    assert not fc.is_current(weight)
    assert ideal.is_current(weight)
    fc.current(weight)
    assert fc.is_current(weight)
    write_in_place(weight)
    assert not fc.is_current(weight)


def test_an_adopted_content_is_current() -> None:
    weight = torch.randn(3, 4)
    fc = array()
    held = tiles.stateless(weight, fc.spec)

    fc.adopt(weight, held)

    assert fc.current(weight) is held
    assert fc.times_programmed == 0


def test_each_call_has_its_own_noise_key() -> None:
    fc = array()

    keys = [fc.next_call() for _ in range(3)]

    assert [key.counter for key in keys] == [0, 1, 2]
    assert {key.stream for key in keys} == {"read/fc"}


def test_arrays_are_found_by_key_while_they_live() -> None:
    fc = array()
    key = fc.key
    assert tiles.find(key) is fc

    del fc
    gc.collect()
    assert tiles.find(key) is None
    assert tiles.find("") is None


def test_stateless_programming_is_a_pure_function() -> None:
    weight = torch.randn(3, 4)
    spec = LayerSpec((0, 4), device=GaussianDevice(0.1))

    assert torch.equal(
        tiles.stateless(weight, spec).blocks[0], tiles.stateless(weight, spec).blocks[0]
    )
