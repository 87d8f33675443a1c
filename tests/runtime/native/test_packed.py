"""Packed weights: what goes in comes out, and packing that again gives the same bytes."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analogc.runtime.native.layer import Format, Packed
from analogc.runtime.native.loader import Library

from .oracle import Case, cases

pytestmark = pytest.mark.usefixtures("native")


def pack(weight: torch.Tensor, case: Case, format: str) -> Packed:
    kind = "int16" if format == "int16" else "float32"
    return Packed.pack(weight, case.spec.rows, case.kernel, case.groups, 8, kind)  # type: ignore[arg-type]


@given(cases(st.sampled_from([0, 1, 2, 3])), st.floats(-40, 35))
def test_round_trip(case: Case, size: float) -> None:
    weight = torch.randn(case.columns, case.inputs) * 10.0**size
    exact = pack(weight, case, "float32")
    assert torch.equal(exact.unpack(), weight)

    packed = pack(weight, case, "int16")
    again = pack(packed.unpack(), case, "int16")
    assert torch.equal(again.data, packed.data) and torch.equal(again.step, packed.step)
    half = packed.step[:, None] / 2
    assert ((packed.unpack() - weight).abs() <= half * (1 + 1e-2)).all()


def test_unpack_scaled_is_unpack_times_alpha() -> None:
    packed = Packed.pack(torch.randn(70, 45), (0, 13, 45), (3, 3), 1, 8)
    alpha = torch.rand(70) + 1

    assert torch.equal(packed.unpack_scaled(alpha), packed.unpack() * alpha[:, None])


@pytest.mark.parametrize("format", ["int16", "float32"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 12), (130, 33)])
def test_rows_scaled_is_the_same_transposed(
    shape: tuple[int, int], format: Format, native: Library
) -> None:
    weight, alpha = torch.randn(shape), torch.rand(shape[0]) + 0.5
    cuts = sorted({0, shape[1] // 3, shape[1]})
    packed = Packed.pack(weight, tuple(cuts), dac_bits=8, format=format)
    for name in native.isas:
        native.isa = name
        for rows in (4, shape[1]):
            memory = torch.empty(rows, shape[0])
            for block, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False)):
                for first in range(a, b, rows + rows % 2):
                    found = packed.rows_scaled(alpha, block, first - a, memory)
                    wanted = packed.unpack_scaled(alpha)[:, first : min(b, first + rows)].mT
                    assert torch.equal(found, wanted)
        with pytest.raises(ValueError, match="rows from"):
            packed.rows_scaled(alpha, 0, 1, memory)
    native.isa = native.isas[-1]


def test_format_is_int16_where_that_is_faithful() -> None:
    weight = torch.randn(3, 3000)
    for rows, bits, wanted in [
        ((0, 1500, 3000), 8, "int16"),
        ((0, 3000), 8, "float32"),
        ((0, 1500, 3000), 9, "float32"),
        ((0, 1500, 3000), None, "float32"),
    ]:
        assert Packed.pack(weight, rows, dac_bits=bits).format == wanted
    weight[0, 0] = math.nan
    assert Packed.pack(weight, (0, 1500, 3000), dac_bits=8).format == "float32"
    with pytest.raises(ValueError, match="at most 8 bits"):
        Packed.pack(weight, (0, 3000), dac_bits=9, format="int16")


def test_a_weight_that_is_no_number_voids_its_column() -> None:
    weight = torch.randn(4, 10)
    weight[2, 3] = math.inf
    found = Packed.pack(weight, (0, 10), dac_bits=8, format="int16").unpack()

    assert found.isnan().any(1).tolist() == [False, False, True, False]


def test_memory_is_that_of_the_format() -> None:
    weight = torch.randn(512, 1024)
    rows = (0, 512, 1024)

    assert Packed.pack(weight, rows, dac_bits=8).nbytes == 512 * 1024 * 2 + 512 * 4
    assert Packed.pack(weight, rows).nbytes == 512 * 1024 * 4


def test_pickle() -> None:
    packed = Packed.pack(torch.randn(20, 18), (0, 7, 18), (3, 3), 2, 8)
    twin = pickle.loads(pickle.dumps(packed))

    assert torch.equal(twin.unpack(), packed.unpack())
    assert (twin.rows, twin.taps, twin.groups, twin.format) == ((0, 7, 18), (3, 3), 2, "int16")


@pytest.mark.parametrize("rows", [(0, 17), (0, 19), (1, 18)])
def test_rows_that_do_not_fit(rows: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Packed.pack(torch.randn(4, 18), rows, (3, 3), 1, 8)


@pytest.mark.parametrize("format", ["int16", "float32"])
@pytest.mark.parametrize(
    ("shape", "taps", "groups"),
    [((200, 300), (), 1), ((150, 33, 3, 3), (3, 3), 1), ((96, 40, 3, 3), (3, 3), 3)],
)
def test_threads_change_no_bit(
    shape: tuple[int, ...], taps: tuple[int, ...], groups: int, format: Format
) -> None:
    weight = torch.randn(shape).flatten(1)
    rows = (0, 101, weight.shape[1])
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            packed = Packed.pack(weight, rows, taps, groups, 8, format)
            found.append((packed.data, packed.step, packed.unpack()))
    finally:
        torch.set_num_threads(before)

    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
