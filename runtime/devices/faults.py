"""Stuck devices and dead lines of one chip."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

from ..noise import NoiseKey, sub_key
from .cell import Cell


def stuck(planes: Tensor, cell: Cell, chip: NoiseKey) -> Tensor:
    """``planes`` ``[P, N, K]`` [uS] with this chip's stuck devices; changed in place."""
    if cell.stuck_on > 0 or cell.stuck_off > 0:
        key = sub_key(chip, "stuck")
        drawn = key.normal(planes.shape, torch.float32, planes.device)
        planes[_least(drawn, cell.stuck_on)] = cell.g_max
        planes[_least(-drawn, cell.stuck_off)] = cell.g_min
    return planes


def dead(
    planes: Tensor, cell: Cell, chip: NoiseKey, rows: tuple[int, ...], cols: tuple[int, ...]
) -> tuple[Tensor, Tensor | None]:
    """``planes`` ``[P, N, K]`` [uS] with no current in this chip's dead lines; changed in place.

    Args:
        planes: conductances.
        cell: fractions of dead lines.
        chip: key of the chip's faults.
        rows: boundaries of the row blocks over K: an output line is one of a tile's.
        cols: boundaries of the column blocks over N: an input line is one of a tile's.

    Returns:
        The planes, and which input lines work, ``[column blocks, K]``; None: all.
    """
    count, outputs, inputs = planes.shape
    if cell.dead_cols > 0:
        key = sub_key(chip, "columns")
        shape = torch.Size([count, len(rows) - 1, outputs])
        lost = _least(key.normal(shape, torch.float32, planes.device), cell.dead_cols)
        for r, (start, stop) in enumerate(zip(rows, rows[1:], strict=False)):
            planes[:, :, start:stop].masked_fill_(lost[:, r, :, None], 0)
    if cell.dead_rows == 0:
        return planes, None
    key = sub_key(chip, "rows")
    shape = torch.Size([len(cols) - 1, inputs])
    lost = _least(key.normal(shape, torch.float32, planes.device), cell.dead_rows)
    for c, (start, stop) in enumerate(zip(cols, cols[1:], strict=False)):
        planes[:, start:stop].masked_fill_(lost[c], 0)
    return planes, ~lost


def _least(drawn: Tensor, fraction: float) -> Tensor:
    """Where normal numbers are in the lowest ``fraction`` of their distribution."""
    if fraction <= 0:
        return torch.zeros_like(drawn, dtype=torch.bool)
    if fraction >= 1:
        return torch.ones_like(drawn, dtype=torch.bool)
    return drawn < NormalDist().inv_cdf(fraction)
