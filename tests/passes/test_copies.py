"""Stored operands that are copied for each sample are stored once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import analogc
from tests.passes.lowering import assert_analog, assert_same

D = torch.float64


class Net(nn.Module):
    def __init__(self, forward: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 6, 5, dtype=D))
        self.latent = nn.Parameter(torch.randn(1, 4, 6, dtype=D))
        self.norm = nn.LayerNorm(6, dtype=D)
        self.query = nn.Linear(6, 6, dtype=D)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def _heads(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], 2, 3).transpose(1, 2)


def _pool(m: Net, x: Tensor) -> Tensor:
    """Attention pooling: the query is made of a latent that is copied first."""
    q = m.query(m.norm(m.latent.expand(x.shape[0], -1, -1)))
    y = F.scaled_dot_product_attention(_heads(q), _heads(x), _heads(x))
    return y.transpose(1, 2).flatten(2)


ONCE: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "expand": lambda m, x: torch.bmm(x, m.weight.expand(x.shape[0], -1, -1)),
    "repeat": lambda m, x: torch.bmm(x, m.weight.repeat(x.shape[0], 1, 1)),
    "matmul": lambda m, x: x @ m.weight.expand(x.shape[0], -1, -1),
    "left": lambda m, x: m.weight.mT.expand(x.shape[0], -1, -1) @ x.mT,
    "transposed": lambda m, x: m.weight.expand(x.shape[0], -1, -1).mT @ x.mT,
    "einsum": lambda m, x: torch.einsum("bik,bkj->bij", x, m.weight.expand(x.shape[0], -1, -1)),
    "new dim": lambda m, x: torch.bmm(x, m.weight[0].expand(x.shape[0], 6, 5)),
    "of a copy": lambda m, x: (x[:, None] @ m.weight.expand(x.shape[0], -1, -1)[:, None])[:, 0],
    "reshaped": lambda m, x: (
        x @ m.weight.expand(x.shape[0], -1, -1).reshape(x.shape[0], 6, 5, 1)[..., 0]
    ),
    "scaled": lambda m, x: torch.baddbmm(x[..., :5], x, m.weight.expand(x.shape[0], -1, -1) * 2),
    "dropout": lambda m, x: torch.bmm(
        x, F.dropout(m.weight.expand(x.shape[0], -1, -1), 0.5, training=False)
    ),
    "bias": lambda m, x: x @ (m.weight.repeat(x.shape[0], 1, 1) + m.weight.square()),
}


@pytest.mark.parametrize(
    ("name", "shapes"), [*((name, "batch") for name in ONCE), ("expand", None), ("bias", None)]
)
def test_a_copied_weight_is_one_array(name: str, shapes: str | None) -> None:
    model = Net(ONCE[name])
    x = torch.randn(70, 3, 6, dtype=D)  # more samples than matrices may be stacked
    compiled = analogc.compile(model, (x,), target="ideal", check=True, dynamic_shapes=shapes)

    assert_same(compiled, model, (x,))
    if shapes:
        assert_same(compiled, model, (x[:5],))
    assert len(compiled.tiles) == 1 and not compiled.coverage.unsupported


def test_tiles_hold_it_once() -> None:
    assert_analog(Net(ONCE["expand"]), (torch.randn(4, 3, 6, dtype=D),), 1)


@pytest.mark.parametrize("shapes", [None, "batch"])
def test_a_learned_query_is_stored_once_for_all_samples(shapes: str | None) -> None:
    model, x = Net(_pool), torch.randn(3, 7, 6, dtype=D)
    compiled = analogc.compile(model, (x,), target="ideal", check=True, dynamic_shapes=shapes)

    assert_same(compiled, model, (x,))
    assert len(compiled.tiles) == 2  # one for each head
    if shapes:
        assert_same(compiled, model, (torch.randn(5, 7, 6, dtype=D),))


def _in_heads(m: Net, w: Tensor) -> Tensor:
    """[1, 4, 6] as a stack of heads, [2, 4, 3]."""
    return w.view(1, 4, 2, 3).permute(0, 2, 1, 3).reshape(2, 4, 3)


def _merged_heads(m: Net, x: Tensor) -> Tensor:
    """As nn.MultiheadAttention does it: a dim of samples, then merged with the heads."""
    q = m.query(m.latent.repeat(x.shape[0], 1, 1).transpose(0, 1))
    q = q.contiguous().view(4, x.shape[0] * 2, 3).transpose(0, 1)
    return torch.bmm(q, x.reshape(-1, 7, 2, 3).permute(0, 2, 3, 1).reshape(-1, 3, 7))


PERIODS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "right": lambda m, x: torch.bmm(
        _heads(x).reshape(-1, 7, 3), _in_heads(m, m.latent).repeat(x.shape[0], 1, 1).mT
    ),
    "left": lambda m, x: (
        _in_heads(m, m.latent).repeat(x.shape[0], 1, 1) @ _heads(x).reshape(-1, 7, 3).mT
    ),
    "scaled": lambda m, x: torch.bmm(
        _heads(x).reshape(-1, 7, 3),
        m.norm.weight[0] * _in_heads(m, m.latent).repeat(x.shape[0], 1, 1).mT / 3,
    ),
    "merged": _merged_heads,
}


@pytest.mark.parametrize("shapes", [None, "batch"])
@pytest.mark.parametrize("name", PERIODS)
def test_a_stack_that_is_repeated_for_each_sample_is_stored_once(
    name: str, shapes: str | None
) -> None:
    model, x = Net(PERIODS[name]), torch.randn(3, 7, 6, dtype=D)
    compiled = analogc.compile(model, (x,), target="ideal", check=True, dynamic_shapes=shapes)

    assert_same(compiled, model, (x,))
    assert len(compiled.tiles) == 2  # one for each head
    assert not compiled.coverage.unsupported
    if shapes:
        assert_same(compiled, model, (torch.randn(5, 7, 6, dtype=D),))


OTHERS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "copies in the summed dim": lambda m, x: x @ m.latent[:, :1].mT.sum(1).expand(6, 5),
    "tiled": lambda m, x: x @ m.weight.repeat(1, 1, 2),
    "each repeated": lambda m, x: torch.bmm(
        _heads(x).reshape(-1, 7, 3), _in_heads(m, m.latent).repeat_interleave(x.shape[0], 0).mT
    ),
    "depends on the size": lambda m, x: (
        x @ (m.weight.expand(x.shape[0], -1, -1) / (x.shape[0] + 1))
    ),
    "both": lambda m, x: x + (m.latent @ m.weight).expand(x.shape[0], 4, 5).sum(),
    "random": lambda m, x: x @ F.dropout(m.weight.expand(x.shape[0], -1, -1), 0.5, True),
    "no live batch": lambda m, x: torch.einsum(
        "ik,bkj->bij", x[0], m.weight.expand(x.shape[0], -1, -1)
    ),
}


@pytest.mark.parametrize("shapes", [None, "batch"])
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_copy_stays_right(name: str, shapes: str | None) -> None:
    model, x = Net(OTHERS[name]), torch.randn(3, 7, 6, dtype=D)
    compiled = analogc.compile(model, (x,), target="ideal", check=True, dynamic_shapes=shapes)

    assert_same(compiled, model, (x,))
    if shapes:
        assert_same(compiled, model, (torch.randn(5, 7, 6, dtype=D),))
