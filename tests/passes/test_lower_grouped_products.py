"""Grouped products. On the CPU torch has the operator for bfloat16 only, so results are coarse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import analogc

if TYPE_CHECKING:
    from tests.passes.conftest import Lower


class Experts(nn.Module):
    """Rows of ``x`` go to the experts that ``choice`` names."""

    def __init__(self, experts: int = 4, turned: bool = False) -> None:
        super().__init__()
        shape = (experts, 8, 16) if turned else (experts, 16, 8)
        self.weight = nn.Parameter(torch.randn(shape, dtype=torch.bfloat16))
        self.turned = turned

    def forward(self, x: Tensor, choice: Tensor) -> Tensor:
        stack = self.weight.mT if self.turned else self.weight
        order = choice.argsort(stable=True)
        ends = (choice[:, None] == torch.arange(len(stack))).sum(0).cumsum(0).to(torch.int32)
        y = F.grouped_mm(x[order], stack, offs=ends)
        return torch.zeros_like(y).index_copy(0, order, y)


def inputs(rows: int = 24, experts: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 16, dtype=torch.bfloat16), torch.arange(rows) % experts


def expected(model: Experts, x: Tensor, choice: Tensor) -> Tensor:
    stack = model.weight.mT if model.turned else model.weight
    return torch.einsum("rk,rkn->rn", x.double(), stack.double()[choice])


@pytest.mark.parametrize("turned", [False, True])
def test_each_stored_matrix_becomes_a_linear_over_its_own_rows(turned: bool, lower: Lower) -> None:
    model = Experts(turned=turned)
    given = inputs()
    lowered = lower(model, *given)

    assert lowered.run("inline-regions", "lower-grouped-products") is True
    assert lowered.counts["aten.linear"] == 4
    assert lowered.counts["aten._grouped_mm"] == 0
    before = lowered.ir
    assert lowered.run("lower-grouped-products") is False
    assert lowered.ir == before


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("choice", [[0, 1, 2, 3], [2], [3, 0]], ids=["all", "one", "two"])
def test_rows_go_to_their_experts_however_many_there_are(turned: bool, choice: list[int]) -> None:
    model = Experts(turned=turned)
    compiled = analogc.compile(
        model, inputs(), target="ideal", dynamic_shapes="batch", check=True, strict=True
    )
    assert len(compiled.tiles) == 4
    for rows in (1, 5, 30):
        x, _ = inputs(rows)
        where = torch.tensor(choice).repeat(rows)[:rows]
        want = expected(model, x, where)
        assert (compiled(x, where) - want).abs().max() <= 0.02 * want.abs().max()


def test_experts_are_on_tiles_of_their_own_and_count_their_work(tmp_path: Path) -> None:
    model, given = Experts(), inputs()
    compiled = analogc.compile(model, given, check=True, strict=True)
    assert [tile.array for tile in compiled.tiles] == ["weight", "weight~2", "weight~3", "weight~4"]
    assert compiled.coverage.macs == 24 * 16 * 8
    want = expected(model, *given)
    y = compiled(*given)
    assert (y - want).abs().max() <= 0.1 * want.abs().max()
    y.float().sum().backward()
    assert model.weight.grad is not None
    compiled.save(tmp_path / "experts")
    assert torch.equal(analogc.load(tmp_path / "experts")(*given), y)


def test_an_expert_without_rows_in_the_calibration_data_is_warned_of() -> None:
    x, choice = inputs()
    with pytest.warns(UserWarning, match=r"zero at the input of weight~4: range 1"):
        compiled = analogc.compile(Experts(), (x, choice.clamp(max=2)))
    assert compiled(x, choice).isfinite().all()


def test_too_many_experts_stay_digital_and_say_so() -> None:
    passes = ",".join(map(str, analogc.DEFAULT_PASSES))
    few = passes.replace("lower-grouped-products", "lower-grouped-products{experts=3}")
    compiled = analogc.compile(Experts(), inputs(), target="ideal", passes=few)
    (row,) = compiled.coverage.unsupported
    assert "4 matrices, more than 3" in row.reason
    assert row.macs == 24 * 16 * 8


def test_activations_among_themselves_are_left_alone(lower: Lower) -> None:
    class Live(nn.Module):
        def forward(self, x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
            return F.grouped_mm(x, w, offs=ends)

    x, w = torch.randn(6, 16).bfloat16(), torch.randn(2, 16, 8).bfloat16()
    lowered = lower(Live(), x, w, torch.tensor([2, 6], dtype=torch.int32))
    assert lowered.run("lower-grouped-products") is False
