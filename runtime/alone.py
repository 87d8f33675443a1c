"""Whether a call needs nothing of torch's dispatcher, so that a kernel may be called directly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_PLAIN = (Tensor, nn.Parameter, type(None))


def is_alone(x: Any, weight: Any, bias: Any = None) -> bool:
    """True for plain tensors where no mode, transform, tracer or autocast takes part.

    Gradients are the caller's concern.
    """
    return (
        type(x) is Tensor
        and type(weight) in _PLAIN
        and type(bias) in _PLAIN
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not torch._C._is_any_autocast_enabled()
        and torch._C._get_tracing_state() is None
    )
