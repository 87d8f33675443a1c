from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

import analogc
from tests.passes.lowering import assert_same

if TYPE_CHECKING:
    from tests.passes.conftest import Lower

D = torch.float64
MATRICES, K, N = 4, 6, 5


class Picked(nn.Module):
    """A product of each of a batch with the matrix that ``choice`` names."""

    def __init__(self, side: str, turned: bool) -> None:
        super().__init__()
        shape = (MATRICES, K, N) if (side == "right") != turned else (MATRICES, N, K)
        self.weight = nn.Parameter(torch.randn(shape, dtype=D))
        self.side, self.turned = side, turned

    def forward(self, x: Tensor, choice: Tensor) -> Tensor:
        picked = self.weight[choice]
        picked = picked.mT if self.turned else picked
        return torch.bmm(x, picked) if self.side == "right" else picked @ x.mT


def given(rows: int, vectors: int = 1) -> tuple[Tensor, Tensor]:
    choice = torch.randint(-MATRICES, MATRICES, (rows,), generator=torch.manual_seed(rows))
    return torch.randn(rows, vectors, K, dtype=D), choice


def test_each_stored_matrix_is_a_linear_over_its_own_rows(lower: Lower) -> None:
    lowered = lower(Picked("right", False), *given(7))

    assert lowered.run("inline-regions", "lower-indexed-products") is True
    assert lowered.counts["aten.linear"] == MATRICES
    assert lowered.counts["aten.bmm"] == 0
    assert lowered.run("lower-indexed-products") is False


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("vectors", [1, 3])
def test_same_numbers_for_every_choice(side: str, turned: bool, vectors: int) -> None:
    model = Picked(side, turned)
    compiled = analogc.compile(
        model, given(7, vectors), target="ideal", dynamic_shapes="batch", check=True, strict=True
    )
    for rows in (7, 2, 12):
        assert_same(compiled, model, given(rows, vectors))
    none = torch.tensor([2, 2, 2])
    assert_same(compiled, model, (given(3, vectors)[0], none))


def test_every_row_is_multiplied_once() -> None:
    compiled = analogc.compile(Picked("right", False), given(8), target="ideal")
    assert [tile.array for tile in compiled.tiles] == ["weight", "weight~2", "weight~3", "weight~4"]
    assert compiled.coverage.macs == 8 * K * N


def test_under_autocast() -> None:
    class Lower(Picked):
        def forward(self, x: Tensor, choice: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x, choice)

    model = Lower("right", False).float()
    x, choice = given(7)
    compiled = analogc.compile(model, (x.float(), choice), target="ideal", check=True, strict=True)
    wanted, found = model(x.float(), choice), compiled(x.float(), choice)
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=0.03, atol=0.03)


def test_a_mask_picks_no_single_matrix(lower: Lower) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(MATRICES, K, N))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return torch.bmm(x, torch.where(mask[:, None, None], self.weight, -self.weight))

    mask = torch.tensor([True, False, True, True])
    lowered = lower(Masked(), torch.randn(MATRICES, 1, K), mask)
    assert lowered.run("lower-indexed-products") is False
