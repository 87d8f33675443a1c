"""Memory layout of what a convolution returns: channels last if its input or its weight is."""

from __future__ import annotations

import torch
from torch import Tensor

from .standin import find

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the strides of ``[N, C, H, W]`` or ``[N, C, D, H, W]`` are those of channels last.

    As torch's own operators see it, sizes of 1 included.
    """
    dims = tensor.dim()
    if dims not in _LAST:
        return False
    sizes, strides = tensor.shape, tensor.stride()
    least = 0
    if strides[1] == 0:
        return False
    for dim in (1, *range(dims - 1, 1, -1), 0):
        if sizes[dim] == 0 or strides[dim] < least or (dim == 0 and least == strides[1]):
            return False
        least = strides[dim] * max(sizes[dim], 1)
    return True


def format_of(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Memory format of the convolution of a batch ``x`` with ``weight``."""
    if x.dim() == 5 and x.dtype is torch.float64:
        return torch.contiguous_format  # torch has no such kernel
    found = find(weight)
    stored = is_channels_last(weight) if found is None else found.channels_last
    return _LAST[x.dim()] if stored or is_channels_last(x) else torch.contiguous_format
