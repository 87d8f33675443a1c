from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from analogc.errors import InputError
from analogc.runtime.nodal import Line, exact
from analogc.runtime.wires import WireResistanceWarning, Wires, first_order_error

ROWS, COLS = (0, 11, 22, 32), (0, 9, 18)


def microsiemens(planes: int = 2, columns: int = 18, rows: int = 32) -> Tensor:
    return 25 * torch.rand(planes, columns, rows)


def tile(g: Tensor) -> Tensor:
    """``[P, N, K]`` uS as a crossbar ``[1, P, K, N]`` S."""
    return g.mT[None].double() * 1e-6


def test_each_tile_of_each_device_is_a_crossbar() -> None:
    wires = Wires(row_resistance=3.0, col_resistance=5.0, sense_resistance=20.0)
    g = microsiemens()

    found = wires.effective(g, ROWS, COLS)[0]

    assert found.dtype == g.dtype and found.shape == g.shape
    lines = Line(3.0), Line(5.0, False, True, 20.0)
    for plane in range(2):
        for k0, k1 in zip(ROWS, ROWS[1:], strict=False):
            for n0, n1 in zip(COLS, COLS[1:], strict=False):
                part = tile(g[plane : plane + 1, n0:n1, k0:k1])
                right = exact(part, *lines)[0].mT * 1e6
                torch.testing.assert_close(
                    found[plane : plane + 1, n0:n1, k0:k1], right.float(), rtol=1e-6, atol=0
                )


def test_adjacent_devices_lie_in_one_crossbar() -> None:
    wires = Wires(row_resistance=3.0, col_resistance=5.0, arrangement="adjacent")
    g = microsiemens(rows=20, columns=8)
    both = torch.stack([g[0], g[1]], 1).flatten(0, 1)  # + - + - ...

    found = wires.effective(g, (0, 20), (0, 8))[0]

    right = exact(tile(both[None]), Line(3.0), Line(5.0, False, True))[0, 0].mT * 1e6
    torch.testing.assert_close(found[0], right[0::2].float())
    torch.testing.assert_close(found[1], right[1::2].float())


def test_devices_on_a_shared_column_see_each_other_s_current() -> None:
    wires = Wires(row_resistance=3.0, col_resistance=5.0, arrangement="shared")
    g = microsiemens(rows=20, columns=8)

    found = wires.effective(g, (0, 20), (0, 8))[0]

    right = exact(tile(g), Line(3.0), Line(5.0, False, True))[0].mT * 1e6
    torch.testing.assert_close(found, right.float())
    alone = dataclasses.replace(wires, arrangement="separate").effective(g, (0, 20), (0, 8))[0]
    assert bool((found < alone).all())


def test_a_reference_column_lies_right_of_the_others_of_its_tile() -> None:
    wires = Wires(row_resistance=3.0, col_resistance=5.0)
    g, reference = microsiemens(planes=1), microsiemens(1, 2)

    found, beside = wires.effective(g, ROWS, COLS, reference)

    assert beside is not None and beside.shape == reference.shape
    for k0, k1 in zip(ROWS, ROWS[1:], strict=False):
        for c, (n0, n1) in enumerate(zip(COLS, COLS[1:], strict=False)):
            part = torch.cat([g[:, n0:n1, k0:k1], reference[:, c : c + 1, k0:k1]], 1)
            right = (exact(tile(part), Line(3.0), Line(5.0, False, True))[0].mT * 1e6).float()
            torch.testing.assert_close(found[:, n0:n1, k0:k1], right[:, :-1])
            torch.testing.assert_close(beside[:, c, k0:k1], right[:, -1])


@pytest.mark.parametrize("arrangement", ["separate", "adjacent", "shared"])
@pytest.mark.parametrize("ends", [("left", "bottom"), ("right", "top"), ("both", "both")])
def test_first_order_is_near_exact_in_every_wiring(arrangement: Any, ends: Any) -> None:
    drive, sense = ends
    wires = Wires(1.0, 2.0, 5.0, 9.0, drive, sense, arrangement, method="exact")
    g = microsiemens()

    right = wires.effective(g, ROWS, COLS)[0]
    found = dataclasses.replace(wires, method="first-order").effective(g, ROWS, COLS)[0]

    assert float((right - found).abs().max()) < 0.1 * float((g - right).abs().max())
    assert not torch.equal(right, found)


def test_rows_that_are_driven_at_both_ends_lose_less() -> None:
    g = microsiemens()
    one = Wires(5.0, 5.0).effective(g, ROWS, COLS)[0]
    two = Wires(5.0, 5.0, drive="both").effective(g, ROWS, COLS)[0]

    assert float(one.sum()) < float(two.sum()) < float(g.sum())


