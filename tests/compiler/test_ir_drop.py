from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import analogc
from analogc import Converter, GaussianDevice, Target, TileSpec
from analogc.compiler.target_text import target_text
from analogc.errors import InputError
from analogc.runtime import wires as wires_module
from analogc.runtime.devices.cell import Cell
from analogc.runtime.nodal import Line, exact
from analogc.runtime.solved import forget
from analogc.runtime.wires import Wires

WIRES = Wires(row_resistance=8.0, col_resistance=4.0)


@pytest.fixture(autouse=True)
def nothing_solved() -> None:
    forget()


def target(**fields: Any) -> Target:
    given = {"cell": Cell(mode="pair", g_min=1.0, g_max=100.0), "wires": WIRES, **fields}
    return Target("ohmic", TileSpec(16, 8), dac=None, adc=None, **given)


def solved(weight: Tensor, cell: Cell, rows: int = 16, cols: int = 8) -> Tensor:
    """What crossbars make of a weight ``[N, K]``, in its own units."""
    scale = weight.abs().amax(dim=1, keepdim=True).double()
    w = weight.double() / scale
    sides = torch.stack([w.clamp(min=0), (-w).clamp(min=0)])
    g = (cell.g_min + sides * (cell.g_max - cell.g_min)) * 1e-6
    lines = Line(8.0), Line(4.0, False, True)
    t = torch.cat(
        [
            torch.cat(
                [exact(tile.mT[:, None], *lines)[:, 0].mT for tile in strip.split(rows, 2)], 2
            )
            for strip in g.split(cols, 1)
        ],
        dim=1,
    )
    return ((t[0] - t[1]) * 1e6 / (cell.g_max - cell.g_min) * scale).float()


def test_a_linear_layer_computes_with_what_its_tiles_transfer() -> None:
    model, x = nn.Linear(32, 16).eval(), torch.randn(5, 32)
    compiled = analogc.compile(model, (x,), target=target())

    wanted = solved(model.weight.detach(), target().cell)

    torch.testing.assert_close(compiled(x), F.linear(x, wanted, model.bias), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(compiled(x), model(x), atol=1e-3)


def test_each_group_of_a_convolution_has_tiles_of_its_own() -> None:
    model, x = nn.Conv2d(8, 8, (2, 2), groups=2).eval(), torch.randn(2, 8, 5, 5)
    compiled = analogc.compile(model, (x,), target=target())

    flat = model.weight.detach().flatten(1)
    wanted = solved(flat, target().cell, 16, 4).view_as(model.weight)

    right = F.conv2d(x, wanted, model.bias, groups=2)
    torch.testing.assert_close(compiled(x), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["pair", "pair-two-sided", "offset"])
@pytest.mark.parametrize("arrangement", ["separate", "adjacent", "shared"])
def test_less_resistance_is_nearer_to_none(mode: Any, arrangement: Any) -> None:
    model, x = nn.Linear(32, 16).eval(), torch.randn(64, 32)
    cell = Cell(mode=mode, devices=2)
    bare = analogc.compile(model, (x,), target=target(cell=cell, wires=None))(x).detach()

    errors = []
    for resistance in (10.0, 1.0, 0.1, 1e-6):
        wires = Wires(resistance, resistance, arrangement=arrangement)
        compiled = analogc.compile(model, (x,), target=target(cell=cell, wires=wires))
        errors.append(float((compiled(x).detach() - bare).norm() / bare.norm()))

    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-3
    assert errors[-1] < 1e-5


def test_only_a_changed_weight_is_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(g: Tensor, row: Line, col: Line) -> Tensor:
        calls.append(g.shape[0])
        return exact(g, row, col)

    monkeypatch.setattr(wires_module, "exact", counted)
    last = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), last).eval()
    x = torch.randn(3, 16)
    compiled = analogc.compile(model, (x,), target=target())
    compiled(x)
    calls.clear()

    compiled(x)
    assert calls == []
    with torch.no_grad():
        last.weight.mul_(-1)
    compiled(x)
    assert calls == [2]  # one tile, two devices a weight
    compiled(x)
    assert calls == [2]


