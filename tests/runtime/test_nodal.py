from __future__ import annotations

import itertools
import json
import logging
import math
import warnings
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analogc.runtime.nodal import Line, currents, exact, first_order

HERE = Path(__file__).parent / "oracle"
STORED = json.loads((HERE / "ir_drop.json").read_text())
PLAIN = [(16, 16, 1.0, 1.0), (64, 64, 0.35, 0.7), (24, 9, 5.0, 0.5)]
PAIRS = [(16, 16, 1.0, 0.5, 20.0), (40, 12, 0.35, 0.35, 0.0)]
ENDS = [(True, False), (False, True), (True, True)]


def siemens(rows: int, cols: int, planes: int = 1, low: float = 0.1) -> Tensor:
    """Random conductances of 0.1 to 25 uS, ``[1, P, rows, cols]``."""
    shape = (1, planes, rows, cols)
    return (low + (25 - low) * torch.rand(shape, dtype=torch.float64)) * 1e-6


def bottom(segment: float, terminal: float = 0.0) -> Line:
    return Line(segment, first=False, last=True, terminal=terminal)


def relative(found: Tensor, right: Tensor) -> float:
    return float((found - right).abs().max() / right.abs().max())


def graph_currents(g: Tensor, row: Line, col: Line) -> Tensor:
    """The transfer conductances of ``g`` [P, rows, cols] by networkx's Laplacian and a dense solve.

    Lines without resistance are one node.
    """
    planes, rows, cols = g.shape
    net = nx.Graph()

    def name(kind: str, plane: int, i: int, j: int) -> tuple[object, ...]:
        if kind == "row":
            return ("row", plane, i, j if row.segment else 0)
        return ("col", i if col.segment else 0, j)

    def join(a: object, b: object, conductance: float) -> None:
        if a != b:
            before = net.edges[a, b]["weight"] if net.has_edge(a, b) else 0.0
            net.add_edge(a, b, weight=before + conductance)

    driven = [("drive", p, i) for p in range(planes) for i in range(rows)]
    sensed = [("sense", j) for j in range(cols)]
    for p, i, j in itertools.product(range(planes), range(rows), range(cols)):
        join(name("row", p, i, j), name("col", p, i, j), float(g[p, i, j]))
        if row.segment and j:
            join(name("row", p, i, j - 1), name("row", p, i, j), 1 / row.segment)
        if col.segment and i and p == 0:
            join(name("col", p, i - 1, j), name("col", p, i, j), 1 / col.segment)
    for p, i in itertools.product(range(planes), range(rows)):
        for there, at in ((row.first, 0), (row.last, cols - 1)):
            if there:
                join(("drive", p, i), name("row", p, i, at), 1 / row.end)
    for j in range(cols):
        for there, at in ((col.first, 0), (col.last, rows - 1)):
            if there:
                join(("sense", j), name("col", 0, at, j), 1 / col.end)
    inner = [node for node in net if node not in set(driven) | set(sensed)]
    matrix = torch.from_numpy(nx.laplacian_matrix(net, [*driven, *sensed, *inner]).toarray())
    outer = len(driven) + len(sensed)
    a, b, c = matrix[:outer, :outer], matrix[:outer, outer:], matrix[outer:, outer:]
    seen: Tensor = a - b @ torch.linalg.solve(c, b.mT)
    return -seen[: len(driven), len(driven) :].view(planes, rows, cols)


@pytest.mark.parametrize("case", range(len(PLAIN)))
def test_equals_the_stored_currents_of_badcrossbar(case: int) -> None:
    rows, cols, row, col = PLAIN[case]
    rng = np.random.default_rng(case)
    g = torch.from_numpy(0.1 + 25 * rng.random((rows, cols)))
    inputs = torch.from_numpy(rng.standard_normal((3, rows)))

    found = inputs @ exact(g[None, None] * 1e-6, Line(row), bottom(col))[0, 0] * 1e6

    right = torch.tensor(STORED["badcrossbar"]["currents"][case], dtype=torch.float64)
    assert relative(found, right) < 1e-9


@pytest.mark.parametrize("size", [16, 64])
def test_equals_badcrossbar(size: int) -> None:
    # It warns, whatever the filters say, that it has nothing to plot with.
    with warnings.catch_warnings(record=True):
        badcrossbar = pytest.importorskip("badcrossbar", reason="pip install --no-deps badcrossbar")
    logging.getLogger().setLevel(logging.WARNING)
    g = siemens(size, size)
    options = {"r_i_word_line": 1.3, "r_i_bit_line": 0.6, "all_currents": False}

    solved = badcrossbar.compute(np.eye(size), 1 / g[0, 0].numpy(), node_voltages=False, **options)

    right = torch.from_numpy(solved.currents.output)
    assert relative(exact(g, Line(1.3), bottom(0.6))[0, 0], right) < 1e-9


@pytest.mark.parametrize("case", range(len(PAIRS)))
def test_pairs_that_share_a_column_equal_the_stored_currents_of_crosssim(case: int) -> None:
    rows, cols, row, col, terminal = PAIRS[case]
    rng, other = np.random.default_rng(100 + case), np.random.default_rng(200 + case)
    plus = torch.from_numpy(0.1 + 25 * rng.random((rows, cols)))
    inputs = torch.from_numpy(rng.standard_normal((3, rows)))
    minus = torch.from_numpy(0.1 + 25 * other.random((rows, cols)))

    solved = exact(torch.stack([plus, minus])[None] * 1e-6, Line(row), bottom(col, terminal))[0]

    right = torch.tensor(STORED["CrossSim"]["currents"][case], dtype=torch.float64)
    assert relative(inputs @ (solved[0] - solved[1]) * 1e6, right) < 1e-9


