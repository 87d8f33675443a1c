"""Operators that torch-mlir or its pipelines do not take as torch gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torch_mlir")

import analogc
from analogc.errors import UnsupportedError


def group_norm() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv1d(4, 8, 3), nn.GroupNorm(2, 8)), torch.randn(3, 4, 7)


def circular_padding() -> tuple[nn.Module, Tensor]:
    return nn.Conv1d(4, 3, 3, padding=2, padding_mode="circular"), torch.randn(3, 4, 6)


def cropped_transposed_conv() -> tuple[nn.Module, Tensor]:
    conv = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(3)), torch.randn(3, 4, 3, 3)


def scatter_into_a_view() -> tuple[nn.Module, Tensor]:
    return nn.ConvTranspose1d(4, 3, 3, stride=2, dilation=2), torch.randn(3, 4, 5)


def negative_padding() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.ConstantPad2d((-1, 2, 1, -2), 0.5), nn.Conv2d(2, 3, 2)), torch.randn(
        3, 2, 6, 6
    )


def largest_of_sizes() -> tuple[nn.Module, Tensor]:
    return nn.LSTM(4, 3, batch_first=True, bidirectional=True), torch.randn(3, 2, 4)


CASES: list[Callable[[], tuple[nn.Module, Tensor]]] = [
    group_norm, circular_padding, cropped_transposed_conv, scatter_into_a_view, negative_padding,
    largest_of_sizes,
]  # fmt: skip


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_operators_run_at_any_batch(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    torch.manual_seed(0)
    model, x = make()
    compiled = analogc.compile(model.eval(), (x,), dynamic_shapes="batch", seed=0)
    for given in (x, torch.cat([x, x[:1]])):
        with torch.no_grad():
            want = flat(compiled(given))
        for engine in ("native", "callbacks"):
            found = flat(compiled.run_mlir(given, engine=engine))
            for got, value in zip(found, want, strict=True):
                torch.testing.assert_close(got, value, rtol=0, atol=1e-5)


def test_running_sums_share_no_memory() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.linear = nn.Embedding(12, 4), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
            mask = ids.ne(1).int()
            positions = torch.cumsum(mask, 1) * mask
            return self.linear(self.embedding(positions)), torch.cumsum(ids, 1)

    ids = torch.randint(0, 4, (2, 6))
    compiled = analogc.compile(Positions().eval(), (ids,), target="ideal")
    with torch.no_grad():
        want = compiled(ids)
    for got, value in zip(compiled.run_mlir(ids), want, strict=True):
        torch.testing.assert_close(got, value, rtol=0, atol=1e-6)


def flat(value: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(value)


def test_a_view_of_memory_in_another_order_is_an_error_with_the_place() -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            return torch.as_strided(y, (y.shape[0], 3), (6, 2))

    compiled = analogc.compile(
        Strided().eval(), (torch.randn(2, 4),), dynamic_shapes="batch", seed=0
    )
    with pytest.raises(UnsupportedError, match="as_strided"):
        compiled.to_mlir()
