from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from analogc import Target, TileMapping, TileSpec
from analogc.passes.base import META
from analogc.passes.map_tiles import MapTiles, bounds, row_bounds
from analogc.runtime.mapping import Digital

if TYPE_CHECKING:
    from tests.passes.conftest import Lower, Lowered, Make

BEFORE = "inline-regions,canonicalize,fold-batch-norm,select-analog,derive-weights"


def sizes(cuts: tuple[int, ...]) -> list[int]:
    return [b - a for a, b in itertools.pairwise(cuts)]


# -- cutting --------------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.integers(1, 700), st.booleans())
@settings(max_examples=200)
def test_blocks_cover_in_order_and_are_the_fewest_that_fit(
    size: int, most: int, full: bool
) -> None:
    cuts = bounds(size, most, full)

    assert (cuts[0], cuts[-1]) == (0, size)
    assert all(0 < block <= most for block in sizes(cuts))
    assert len(cuts) - 1 == math.ceil(size / most)


@given(st.integers(1, 5000), st.integers(1, 700))
def test_balanced_blocks_differ_by_one_at_most(size: int, most: int) -> None:
    blocks = sizes(bounds(size, most))

    assert max(blocks) - min(blocks) <= 1


@given(st.integers(1, 5000), st.integers(1, 700))
def test_full_blocks_are_full_but_the_last(size: int, most: int) -> None:
    assert all(block == most for block in sizes(bounds(size, most, full=True))[:-1])


@given(st.integers(1, 64), st.integers(1, 27), st.integers(1, 700), st.booleans())
@settings(max_examples=200)
def test_conv_rows_are_the_fewest_and_lie_between_channels_where_they_can(
    channels: int, taps: int, most: int, full: bool
) -> None:
    rows = channels * taps

    cuts = row_bounds(rows, taps, most, full)

    assert (cuts[0], cuts[-1]) == (0, rows)
    assert all(0 < block <= most for block in sizes(cuts))
    assert len(cuts) - 1 == math.ceil(rows / most)
    whole_channels = most // taps
    if whole_channels and math.ceil(channels / whole_channels) == math.ceil(rows / most):
        assert all(cut % taps == 0 for cut in cuts)
        blocks = [size // taps for size in sizes(cuts)]
        assert full or max(blocks) - min(blocks) <= 1


@pytest.mark.parametrize(
    ("args", "cuts"),
    [
        ((10, 4), (0, 3, 6, 10)),
        ((10, 4, True), (0, 4, 8, 10)),
        ((4, 4), (0, 4)),
        ((0, 4), (0, 1)),
        ((0, 4, True), (0, 1)),
        ((3, 1), (0, 1, 2, 3)),
    ],
)
def test_blocks_by_hand(args: Any, cuts: tuple[int, ...]) -> None:
    assert bounds(*args) == cuts


@pytest.mark.parametrize(
    ("args", "cuts"),
    [
        ((36, 9, 36), (0, 36)),
        ((36, 9, 20), (0, 18, 36)),  # two channels each
        ((36, 9, 30, True), (0, 27, 36)),
        ((27, 9, 14), (0, 13, 27)),  # one channel each would take three blocks
        ((18, 9, 4), (0, 3, 7, 10, 14, 18)),  # no channel fits
    ],
)
def test_conv_rows_by_hand(args: Any, cuts: tuple[int, ...]) -> None:
    assert row_bounds(*args) == cuts


# -- mapping --------------------------------------------------------------------------------------


def tiled(rows: int, cols: int, columns_per_weight: int = 1) -> Target:
    return Target(tile=TileSpec(rows, cols, columns_per_weight), dac=None, adc=None)


def mappings(lowered: Lowered) -> list[TileMapping]:
    return [
        n.meta[META]
        for n in lowered.module.graph.nodes
        if isinstance(n.meta.get(META), TileMapping)
    ]


def test_printed_form(lower: Lower) -> None:
    lowered = lower(nn.Linear(10, 7), torch.randn(3, 10), target=tiled(4, 4))
    lowered.run(BEFORE)

    assert lowered.run("map-tiles") is False

    assert lowered.ir.splitlines() == [
        "%input_1: f32[3, 10] = input",
        "%linear: f32[3, 7] = aten.linear(%input_1, @weight, @bias) "
        "{3x2 of 4x4, rows 2x3+4, cols 3+4, t0..t5, 72.9 % used}",
        "output = (%linear)",
    ]


def test_a_linear_layer_is_mapped_by_its_shape(lower: Lower) -> None:
    lowered = lower(nn.Sequential(nn.Linear(10, 7)), torch.randn(3, 10), target=tiled(4, 8, 2))
    lowered.run(BEFORE, "map-tiles")

    assert mappings(lowered) == [
        TileMapping(
            layer="0",
            array="0",
            op="linear",
            out_features=7,
            in_features=10,
            groups=1,
            row_bounds=(0, 3, 6, 10),
            col_bounds=(0, 3, 7),
            first_tile=0,
            tile_rows=4,
            tile_cols=8,
            columns_per_weight=2,
            weight_shape=(7, 10),
            macs=3 * 7 * 10,
            module="0",
            source="linear",
        )
    ]


def test_each_group_of_a_conv_is_an_array_of_its_own(lower: Lower) -> None:
    model = nn.Conv2d(4, 12, 3, groups=2)
    lowered = lower(model, torch.randn(2, 4, 6, 6), target=tiled(10, 4))
    lowered.run(BEFORE, "map-tiles")

    (found,) = mappings(lowered)
    assert (found.out_features, found.in_features, found.groups) == (6, 18, 2)
    assert (found.row_bounds, found.col_bounds) == ((0, 9, 18), (0, 3, 6))
    assert (found.grid, found.tiles) == ((2, 2), 8)


def test_depthwise_convolutions_are_no_block_diagonal(lower: Lower) -> None:
    model = nn.Conv2d(8, 8, 3, groups=8)
    lowered = lower(model, torch.randn(2, 8, 6, 6), target=tiled(64, 64))
    lowered.run(BEFORE, "map-tiles")

    (found,) = mappings(lowered)
    assert (found.out_features, found.in_features, found.tiles) == (1, 9, 8)


@pytest.mark.parametrize("split", ["balanced", "full"])
def test_split_is_an_option(split: str, lower: Lower) -> None:
    lowered = lower(nn.Linear(10, 10), torch.randn(3, 10), target=tiled(4, 4))
    lowered.run(BEFORE, f"map-tiles{{split={split}}}")

    cuts = (0, 4, 8, 10) if split == "full" else (0, 3, 6, 10)
    assert [(m.row_bounds, m.col_bounds) for m in mappings(lowered)] == [(cuts, cuts)]


def test_tile_ids_are_disjoint_and_without_gaps(lower: Lower) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3), nn.Flatten(), nn.Linear(96, 5)
    )
    lowered = lower(model, torch.randn(2, 3, 8, 8), target=tiled(16, 4))
    lowered.run(BEFORE, "map-tiles")

    ids = [i for m in mappings(lowered) for i in m.tile_ids]
    assert ids == list(range(len(ids)))
    assert lowered.ctx.tiles == len(ids)


