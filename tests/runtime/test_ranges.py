from __future__ import annotations

import math

import pytest
import torch

from analogc import Converter
from analogc.runtime.ranges import RangeTable
from analogc.runtime.spec import LayerSpec

CPU = torch.device("cpu")


def test_calibrated_ranges_start_as_nan_one_for_each_row_block() -> None:
    table = RangeTable()

    names = table.add("fc", LayerSpec((0, 2, 4), Converter(), Converter()), 3, CPU)

    assert names == ("fc_input", "fc_adc")
    for name in ("fc_input", "fc_adc"):
        assert table.get_buffer(name).shape == (2,)
        assert bool(table.get_buffer(name).isnan().all())


def test_per_column_ranges_have_a_value_for_each_column() -> None:
    table = RangeTable()

    table.add("fc", LayerSpec((0, 2, 4), None, Converter(per_column=True)), 3, CPU)

    assert table.get_buffer("fc_adc").shape == (2, 3)


def test_fixed_and_full_ranges_are_filled_in() -> None:
    table = RangeTable()

    table.add("a", LayerSpec((0, 2, 5), Converter(range=0.5), Converter(range="full")), 3, CPU)

    assert table.get_buffer("a_input").tolist() == [0.5, 0.5]
    assert table.get_buffer("a_adc").tolist() == [2.0, 3.0]


@pytest.mark.parametrize("dac", [None, Converter(range="dynamic")])
def test_no_buffer_where_none_is_needed(dac: Converter | None) -> None:
    table = RangeTable()

    assert table.add("fc", LayerSpec((0, 4), dac), 3, CPU) == (None, None)
    assert list(table.buffers()) == []


def test_ranges_that_another_graph_made_are_kept() -> None:
    table = RangeTable()
    spec = LayerSpec((0, 4), Converter(), Converter())
    table.add("fc", spec, 3, CPU)
    table.get_buffer("fc_input").fill_(2.0)

    assert table.add("fc", spec, 3, CPU) == ("fc_input", "fc_adc")
    assert table.get_buffer("fc_input").tolist() == [2.0]


def test_ranges_are_no_part_of_the_state_dict() -> None:
    table = RangeTable()
    table.add("fc", LayerSpec((0, 4), Converter()), 3, CPU)

    assert table.state_dict() == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_ranges_move_with_the_model_but_keep_their_dtype(dtype: torch.dtype) -> None:
    table = RangeTable()
    table.add("fc", LayerSpec((0, 4), Converter(range=1 / 3)), 3, CPU)

    table.to(dtype)
    assert table.get_buffer("fc_input").dtype == torch.float32
    assert math.isclose(float(table.get_buffer("fc_input")), 1 / 3, rel_tol=1e-7)

    table.to("meta")  # where weights lose their memory, ranges keep it
    assert math.isclose(float(table.get_buffer("fc_input")), 1 / 3, rel_tol=1e-7)
