from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from analogc.runtime import solved


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    solved.forget()
    yield
    solved.forget()


class Doubled:
    """Counts the tiles that it solved."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, batch: Tensor) -> Tensor:
        self.count += len(batch)
        return batch.double() * 2


def test_the_same_content_is_solved_once() -> None:
    solve, tiles = Doubled(), [torch.rand(3, 4) for _ in range(3)]

    first = solved.through(solve, tiles, "a")
    again = solved.through(solve, [tile.clone() for tile in reversed(tiles)], "a")

    assert solve.count == 3
    for tile, one, other in zip(tiles, first, reversed(again), strict=True):
        assert one.dtype == tile.dtype
        assert torch.equal(one, 2 * tile) and torch.equal(other, one)


def test_equal_tiles_of_one_batch_are_solved_once() -> None:
    solve, tile = Doubled(), torch.rand(2, 2)

    found = solved.through(solve, [tile, tile.clone()], "a")

    assert solve.count == 1 and len(found) == 2


@pytest.mark.parametrize(
    "other", [torch.ones(2, 3), torch.ones(3, 2), torch.ones(2, 3, dtype=torch.float64)]
)
def test_another_network_shape_dtype_or_value_is_another_tile(other: Tensor) -> None:
    solve = Doubled()
    solved.through(solve, [torch.ones(2, 3)], "a")

    solved.through(solve, [other], "b" if other.shape == (2, 3) else "a")
    solved.through(solve, [2 * torch.ones(2, 3)], "a")

    assert solve.count == 3


def test_what_was_not_asked_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solved, "MOST", 2 * 4 * 16)
    solve, tiles = Doubled(), [torch.rand(16) for _ in range(3)]
    for tile in (tiles[0], tiles[1], tiles[0], tiles[2]):
        solved.through(solve, [tile], "a")
    assert solve.count == 3

    solved.through(solve, [tiles[0]], "a")
    assert solve.count == 3
    solved.through(solve, [tiles[1]], "a")
    assert solve.count == 4
