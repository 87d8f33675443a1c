"""Weights that are computed from parameters (folded batch norm, weight norm, transposes, slices).

The expression is evaluated only when one of its sources changed. Gradients reach the sources: the
expression is evaluated once more, in the backward pass, and only there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .stamp import Stamp


class DerivedWeight(nn.Module):
    """A pure function of parameters and buffers, remembered until one of them changes.

    ``forward(*sources)`` takes the live sources in the order of the expression's placeholders.
    """

    def __init__(self, expression: fx.GraphModule) -> None:
        super().__init__()
        self.expression = expression
        self.evaluations = 0
        """How often the expression was evaluated to get a value."""
        self._stamps: tuple[Stamp, ...] = ()
        self._value: Tensor | None = None

    def forward(self, *sources: Tensor) -> Tensor:
        """Value of the expression at ``sources``, attached to their autograd graph."""
        if torch.compiler.is_compiling() or _is_traced() or not all(map(_is_plain, sources)):
            return self._evaluate(*sources)
        value = self._value
        if value is None or not self._is_current(sources):
            # Stamps first: a write that falls in between makes the value stale, not current.
            stamps = tuple(Stamp(source) for source in sources)
            with torch.no_grad():
                value = self._value = self._evaluate(*sources).detach()
            self._stamps = stamps
            self.evaluations += 1
        if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
            out: Tensor = _Attach.apply(self, value, *sources)  # type: ignore[no-untyped-call]
            return out
        return value

    def _is_current(self, sources: tuple[Tensor, ...]) -> bool:
        return all(
            stamp.matches(source) for stamp, source in zip(self._stamps, sources, strict=True)
        )

    def _evaluate(self, *sources: Tensor) -> Tensor:
        # The value is shared by calls inside and outside autocast, so it is computed outside.
        device = sources[0].device.type if sources else "cpu"
        if not torch.amp.is_autocast_available(device):
            device = "cpu"
        with torch.autocast(device, enabled=False):
            value: Tensor = self.expression(*sources)
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stamps": (), "_value": None}


def _is_traced() -> bool:
    return (
        _get_current_dispatch_mode() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta


class _Attach(torch.autograd.Function):
    """The remembered value, with the gradient of the expression that it is the value of."""

    @staticmethod
    def forward(ctx: Any, derived: DerivedWeight, value: Tensor, *sources: Tensor) -> Tensor:
        ctx.derived = derived
        ctx.save_for_backward(*sources)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sources = ctx.saved_tensors
        again = torch.is_grad_enabled()
        wanted = [s for s, need in zip(sources, ctx.needs_input_grad[2:], strict=True) if need]
        with torch.enable_grad():
            value = ctx.derived._evaluate(*sources)
            found = torch.autograd.grad(
                value, wanted, grads[0], create_graph=again, allow_unused=True
            )
        each = iter(found)
        return (None, None, *(next(each) if need else None for need in ctx.needs_input_grad[2:]))
