from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import analogc
from tests.passes.lowering import assert_analog, assert_same

if TYPE_CHECKING:
    from tests.passes.conftest import Lower

D = torch.float64


class Attend(nn.Module):
    """Attention of the input with learned queries, keys or values."""

    def __init__(self, stored: str, mask: Tensor | None = None, heads: int = 2, **options: Any):
        super().__init__()
        for name in "qkv":
            shape = (heads if name == "q" else 2, 5 if name == "q" else 4, 3)
            value = torch.randn(1, *shape, dtype=D) if name in stored else None
            self.register_parameter(name, None if value is None else nn.Parameter(value))
        self.mask = mask
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = [getattr(self, name) for name in "qkv"]
        q, k, v = (x if p is None else p for p, x in zip(own, (q, k, v), strict=True))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, **self.options)


def given(batch: int = 3, heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, heads, 5, 3, dtype=D),
        torch.randn(batch, 2, 4, 3, dtype=D),
        torch.randn(batch, 2, 4, 3, dtype=D),
    )


def test_expected_graph(lower: Lower) -> None:
    lowered = lower(Attend("k"), *given())

    assert lowered.run("lower-attention") is True
    assert lowered.ir == (
        "%q: f64[3, 2, 5, 3] = input\n"
        "%k: f64[3, 2, 4, 3] = input\n"
        "%v: f64[3, 2, 4, 3] = input\n"
        "%transpose_int: f64[1, 2, 3, 4] = aten.transpose.int(@k, -1, -2)\n"
        "%matmul_default: f64[3, 2, 5, 4] = aten.matmul(%q, %transpose_int)\n"
        "%mul_scalar: f64[3, 2, 5, 4] = aten.mul.Scalar(%matmul_default, 0.5773502691896258)\n"
        "%_safe_softmax_default: f64[3, 2, 5, 4] = aten._safe_softmax(%mul_scalar, -1)\n"
        "%scaled_dot_product_attention: f64[3, 2, 5, 3] = "
        "aten.matmul(%_safe_softmax_default, %v)\n"
        "output = (%scaled_dot_product_attention)"
    )
    assert lowered.run("lower-attention") is False


MASKS = {
    "none": None,
    "float": torch.randn(5, 4, dtype=D),
    "bool": torch.tensor([[True, False, True, True]] * 4 + [[False] * 4]),
    "per head": torch.randn(1, 2, 5, 4, dtype=D),
}


@pytest.mark.parametrize(
    ("stored", "mask", "dynamic"),
    [
        *((stored, "none", "batch") for stored in ("q", "k", "v", "qk", "kv")),
        *(("k", mask, None) for mask in MASKS),
        ("q", "bool", "batch"),
    ],
)
def test_same_numbers(stored: str, mask: str, dynamic: str | None) -> None:
    model = Attend(stored, MASKS[mask])
    compiled = analogc.compile(model, given(), target="ideal", check=True, dynamic_shapes=dynamic)

    assert_same(compiled, model, given())
    if dynamic:
        assert_same(compiled, model, given(4))
    assert not compiled.coverage.unsupported


@pytest.mark.parametrize(
    "options",
    [{"is_causal": True}, {"scale": 0.3}, {"dropout_p": 0.5}, {"is_causal": True, "scale": 2.0}],
)
def test_options(options: dict[str, Any]) -> None:
    model = Attend("k", **options)
    compiled = analogc.compile(model, given(), target="ideal", check=True)

    assert_same(compiled, model, given())


@pytest.mark.parametrize(
    ("stored", "mask"),
    [("q", None), ("k", (5, 4)), ("k", (1, 1, 5, 4)), ("v", (3, 4, 5, 4))],
)
def test_grouped_queries(stored: str, mask: tuple[int, ...] | None) -> None:
    given_mask = None if mask is None else torch.randn(mask, dtype=D)
    model = Attend(stored, given_mask, heads=4, enable_gqa=True)
    compiled = analogc.compile(model, given(heads=4), target="ideal", check=True)

    assert_same(compiled, model, given(heads=4))


@pytest.mark.parametrize(("stored", "arrays"), [("q", 2), ("k", 2), ("v", 2), ("kv", 4)])
def test_stored_operands_are_analog(stored: str, arrays: int) -> None:
    assert_analog(Attend(stored), given(), arrays)


def test_a_stored_mask_is_no_product(lower: Lower) -> None:
    model = Attend("", MASKS["float"])
    lowered = lower(model, *given())
    assert lowered.run("lower-attention") is False

    (row,) = [r for r in analogc.compile(model, given()).coverage.rows if r.macs]
    assert (row.kind, row.reason) == ("rule", "activation x activation: nothing to store")
