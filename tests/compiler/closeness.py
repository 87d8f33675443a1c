"""How near to a weight tiles without programming noise are."""

from __future__ import annotations

from torch import Tensor


def assert_holds(held: Tensor, weight: Tensor) -> None:
    """Within half a step of the native kernels' 16-bit codes of each column."""
    peak = weight.flatten(1).abs().amax(1).view(-1, *[1] * (weight.dim() - 1))
    assert ((held - weight).abs() <= peak * (0.51 / 32767)).all()
