"""Transfer functions of analog-to-digital converters whose steps are not all alike.

A converter of n codes is described by its n - 1 thresholds in steps from the lowest code, ideally
``0.5, 1.5, ...``: the code of ``v`` is the number of thresholds that it exceeds. They are computed
once, when the tiles are programmed.

Source of both models: Spear et al., IEEE J. Explor. Solid-State Comput. Devices Circuits 9, 176
(2023); the capacitors are those of a plain binary weighted array.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .converters import Converter


def code_count(converter: Converter) -> int:
    """Number of codes n."""
    return round(converter.full_code - converter.lowest) + 1


def sar_thresholds(converter: Converter, noise: Tensor) -> Tensor:
    """Thresholds ``[columns, n - 1]`` of successive approximation, rising along the last dim.

    The input is compared with the level of an array of capacitors of ``2^i (1 + mismatch 2^(-i/2)
    N(0, 1))`` units, bit by bit from the top. Where levels are out of order, codes are missing, but
    the search makes the transfer monotone whatever the levels.

    Args:
        converter: bits, codes and mismatch.
        noise: standard normal numbers ``[columns, bits]``, of the lowest bit first.
    """
    bits = converter.bits
    place = torch.arange(bits, dtype=noise.dtype, device=noise.device)
    units = 2**place + converter.mismatch * 2 ** (place / 2) * noise
    codes = torch.arange(1 << bits, device=noise.device)
    set_bits = (codes[:, None] >> torch.arange(bits, device=noise.device) & 1).to(noise.dtype)
    total = units.sum(1, keepdim=True)
    level = units @ set_bits.mT * (((1 << bits) - 1) / total) - 0.5
    # The comparisons that lead to code c bound its threshold by those of its ancestors.
    level[:, 0] = -torch.inf
    upper = torch.full_like(level[:, :1], torch.inf)
    level = torch.cat([level, upper], dim=1)
    for bit in reversed(range(bits)):
        step = 1 << bit
        here = slice(step, 1 << bits, 2 * step)
        below, above = level[:, : 1 << bits : 2 * step], level[:, 2 * step :: 2 * step]
        level[:, here] = torch.minimum(torch.maximum(level[:, here], below), above)
    found = level[:, 1 : 1 << bits]
    # Symmetric codes leave out the lowest one.
    skipped = (1 << bits) - code_count(converter)
    return (found[:, skipped:] - skipped).contiguous()


def ramp_thresholds(converter: Converter, noise: Tensor) -> Tensor:
    """Thresholds ``[n - 1]`` of a ramp whose steps are ``1 + mismatch N(0, 1)``, none negative.

    Args:
        converter: bits, codes and mismatch.
        noise: standard normal numbers ``[n - 1]``.
    """
    steps = (1 + converter.mismatch * noise).clamp_(min=0)
    return steps.cumsum(0) - 0.5


def find_codes(steps: Tensor, thresholds: Tensor) -> None:
    """Replace values in steps from the lowest code by codes counted from the lowest.

    Args:
        steps: ``[columns ..., others ...]``, a view in any order.
        thresholds: ``[n - 1]``, or ``[columns, n - 1]`` of each column.
    """
    if thresholds.dim() == 1:
        steps.copy_(torch.bucketize(steps.contiguous(), thresholds, out_int32=True))
        return
    flat = steps.reshape(thresholds.shape[0], -1).contiguous()
    steps.copy_(torch.searchsorted(thresholds, flat, out_int32=True).view(steps.shape))
