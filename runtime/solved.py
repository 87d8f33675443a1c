"""Memory of solved tiles, by content: the same conductances are not solved again.

It serves sweeps over other settings of a model, times of a drifting one that come back, and the
tiles of a layer that a change of others leaves alone. What is looked up is found by what the tile
holds, so there is nothing to invalidate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

import torch
from torch import Tensor

from .fingerprint import fingerprint

MOST = 64 << 20
"""Bytes that are kept; beyond that the results that were not asked for longest are forgotten."""

_kept: OrderedDict[Hashable, Tensor] = OrderedDict()
_lock = Lock()


def through(
    solve: Callable[[Tensor], Tensor], tiles: list[Tensor], network: Hashable
) -> list[Tensor]:
    """``solve`` of ``tiles``, of one shape: of those that it has not seen, all at once.

    Args:
        solve: from a batch of tiles to a batch of results.
        tiles: contiguous or not.
        network: all that the result depends on besides.

    Returns:
        Results in the dtype of the tiles, not to be written to.
    """
    keys = [(network, t.shape, t.dtype, str(t.device), fingerprint(t)) for t in tiles]
    with _lock:
        found = {key: _kept[key] for key in keys if key in _kept}
    missing = {key: tile for key, tile in zip(keys, tiles, strict=True) if key not in found}
    if missing:
        solved = solve(torch.stack(list(missing.values())))
        for (key, tile), result in zip(missing.items(), solved, strict=True):
            found[key] = result.to(tile.dtype)
    with _lock:
        for key in keys:
            _kept[key] = found[key]
            _kept.move_to_end(key)
        while sum(result.nbytes for result in _kept.values()) > MOST:
            _kept.popitem(last=False)
    return [found[key] for key in keys]


def forget() -> None:
    """Free all of it."""
    with _lock:
        _kept.clear()
