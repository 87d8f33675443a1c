"""How the analogc:: operators meet autograd, autocast and vmap.

Ideal layers hand over to the digital operator here, so that they keep all its transforms.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import ops
from .alone import is_alone
from .errors import UnsupportedError
from .spec import parse


@contextlib.contextmanager
def _next_level() -> Iterator[None]:
    # A Function's forward runs without gradients, but an outer transform may want its own.
    with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
        yield


class _Layer(_SingleLevelFunction):
    """An analog layer with its straight-through gradient.

    Runs inside the dispatcher's Autograd kernel, at one level of torch.func's transforms; so it is
    the single-level kind of autograd.Function, as torch.func itself uses there.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        if is_alone(*args[:3]):
            y, mask = ops.saving_forward_kernel(*args)
        else:
            with _next_level():
                y, mask = torch.ops.analogc.saving_forward.default(*args)
        x, weight, bias, input_range, _, *ctx.rest = args
        ctx.save_for_backward(x, weight, input_range, mask)
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)  # zeros for the mask are memory, too
        return y, mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * (len(ctx.rest) + 5)
        x, weight, input_range, mask = ctx.saved_tensors
        need_x, need_w, need_b, need_range = ctx.needs_input_grad[:4]
        grad_x = grad_w = grad_b = grad_range = None
        if need_x or need_w:
            backward: Callable[..., Any] = torch.ops.analogc.saving_backward.default
            if is_alone(grad, weight, x) and not torch.is_grad_enabled():
                backward = ops.saving_gradients
            found = backward(grad, x, weight, mask, input_range, *ctx.rest, need_x, need_w)
            grad_x = found[0] if need_x else None
            grad_w = found[1] if need_w else None
        if need_b:
            grad_b = _bias_gradient(grad, weight, *ctx.bias)
        if need_range:
            grad_range = ops.range_gradient(grad, x, weight, mask, input_range, *ctx.rest)
        return (grad_x, grad_w, grad_b, grad_range, *[None] * (len(ctx.rest) + 1))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> None:
        raise UnsupportedError(
            "forward-mode derivatives go through digital and ideal layers only",
            fix="use reverse mode (torch.func.vjp, jacrev), or target='ideal'",
        )


def _bias_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    channel = -1 if weight.dim() == 2 else 1 - weight.dim()
    if shape == weight.shape[:1] and grad.dim() > 1:
        others = [d for d in range(grad.dim()) if d != grad.dim() + channel]
        return grad.sum(others).to(dtype)
    return grad.movedim(channel, -1).sum_to_size(shape).to(dtype)


class _Gradient(_SingleLevelFunction):
    """The gradient of an analog layer, which has no derivative of its own."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        with _next_level():
            found = torch.ops.analogc.saving_backward.default(*args)
        return cast(tuple[Tensor, Tensor], found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise UnsupportedError(
            "second derivatives go through digital and ideal layers only: the gradient of a layer "
            "with converters, devices or noise is straight-through, which has none",
            fix="compile with target='ideal' to differentiate twice",
        )


def _layer(*args: Any) -> tuple[Tensor, Tensor]:
    with enable_single_level_autograd_function():
        return cast(tuple[Tensor, Tensor], _Layer.apply(*args))  # type: ignore[attr-defined]


def _gradient(*args: Any) -> tuple[Tensor, Tensor]:
    with enable_single_level_autograd_function():
        return cast(tuple[Tensor, Tensor], _Gradient.apply(*args))  # type: ignore[attr-defined]


def _make_autograd(name: str) -> Callable[..., Tensor]:
    op = getattr(torch.ops.analogc, name).default

    def autograd(*args: Any) -> Tensor:
        if parse(args[-2]).is_ideal:
            return ops.digital(name, args)
        wanted = torch.is_grad_enabled() and any(
            isinstance(arg, Tensor) and arg.requires_grad for arg in args[:4]
        )
        if not wanted and forward_ad._current_level < 0:
            with torch._C._AutoDispatchBelowAutograd():
                return cast(Tensor, op(*args))
        between = ((), (), (), 1) if name == "linear" else args[5:9]
        return _layer(*args[:5], *between, *args[-2:])[0]

    return autograd


def _make_autocast(name: str, device: str) -> Callable[..., Tensor]:
    op = getattr(torch.ops.analogc, name).default
    key = getattr(torch._C.DispatchKey, f"Autocast{device}")
    keys = torch._C.DispatchKeySet(key)

    def autocast(x: Tensor, *rest: Any) -> Tensor:
        if parse(rest[-2]).is_ideal:
            return ops.digital(name, (x, *rest))
        # Only the input: a weight in another dtype would be another weight to program.
        if x.dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = x.to(torch.get_autocast_dtype(device.lower()))
        with torch._C._ExcludeDispatchKeyGuard(keys):
            y: Tensor = op(x, *rest)
        return y

    return autocast


def _each(op: Callable[..., Any], in_dims: Sequence[Any], args: Sequence[Any], size: int) -> Any:
    """``op`` once for each index of the mapped dim; its results as lists."""
    found = []
    for i in range(size):
        picked = [
            arg.select(dim, i) if isinstance(dim, int) else arg
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        found.append(op(*picked))
    return found


def _make_vmap(name: str) -> Callable[..., tuple[Tensor, int]]:
    op = getattr(torch.ops.analogc, name).default

    def vmap(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Tensor, int]:
        # Lists and texts have no dim to map over: only the five tensors come first.
        if in_dims[0] is None or any(dim is not None for dim in in_dims[1:5]):
            return torch.stack(_each(op, in_dims, args, info.batch_size)), 0
        x = args[0].movedim(in_dims[0], 0)
        if name == "linear" or x.dim() == args[1].dim():
            return op(x, *args[1:]), 0
        return op(x.flatten(0, 1), *args[1:]).unflatten(0, (info.batch_size, -1)), 0

    return vmap


for _name in ops.NAMES:
    torch.library.impl(f"analogc::{_name}", "Autograd", _make_autograd(_name))
    torch.library.register_vmap(f"analogc::{_name}", _make_vmap(_name))
    for _device in ("CPU", "CUDA"):
        torch.library.impl(
            f"analogc::{_name}", f"Autocast{_device}", _make_autocast(_name, _device)
        )


# Under nested transforms, the outer levels differentiate these two.
torch.library.impl("analogc::saving_forward", "Autograd", _layer)
torch.library.impl("analogc::saving_backward", "Autograd", _gradient)


def _vmap_pair(op: Callable[..., Any]) -> Callable[..., Any]:
    def vmap(info: Any, in_dims: Sequence[Any], *args: Any) -> Any:
        pairs = zip(*_each(op, in_dims, args, info.batch_size), strict=True)
        return tuple(torch.stack(items) for items in pairs), (0, 0)

    return vmap


for _name in ("saving_forward", "saving_backward"):
    torch.library.register_vmap(
        f"analogc::{_name}", _vmap_pair(getattr(torch.ops.analogc, _name).default)
    )