def test_a_changed_column_leaves_the_tiles_of_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(g: Tensor, row: Line, col: Line) -> Tensor:
        calls.append(g.shape[0])
        return exact(g, row, col)

    monkeypatch.setattr(wires_module, "exact", counted)
    model, x = nn.Linear(32, 16).requires_grad_(False), torch.randn(3, 32)
    compiled = analogc.compile(model, (x,), target=target())
    compiled(x)
    assert sum(calls) == 8  # 2 x 2 tiles, two devices a weight
    calls.clear()

    model.weight[3] *= torch.linspace(0.5, 1.0, 32)
    compiled(x)
    assert sum(calls) == 4

    # Neither do other converters ask for it again.
    analogc.compile(model, (x,), target=target().replace(adc=Converter(6)))(x)
    assert sum(calls) == 4
    wanted = solved(model.weight, target().cell)
    torch.testing.assert_close(compiled(x), F.linear(x, wanted, model.bias), rtol=1e-4, atol=1e-5)


def test_drifted_conductances_are_solved() -> None:
    model, x = nn.Linear(16, 8, bias=False).requires_grad_(False), torch.randn(3, 16)
    device = GaussianDevice(sigma=0.0, drift_nu=0.05)
    compiled = analogc.compile(model, (x,), target=target(device=device))
    fresh = compiled(x)

    compiled.drift_to(86400.0)
    drifted = compiled(x)
    compiled.drift_to(0.0)

    factor = ((86400.0 + 20.0) / 20.0) ** -0.05
    lost, lost_later = 1 - fresh / model(x), 1 - drifted / (factor * model(x))
    # Less current, less drop.
    assert float(lost_later.median()) < 0.8 * float(lost.median())
    assert torch.equal(compiled(x), fresh)


def test_a_file_keeps_what_was_solved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, x = nn.Linear(32, 16).eval(), torch.randn(5, 32)
    compiled = analogc.compile(model, (x,), target=target())
    right = compiled(x)
    compiled.save(tmp_path / "model.safetensors")

    forget()
    monkeypatch.setattr(wires_module, "exact", None)
    loaded = analogc.load(tmp_path / "model.safetensors")

    assert torch.equal(loaded(x), right)
    assert torch.equal(copy.deepcopy(compiled)(x), right)


def test_gradients_go_through_what_the_tiles_transfer() -> None:
    model, x = nn.Linear(16, 8, bias=False), torch.randn(3, 16, requires_grad=True)
    compiled = analogc.compile(model, (x,), target=target())

    compiled(x).sum().backward()

    assert x.grad is not None and model.weight.grad is not None
    wanted = solved(model.weight.detach(), target().cell)
    torch.testing.assert_close(x.grad, wanted.sum(0).expand(3, 16), rtol=1e-4, atol=1e-5)


def test_calibrated_ranges_allow_for_the_drop() -> None:
    model, x = nn.Linear(16, 8, bias=False).requires_grad_(False), torch.randn(500, 16)
    ranges = []
    for wires in (None, Wires(200.0, 200.0)):
        given = target(wires=wires).replace(adc=Converter(8))
        compiled = analogc.compile(model, (x,), target=given)
        ranges.append(float(next(b for n, b in compiled.named_buffers() if "adc" in n).max()))
        error = (compiled(x) - F.linear(x, compiled.weights["weight"].programmed())).norm()
        assert float(error) < 0.02 * float(compiled(x).norm())

    assert ranges[1] < 0.9 * ranges[0]


def test_pictures_say_what_the_lines_have() -> None:
    assert "lines of 8 and 4 Ω a cell" in target_text(target())


def test_float64() -> None:
    model, x = nn.Linear(16, 8).double().eval(), torch.randn(3, 16, dtype=torch.float64)
    compiled = analogc.compile(model, (x,), target=target())

    wanted = solved(model.weight.detach().float(), target().cell).double()

    torch.testing.assert_close(compiled(x), F.linear(x, wanted, model.bias), rtol=1e-5, atol=1e-6)


def test_weights_without_conductances_have_no_ir_drop() -> None:
    with pytest.raises(InputError, match=r"Target.wires.*\n?.*Cell\(mode='pair'"):
        target(cell=Cell())


def test_text_of_a_target_keeps_its_wires() -> None:
    given = target(wires=Wires(1.0, 2.0, drive="both", arrangement="shared"))

    assert Target.from_json(given.to_json()) == given
