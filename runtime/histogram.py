"""Histograms of magnitudes that grow with their data, and the converter range that suits them."""

from __future__ import annotations

import torch
from torch import Tensor

from .target import Calibration

BINS = 2048
_MOST = 1 << 18
_CANDIDATES = 256
_PRIOR = 1024
"""How many values of its own weigh as much as what a series has in common with its family."""


class Histogram:
    """Magnitudes of several series of values, each series with its own bins from 0 to its limit."""

    def __init__(self, series: int, device: torch.device, bins: int = BINS) -> None:
        self.bins = bins
        self.counts = torch.zeros(series, bins, dtype=torch.float64, device=device)
        self.limit = torch.zeros(series, dtype=torch.float64, device=device)
        self.peak = torch.zeros(series, dtype=torch.float64, device=device)
        self.finite = True

    def add(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Count ``values`` ``[series, M]``; of very many, an even sample (the peak is exact).

        Values that are not finite count as zero; ``finite`` tells whether there were any.

        Args:
            values: ``[series, M]``.
            weights: ``[M]``, how much the squared error of each matters; None: all the same.
        """
        if values.shape[1] == 0:
            return
        size = values.detach().abs().to(torch.float64)
        if not bool(size.sum().isfinite()):
            self.finite = False
            size = torch.nan_to_num(size, nan=0.0, posinf=0.0)
        peak = size.amax(dim=1)
        self.peak = torch.maximum(self.peak, peak)
        self._grow(peak)
        step = -(-size.shape[1] // _MOST) | 1
        size = size[:, ::step]
        index = (size * (self.bins / self.limit[:, None])).long().clamp_(max=self.bins - 1)
        index += torch.arange(len(index), device=index.device)[:, None] * self.bins
        if weights is not None:
            weights = weights[::step].to(torch.float64).expand_as(size).flatten()
        found = torch.bincount(index.flatten(), weights, minlength=self.counts.numel())
        self.counts += found.view_as(self.counts)

    def _grow(self, peak: Tensor) -> None:
        first = self.limit == 0
        self.limit = torch.where(first & (peak > 0), peak, self.limit)
        self.limit = torch.where(self.limit == 0, torch.full_like(peak, 1e-30), self.limit)
        while bool((low := self.limit < peak).any()):
            merged = self.counts.unflatten(1, (-1, 2)).sum(-1)
            wider = torch.cat([merged, torch.zeros_like(merged)], dim=1)
            self.counts = torch.where(low[:, None], wider, self.counts)
            self.limit = torch.where(low, self.limit * 2, self.limit)

    def choose(self, how: Calibration, levels: float, family: int = 1) -> Tensor:
        """Range of each series for a converter of ``levels`` steps a side; 0 where all is zero.

        Args:
            how: rule that chooses.
            levels: steps on each side of zero.
            family: so many successive series are alike but for their scale, as the columns of one
                row block are. By ``"mse"``, a series of few values gets a range that makes up for
                what it has not seen: the family's distribution, scaled to its own mean magnitude.
        """
        found = self._choose(how, levels)
        if how.method != "mse" or family == 1:
            return found
        number = self.counts.sum(1)
        steps = torch.arange(self.bins, dtype=torch.float64, device=number.device)
        centre = (steps + 0.5) * (self.limit[:, None] / self.bins)
        # Against the RMS of few values, one of them could not be large.
        mean = (self.counts * centre).sum(1) / number.clamp_min(1)
        usual = torch.zeros_like(found)
        for start in range(0, len(found), family):
            alive = start + self.peak[start : start + family].nonzero()[:, 0]
            pool = _pooled(centre[alive] / mean[alive, None], self.counts[alive])
            usual[alive] = mean[alive] * pool._choose(how, levels)
        own = number / (number + _PRIOR)
        return own * found + (1 - own) * torch.maximum(found, usual)

    def _choose(self, how: Calibration, levels: float) -> Tensor:
        if how.method == "absmax":
            return self.peak
        width = self.limit.clamp_min(1e-30)[:, None] / self.bins  # none may have been counted
        if how.method == "percentile":
            share = self.counts.cumsum(1) / self.counts.sum(1, keepdim=True).clamp_min(1)
            enough = (share >= how.percentile / 100 - 1e-12).int().argmax(1)
            found = (enough + 1) * width[:, 0]
            return torch.minimum(found, self.peak)
        return torch.where(self.peak > 0, self._least_error(width, levels), self.peak)

    def _least_error(self, width: Tensor, levels: float) -> Tensor:
        steps = torch.arange(self.bins, dtype=torch.float64, device=self.counts.device)
        centre = (steps + 0.5) * width
        # Sums of counts, counts * v and counts * v^2 from each bin to the last.
        tails = [(self.counts * centre**power).flip(1).cumsum(1).flip(1) for power in (0, 1, 2)]
        total = [tail[:, :1] for tail in tails]
        grid = torch.linspace(8, self.bins, _CANDIDATES, device=steps.device).long()
        clip = grid * width  # [series, candidates]
        beyond = [
            torch.cat([tail, torch.zeros_like(tail[:, :1])], dim=1)[:, grid] for tail in tails
        ]
        clipped = beyond[2] - 2 * clip * beyond[1] + clip**2 * beyond[0]
        step = clip / levels
        # Values under half a step become zero, which costs their own square, not step^2 / 12.
        small_bins = (step / 2 / width).long().clamp_(max=self.bins)
        padded = [torch.cat([tail, torch.zeros_like(tail[:, :1])], dim=1) for tail in tails]
        small_count = total[0] - padded[0].gather(1, small_bins)
        small_square = total[2] - padded[2].gather(1, small_bins)
        rounded = step**2 / 12 * (total[0] - beyond[0] - small_count).clamp_min(0) + small_square
        best = (clipped + rounded).argmin(1, keepdim=True)
        return torch.minimum(clip.gather(1, best)[:, 0], self.peak)


def _pooled(values: Tensor, counts: Tensor) -> Histogram:
    """One series of ``values``, each counted ``counts`` times."""
    pool = Histogram(1, values.device)
    present = counts > 0
    if bool(present.any()):
        top = values[present].max()
        pool.limit[0] = pool.peak[0] = top
        index = (values[present] * (pool.bins / top)).long().clamp_(max=pool.bins - 1)
        pool.counts[0] = torch.bincount(index, counts[present], minlength=pool.bins)
    return pool
