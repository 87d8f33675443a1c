from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from analogc import TileMapping
from analogc.errors import FormatError

CONV = TileMapping(
    layer="stem@2",
    array="stem",
    op="conv2d",
    out_features=6,
    in_features=18,
    groups=2,
    row_bounds=(0, 9, 18),
    col_bounds=(0, 3, 6),
    first_tile=5,
    tile_rows=10,
    tile_cols=8,
    columns_per_weight=2,
    weight_shape=(12, 2, 3, 3),
    macs=1234,
    module="stem",
    source="conv2d",
)


def test_grid_tiles_and_ids() -> None:
    assert CONV.grid == (2, 2)
    assert CONV.tiles == 8
    assert CONV.tile_ids == range(5, 13)


def test_column_blocks_of_all_groups() -> None:
    assert CONV.all_col_bounds == (0, 3, 6, 9, 12)
    assert dataclasses.replace(CONV, groups=1).all_col_bounds == CONV.col_bounds


def test_utilisation_is_used_cells_over_all_cells() -> None:
    used = 2 * 6 * 18 * 2  # groups x columns x rows x cells a weight

    assert CONV.utilisation == pytest.approx(used / (8 * 10 * 8))


def test_json_round_trip_is_equal() -> None:
    assert TileMapping.from_dict(json.loads(json.dumps(CONV.to_dict()))) == CONV


def test_optional_fields_may_be_missing() -> None:
    data = {k: v for k, v in CONV.to_dict().items() if k not in ("module", "source")}

    assert TileMapping.from_dict(data) == dataclasses.replace(CONV, module="", source="")


@pytest.mark.parametrize(
    "change",
    [
        {"layer": 3},
        {"groups": "2"},
        {"groups": None},
        {"row_bounds": 9},
        {"row_bounds": [0, "9"]},
        {"weight_shape": {"0": 1}},
        {"extra": 1},
    ],
)
def test_wrong_fields_are_format_errors(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="tile mapping"):
        TileMapping.from_dict({**CONV.to_dict(), **change})


@pytest.mark.parametrize("name", ["layer", "array", "groups", "row_bounds", "macs"])
def test_missing_fields_are_format_errors(name: str) -> None:
    data = CONV.to_dict()
    del data[name]

    with pytest.raises(FormatError, match=name):
        TileMapping.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_what_is_no_object_is_a_format_error(data: object) -> None:
    with pytest.raises(FormatError):
        TileMapping.from_dict(data)
