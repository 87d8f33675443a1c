"""The shortest way to a layer: what a compiled model's own code calls in place of the operators.

The operators go through torch's dispatcher, which is where autograd, autocast, torch.func, fake
tensors and tracers take part. A call that none of them takes part in goes straight to the kernel,
about 8 us earlier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from . import ops
from .alone import is_alone


def _is_alone(x: Any, weight: Any, bias: Any, input_range: Any) -> bool:
    if not is_alone(x, weight, bias):
        return False
    if weight.is_meta and x.is_meta:
        return False  # shapes only
    if not torch.is_grad_enabled():
        return True
    return not (
        x.requires_grad
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or (input_range is not None and input_range.requires_grad)
    )


def _make(name: str, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    op = getattr(torch.ops.analogc, name).default

    def call(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        if torch.compiler.is_compiling() or not _is_alone(x, weight, bias, rest[0]):
            return cast(Tensor, op(x, weight, bias, *rest))
        return kernel(x, weight, bias, *rest)

    call.__name__ = call.__qualname__ = name
    return call


linear = _make("linear", ops.linear_kernel)
conv1d = _make("conv1d", ops.conv_kernel)
conv2d = _make("conv2d", ops.conv_kernel)
conv3d = _make("conv3d", ops.conv_kernel)


def size_of(x: Tensor, dim: int) -> Any:
    """``aten.sym_size.int``, which has no form under vmap."""
    return x.size(dim)


CALLS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.sym_size.int: size_of,
    **{
        getattr(torch.ops.analogc, call.__name__).default: call
        for call in (linear, conv1d, conv2d, conv3d)
    },
}
"""What to call for each operator."""
