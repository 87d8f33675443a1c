"""Digital gains that undo the mean drift of a layer, as a chip can measure them.

``global`` and ``column`` follow Joshi et al., Nat. Commun. 11, 2473 (2020): known inputs (every
line alone, at full scale) are read when the tiles are fresh and again now, and the ratio of the
mean magnitudes of the outputs is the gain. ``exact`` knows the weights that were to be written: the
gain of each column is the least-squares fit of what is held to those, at any time, also time 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .target import Compensation


def needs_fresh(mode: Compensation) -> bool:
    """True if the gains compare with a read of the fresh tiles."""
    return mode in ("global", "column")


def gains(mode: Compensation, now: Tensor, reference: Tensor) -> Tensor:
    """Gain of each column, ``[N]``; 1 where nothing is held.

    Args:
        mode: which; not ``"none"``.
        now: effective normalised weight ``[N, K]``.
        reference: that of the fresh tiles, or for ``"exact"`` what was to be written.
    """
    if mode == "exact":
        over, under = (now * reference).sum(1), now.square().sum(1)
    else:
        over, under = reference.abs().mean(1), now.abs().mean(1)
        if mode == "global":
            over, under = (part.mean().expand_as(part) for part in (over, under))
    return torch.where(under > 0, over / under, 1.0).contiguous()