def test_without_resistance_it_is_the_conductances_themselves() -> None:
    g = microsiemens()

    assert Wires(0.0, 0.0).is_ideal
    assert Wires(0.0, 0.0).effective(g, ROWS, COLS)[0] is g


def test_a_value_that_is_not_finite_spoils_its_tile_and_no_other() -> None:
    g = microsiemens()
    g[1, 2, 3] = torch.nan

    found = Wires().effective(g, ROWS, COLS)[0]

    spoilt = found.isnan()
    assert bool(spoilt[1, :9, :11].all())
    assert int(spoilt.sum()) == 9 * 11


@pytest.mark.parametrize("shape", [(2, 0, 4), (2, 4, 0)])
def test_nothing_to_solve(shape: tuple[int, ...]) -> None:
    g = torch.zeros(shape)

    assert Wires().effective(g, (0, max(shape[2], 1)), (0, max(shape[1], 1)))[0] is g


def test_meta_tensors_pass() -> None:
    g = torch.empty(2, 18, 32, device="meta")

    assert Wires().effective(g, ROWS, COLS)[0].shape == g.shape


def test_auto_is_exact_up_to_its_limit() -> None:
    g = microsiemens()
    right, rough = (
        Wires(2.0, 2.0, method=method).effective(g, ROWS, COLS)[0]
        for method in ("exact", "first-order")
    )

    assert torch.equal(Wires(2.0, 2.0, exact_limit=11).effective(g, ROWS, COLS)[0], right)
    # Blocks have 11, 11 and 10 rows.
    beyond = Wires(2.0, 2.0, exact_limit=10).effective(g, ROWS, COLS)[0]
    assert torch.equal(beyond[..., 22:], right[..., 22:])
    assert torch.equal(beyond[..., :22], rough[..., :22])


def test_auto_warns_where_the_first_order_form_is_off() -> None:
    wires = Wires(60.0, 60.0, exact_limit=8)
    g = microsiemens()
    error = first_order_error(g[0].mT, wires)
    assert error > 0.01

    with pytest.warns(WireResistanceWarning, match=r"32 x 18 crossbars .* off by about"):
        wires.effective(g, (0, 32), (0, 18))


def test_the_estimated_error_is_that_of_the_currents() -> None:
    wires = Wires(4.0, 2.0)
    g = microsiemens(1, 48, 64)[0].double()
    right = exact(tile(g[None]), wires.row, wires.col)[0, 0]
    found = (
        Wires(4.0, 2.0, method="first-order").effective(g[None], (0, 64), (0, 48))[0][0].mT * 1e-6
    )
    inputs = torch.cat([torch.rand(50, 64), torch.randn(50, 64)]).double()

    errors = ((inputs @ (found - right)).norm(dim=1) / (inputs @ right).norm(dim=1)).sort().values

    assert errors[10] < first_order_error(g.mT, wires) < 2 * errors[-1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("row_resistance", -1.0),
        ("col_resistance", float("nan")),
        ("source_resistance", "1"),
        ("sense_resistance", True),
        ("drive", "top"),
        ("sense", "left"),
        ("arrangement", "interleaved"),
        ("method", "spice"),
        ("exact_limit", 1.5),
        ("exact_limit", -1),
    ],
)
def test_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"Wires.{field}"):
        Wires(**{field: value})  # type: ignore[arg-type]


def test_json_round_trip() -> None:
    wires = Wires(1.0, 2.0, 3.0, 4.0, "both", "top", "shared", "exact", 64)

    assert Wires(**json.loads(json.dumps(dataclasses.asdict(wires)))) == wires


def test_a_long_solve_shows_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("analogc.runtime.progress.MOMENT", -1.0)

    Wires().effective(microsiemens(), ROWS, COLS)

    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("tiny", [1e-300, 1e-40, 1e-15])
@pytest.mark.parametrize("terminal", [0.0, 1e-300, 1e-3, 100.0])
@pytest.mark.parametrize("ends", [("left", "bottom"), ("both", "both")])
def test_resistance_that_is_next_to_nothing_is_none(
    tiny: float, terminal: float, ends: Any
) -> None:
    drive, sense = ends
    g = microsiemens()
    for row, col in ((tiny, 1.0), (1.0, tiny), (tiny, tiny)):
        wires = Wires(row, col, terminal, terminal, drive, sense, method="exact")
        without = dataclasses.replace(
            wires,
            row_resistance=0.0 if row == tiny else row,
            col_resistance=0.0 if col == tiny else col,
        )

        found = wires.effective(g, ROWS, COLS)[0]

        torch.testing.assert_close(found, without.effective(g, ROWS, COLS)[0])
