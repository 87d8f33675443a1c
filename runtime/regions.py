"""Regions of a graph that run in a mode of their own: autocast, no gradients, checkpointed.

In a graph a region is a pair of nodes, ``enter_*`` and ``leave``, around the nodes inside. The
compiled model's own code writes a region as a block, so that an error in it leaves no mode behind;
whoever runs the graph node by node (fx.Interpreter) calls the pairs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

from . import tiles
from .errors import UnsupportedError


def enter_autocast(device: str, dtype: torch.dtype | None, enabled: bool, cache: bool) -> Any:
    """Begin ``with torch.autocast(device, dtype, enabled, cache):``."""
    return _entered(torch.autocast(device, dtype, enabled, cache))


def enter_grad_mode(enabled: bool) -> Any:
    """Begin ``with torch.set_grad_enabled(enabled):``."""
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(enabled)
    return _entered(_GradMode(before))


class _GradMode(contextlib.AbstractContextManager[None]):
    def __init__(self, before: bool) -> None:
        self.before = before

    def __exit__(self, *_: object) -> None:
        torch._C._set_grad_enabled(self.before)


def enter_checkpoint() -> Any:
    """Begin a region whose activations are computed again in the backward pass.

    Node by node nothing is computed again.
    """
    return _entered(contextlib.nullcontext())


def enter_branch(condition: Any, taken: bool) -> Any:
    """Begin what runs where ``condition`` is ``taken``.

    Node by node both branches run, and ``join`` chooses.
    """
    return _entered(contextlib.nullcontext())


def join(
    condition: Any, yes: tuple[Any, ...], no: tuple[Any, ...], first: Any, second: Any
) -> tuple[Any, ...]:
    """Results of one of two branches, which ``first`` and ``second`` began."""
    if isinstance(condition, FakeTensor):
        raise UnsupportedError(
            "a compiled model with torch.cond cannot be traced node by node, as torch.export does",
            fix="export the model that it was made from, or use torch.compile",
        )
    return yes if condition else no


def run_branch(
    condition: Any,
    yes: Callable[..., Any],
    yes_inputs: tuple[Any, ...],
    no: Callable[..., Any],
    no_inputs: tuple[Any, ...],
) -> Any:
    """Run one of two branches."""
    if torch.compiler.is_compiling():
        count = len(yes_inputs)
        return torch.cond(
            condition,
            lambda *inputs: yes(*inputs[:count]),
            lambda *inputs: no(*inputs[count:]),
            (*yes_inputs, *no_inputs),
        )
    return yes(*yes_inputs) if condition else no(*no_inputs)


def _entered(context: Any) -> Any:
    context.__enter__()
    return context


def leave(context: Any) -> None:
    """End the region that ``context`` began."""
    context.__exit__(None, None, None)


ENTERS: tuple[Callable[..., Any], ...] = (
    enter_autocast,
    enter_grad_mode,
    enter_checkpoint,
    enter_branch,
)
for _function in (*ENTERS, leave):
    fx.node.has_side_effect(_function)


@contextlib.contextmanager
def kept_modes() -> Iterator[None]:
    """Put grad mode and autocast back as they were, whatever an error left behind."""
    grad = torch.is_grad_enabled()
    devices = [name for name in ("cpu", "cuda") if torch.amp.is_autocast_available(name)]
    casts = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    cache = torch.is_autocast_cache_enabled()
    try:
        yield
    finally:
        torch._C._set_grad_enabled(grad)
        for device, enabled, dtype in casts:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(cache)


@contextlib.contextmanager
def plain_precision() -> Iterator[None]:
    """Without the caller's autocast, which calls of the compiled model follow in their own time."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def run_checkpointed(keys: Sequence[str], function: Callable[..., Any], *inputs: Any) -> Any:
    """``function(*inputs)``, keeping only ``inputs`` for the backward pass.

    Random numbers are the same in the second run, those of the tiles too.

    Args:
        keys: of the tile arrays that the region uses.
        function: the region.
        inputs: all that it needs.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        # torch.compile decides itself what to compute again.
        return function(*inputs)
    arrays = [array for array in map(tiles.find, keys) if array is not None]
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=partial(_contexts, arrays))


def _contexts(arrays: list[tiles.TileArray]) -> tuple[Any, Any]:
    again = _CountingFrom(arrays, [array.calls for array in arrays])
    return contextlib.nullcontext(), again


class _CountingFrom:
    """The second run of a region: draws of noise are those of the first."""

    def __init__(self, arrays: list[tiles.TileArray], calls: list[int]) -> None:
        self.arrays = arrays
        self.calls = calls

    def _exchange(self) -> None:
        for i, array in enumerate(self.arrays):
            array.calls, self.calls[i] = self.calls[i], array.calls

    def __enter__(self) -> None:
        self.first = list(self.calls)
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()
        self.calls = self.first