def test_uses_of_one_weight_share_its_tiles(lower: Lower) -> None:
    fc = nn.Linear(4, 4)
    model = nn.Sequential(fc, nn.Linear(4, 4), fc)
    lowered = lower(model, torch.randn(3, 4), target=tiled(2, 2))
    lowered.run(BEFORE, "map-tiles")

    first, other, again = mappings(lowered)
    assert (first.layer, again.layer) == ("0", "0@2")
    assert first.array == again.array and first.tile_ids == again.tile_ids == range(0, 4)
    assert other.tile_ids == range(4, 8)


def test_parts_of_one_parameter_have_tiles_of_their_own(lower: Lower, make: Make) -> None:
    def run(m: Any, x: Tensor) -> list[Tensor]:
        return [F.linear(x, part) for part in m.W.chunk(3)]

    lowered = lower(make(run, W=torch.randn(9, 4)), torch.randn(2, 4))
    lowered.run(BEFORE, "map-tiles")

    assert [m.first_tile for m in mappings(lowered)] == [0, 1, 2]


def test_the_other_graph_of_a_model_uses_the_same_tiles(lower: Lower) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)), torch.randn(3, 4)
    first = lower(model.eval(), x)
    first.run(BEFORE, "map-tiles")
    first.ctx.root.train()
    second = lower(model, x, like=first)
    second.run(BEFORE, "map-tiles")

    assert [m.tile_ids for m in mappings(first)] == [m.tile_ids for m in mappings(second)]
    assert first.ctx.tiles == 2


def test_digital_nodes_are_left_alone(lower: Lower) -> None:
    lowered = lower(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(3, 4))
    lowered.ctx.select = lambda info: False
    lowered.run(BEFORE)
    before = lowered.ir

    assert lowered.run("map-tiles") is False
    assert lowered.ir == before
    assert mappings(lowered) == []
    assert isinstance(lowered.record("aten.linear"), Digital)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 17),
    st.integers(2, 17),
    st.integers(1, 2),
)
def test_every_weight_lies_on_one_tile(
    outputs: int, inputs: int, rows: int, cols: int, columns: int
) -> None:
    spec = TileSpec(rows, cols, columns)
    row_cuts, col_cuts = row_bounds(inputs, 1, rows), bounds(outputs, spec.logical_cols)
    held = torch.zeros(outputs, inputs)

    for (a, b), (c, d) in itertools.product(
        itertools.pairwise(row_cuts), itertools.pairwise(col_cuts)
    ):
        assert b - a <= rows and (d - c) * columns <= cols
        held[c:d, a:b] += 1

    assert bool((held == 1).all())


def test_options_that_are_no_split_are_refused_by_the_text_form(lower: Lower) -> None:
    assert str(MapTiles()) == "map-tiles"
    assert str(MapTiles("full")) == "map-tiles{split=full}"
