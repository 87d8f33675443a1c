"""Weights that are computed from parameters (folded batch norm, weight norm, transposes, slices).

The expression is evaluated only when one of its sources changed, and its value kept; a layer on
programmed tiles gets a stand-in instead, which its tile array resolves only when it has to program,
so that the value takes no memory. Gradients reach the sources: the expression is evaluated once
more, in the backward pass, and only there.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .layout import is_channels_last
from .stamp import Stamp
from .standin import StandIn

Keeps = Literal["value", "stand-in", "nothing"]


class DerivedWeight(nn.Module):
    """A pure function of parameters and buffers.

    ``forward(*sources)`` takes the live sources in the order of the expression's placeholders.
    """

    def __init__(self, expression: fx.GraphModule, keeps: Keeps = "value") -> None:
        super().__init__()
        self.expression = expression
        self.keeps: Keeps = keeps
        """Between calls. ``"value"``: the value. ``"stand-in"``: an operand without memory, for
        analog layers only. ``"nothing"``: evaluated in each call, as the digital model does."""
        self.evaluations = 0
        """How often the expression was evaluated to get a value."""
        self._stamps: tuple[Stamp, ...] = ()
        self._held: Tensor | StandIn | None = None

    def forward(self, *sources: Tensor) -> Tensor:
        """Value of the expression at ``sources``, or its stand-in, attached to their graph."""
        if (
            self.keeps == "nothing"
            or torch.compiler.is_compiling()
            or _is_traced()
            or not all(map(_is_plain, sources))
        ):
            return self.evaluate(*sources)
        held = self._held
        if held is None or not self._is_current(sources):
            held = self._look(sources)
        value = held.tensor if isinstance(held, StandIn) else held
        if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
            out: Tensor = _Attach.apply(self, value, *sources)  # type: ignore[no-untyped-call]
            return out
        return value

    def _look(self, sources: tuple[Tensor, ...]) -> Tensor | StandIn:
        old, before = self._held, self._stamps
        # Stamps first: a write that falls in between makes the value stale, not current.
        self._stamps = tuple(Stamp(source) for source in sources)
        again = partial(self._value, tuple(source.detach() for source in sources))
        if isinstance(old, StandIn) and all(map(Stamp.same_form, before, sources)):
            self._held = StandIn(old.tensor, again, None, _any_last(sources, old.tensor.dim()))
            return self._held
        value = again()
        memory = value.untyped_storage().data_ptr()
        is_view = any(memory == source.untyped_storage().data_ptr() for source in sources)
        if self.keeps == "value" or is_view:
            self._held = value
        else:
            self._held = StandIn(value, again, value, _any_last(sources, value.dim()))
        return self._held

    def _value(self, sources: tuple[Tensor, ...]) -> Tensor:
        self.evaluations += 1
        with torch.no_grad():
            return self.evaluate(*sources).detach()

    def _is_current(self, sources: tuple[Tensor, ...]) -> bool:
        return all(
            stamp.matches(source) for stamp, source in zip(self._stamps, sources, strict=True)
        )

    def evaluate(self, *sources: Tensor) -> Tensor:
        """Value of the expression at ``sources``, by ordinary operations."""
        # The value is shared by calls inside and outside autocast, so it is computed outside.
        device = sources[0].device.type if sources else "cpu"
        if not torch.amp.is_autocast_available(device):
            device = "cpu"
        with torch.autocast(device, enabled=False):
            value: Tensor = self.expression(*sources)
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stamps": (), "_held": None}


def _any_last(sources: tuple[Tensor, ...], dims: int) -> bool:
    return any(source.dim() == dims and is_channels_last(source) for source in sources)


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
            value = ctx.derived.evaluate(*sources)
            found = torch.autograd.grad(
                value, wanted, grads[0], create_graph=again, allow_unused=True
            )
        each = iter(found)
        return (None, None, *(next(each) if need else None for need in ctx.needs_input_grad[2:]))