@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.sampled_from(ENDS),
    st.sampled_from(ENDS), st.sampled_from([0.0, 0.5, 3e3]), st.sampled_from([0.0, 0.5, 3e3]),
    st.sampled_from([0.0, 40.0]), st.sampled_from([0.0, 40.0]),
)  # fmt: skip
def test_equals_the_network_as_a_graph(
    rows: int, cols: int, planes: int, drive: tuple[bool, bool], sense: tuple[bool, bool],
    row: float, col: float, source: float, load: float,
) -> None:  # fmt: skip
    torch.manual_seed(rows + 10 * cols)
    lines = Line(row, *drive, source), Line(col, *sense, load)
    g = siemens(rows, cols, planes)

    found = exact(g, *lines)[0]

    if all(line.end > 0 for line in lines):
        assert relative(found, graph_currents(g[0], *lines)) < 1e-9
    inputs = torch.randn(2, planes, rows, dtype=torch.float64)
    single = currents(g[0], *lines, inputs, tolerance=1e-13)
    assert relative(torch.einsum("bpk,pkn->bn", inputs, found), single) < 1e-9


def test_one_cell_is_a_series_of_three_resistances() -> None:
    found = exact(torch.full((1, 1, 1, 1), 1 / 40e3).double(), Line(2.0), bottom(3.0))

    assert float(found) == pytest.approx(1 / (40e3 + 5.0), rel=1e-15)


@pytest.mark.parametrize("count", [2, 30, 500])
def test_one_row_is_a_continued_fraction(count: int) -> None:
    g = siemens(1, count)
    row, col = 0.8, 1.7
    # The admittance that the driver sees, from the far end.
    seen = 0.0
    for value in reversed(g.flatten().tolist()):
        seen = 1 / (row + 1 / (1 / (1 / value + col) + seen))

    total = exact(g, Line(row), bottom(col)).sum()

    assert float(total) == pytest.approx(seen, rel=1e-12)


@pytest.mark.parametrize("count", [512, 2048])
def test_a_long_row_tends_to_a_hyperbolic_tangent(count: int) -> None:
    conductance, row = 1 / 50e3, 0.5

    total = float(
        exact(torch.full((1, 1, 1, count), conductance).double(), Line(row), bottom(0)).sum()
    )

    root = math.sqrt(row * conductance)
    assert total == pytest.approx(math.tanh(count * root) * root / row, rel=5e-3)


@pytest.mark.parametrize("sense", ENDS)
@pytest.mark.parametrize("drive", ENDS)
def test_driving_and_sensing_may_be_exchanged(
    drive: tuple[bool, bool], sense: tuple[bool, bool]
) -> None:
    g = siemens(20, 20)
    row, col = Line(1.0, *drive, 5.0), Line(0.3, *sense)

    # Both are square, so that each is solved in its own orientation.
    assert relative(exact(g.mT, col, row).mT, exact(g, row, col)) < 1e-12


@pytest.mark.parametrize("planes", [1, 2])
def test_a_crossbar_turned_round_has_its_terminals_at_the_other_ends(planes: int) -> None:
    g = siemens(12, 7, planes)

    found = exact(g.flip(2, 3), Line(2.0, False, True), Line(0.3)).flip(2, 3)

    torch.testing.assert_close(found, exact(g, Line(2.0), bottom(0.3)), rtol=1e-12, atol=0)


def test_inputs_superpose() -> None:
    g = siemens(32, 24)
    lines = Line(1.0), bottom(1.0)
    inputs = torch.randn(4, 1, 32, dtype=torch.float64)
    solved = exact(g, *lines)[0, 0]

    alone = currents(g[0], *lines, inputs, tolerance=1e-14)

    assert relative(inputs[:, 0] @ solved, alone) < 1e-12


def test_without_resistance_nothing_changes() -> None:
    g = siemens(6, 9)

    assert torch.equal(exact(g, Line(0.0), bottom(0.0)), g)


@pytest.mark.parametrize("ends", ENDS)
def test_the_error_of_the_first_order_form_falls_with_the_square_of_the_resistance(
    ends: tuple[bool, bool],
) -> None:
    g = siemens(24, 16)

    def off(r: float) -> float:
        lines = Line(r, *ends), Line(2 * r, *ends, r)
        return relative(first_order(g, *lines), exact(g, *lines))

    assert off(1e-2) / off(1e-3) == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("ideal", ["rows", "columns"])
def test_the_first_order_form_is_exact_for_lines_of_one_kind(
    ideal: str, planes: int, ends: tuple[bool, bool]
) -> None:
    g = siemens(24, 16, planes)
    g[..., 5, 3] = 0
    lines = Line(100.0, *ends, 3.0), Line(0.0, *ends)
    if ideal == "rows":
        lines = lines[::-1]
    inputs = torch.randn(2, planes, 24, dtype=torch.float64)

    found = torch.einsum("bpk,pkn->bn", inputs, first_order(g, *lines)[0])

    assert relative(found, currents(g[0], *lines, inputs, tolerance=1e-13)) < 1e-11
    assert torch.equal(exact(g, *lines), first_order(g, *lines))


def test_cells_without_conductance_carry_nothing() -> None:
    g = siemens(10, 10)
    g[..., 3, :] = 0
    g[..., 5] = 0

    found = exact(g, Line(1.0), bottom(1.0))

    assert torch.equal(found == 0, g == 0)


def test_strong_lines_do_not_overflow() -> None:
    g = torch.full((1, 1, 300, 200), 1e-3, dtype=torch.float64)

    found = exact(g, Line(1e4), bottom(1e4))

    assert bool(found.isfinite().all()) and float(found.min()) >= 0
    assert float(found[0, 0, -1, 0]) == pytest.approx(float(found.max()))
