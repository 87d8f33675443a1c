"""What every lowering pass is held to: the same numbers, and nothing left to do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import analogc
from analogc.compiler.model import CompiledModel


def assert_same(compiled: Any, model: nn.Module, inputs: tuple[Any, ...], seed: int = 7) -> None:
    """Equal outputs, equal gradients of all parameters and floating inputs, in float64."""
    results = []
    for run in (compiled, model):
        torch.manual_seed(seed)
        given = pytree.tree_map(_fresh, inputs)
        outputs = [y for y in pytree.tree_leaves(run(*given)) if isinstance(y, Tensor)]
        torch.manual_seed(seed)
        loss = torch.stack([(y * torch.randn(y.shape, dtype=y.dtype)).sum() for y in outputs]).sum()
        sources: list[Any] = [*model.parameters(), *pytree.tree_leaves(given)]
        sources = [s for s in sources if isinstance(s, Tensor) and s.requires_grad]
        grads = torch.autograd.grad(loss, sources, allow_unused=True, materialize_grads=True)
        results.append((outputs, grads))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-11)


def _fresh(x: Any) -> Any:
    is_real = isinstance(x, Tensor) and x.is_floating_point()
    return x.detach().clone().requires_grad_() if is_real else x


def assert_analog(
    model: nn.Module, inputs: tuple[Any, ...], arrays: int, *, within: float = 0.05, **options: Any
) -> CompiledModel:
    """All work on ``arrays`` tile arrays of an 8-bit target; outputs ``within`` the peak."""
    compiled = analogc.compile(model, inputs, target="generic-8bit", check=True, **options)
    report = compiled.coverage
    assert report.analog and not report.unsupported, str(report)
    assert all(row.op.startswith("analogc.") for row in report.analog)
    assert len(compiled.tiles) == arrays
    assert len(compiled.backend) == len(report.analog)
    with torch.no_grad():
        found, expected = pytree.tree_leaves(compiled(*inputs)), pytree.tree_leaves(model(*inputs))
    for y, z in zip(found, expected, strict=True):
        assert not torch.equal(y, z), "an 8-bit tile leaves its mark"
        assert (y - z).abs().max() <= within * z.abs().max()
    return compiled
