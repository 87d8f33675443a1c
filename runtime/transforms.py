"""How the analogc:: operators meet autograd, autocast and vmap.

Ideal layers hand over to the digital operator here, so that they keep all its transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops
from .spec import parse


def _below_autograd(op: Callable[..., Tensor], args: Sequence[Any]) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _make_autograd(name: str) -> Callable[..., Tensor]:
    op = getattr(torch.ops.analogc, name).default
    saving = torch.ops.analogc.saving_forward.default

    def autograd(*args: Any) -> Tensor:
        if parse(args[-2]).is_ideal:
            return ops.digital(name, args)
        if not torch.is_grad_enabled() or not any(
            isinstance(arg, Tensor) and arg.requires_grad for arg in args[:3]
        ):
            return _below_autograd(op, args)
        between = ((), (), (), 1) if name == "linear" else args[5:9]
        y: Tensor = saving(*args[:5], *between, *args[-2:])[0]
        return y

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


def _make_vmap(name: str) -> Callable[..., tuple[Tensor, int]]:
    op = getattr(torch.ops.analogc, name).default

    def vmap(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Tensor, int]:
        size = info.batch_size
        only_input = in_dims[0] is not None and all(dim is None for dim in in_dims[1:])
        if not only_input:
            each = []
            for i in range(size):
                picked = [
                    arg if dim is None else arg.select(dim, i)
                    for arg, dim in zip(args, in_dims, strict=True)
                ]
                each.append(op(*picked))
            return torch.stack(each), 0
        x = args[0].movedim(in_dims[0], 0)
        if name == "linear" or x.dim() == args[1].dim():
            return op(x, *args[1:]), 0
        return op(x.flatten(0, 1), *args[1:]).unflatten(0, (size, -1)), 0

    return vmap


for _name in ops.NAMES:
    torch.library.impl(f"analogc::{_name}", "Autograd", _make_autograd(_name))
    torch.library.register_vmap(f"analogc::{_name}", _make_vmap(_name))
    for _device in ("CPU", "CUDA"):
        torch.library.impl(
            f"analogc::{_name}", f"Autocast{_device}", _make_autocast(_name, _device)
        )
