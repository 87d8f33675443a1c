"""Functions of conductance that published fits are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..converters import is_number
from ..errors import InputError
from ..noise import NoiseKey, sub_key

_LEAST = 1e-7


def polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """``c0 + c1 x + c2 x^2 + ...``."""
    total = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        total.mul_(x).add_(c)
    return total


@dataclass(frozen=True, slots=True)
class Branched:
    """``clip(slope ln x + offset, low, high)`` below ``until``, a polynomial from there on."""

    slope: float
    offset: float
    low: float
    high: float
    until: float = math.inf
    beyond: tuple[float, ...] = (0.0,)

    def __call__(self, x: Tensor) -> Tensor:
        """Value at ``x >= 0``."""
        logs = x.clamp(min=_LEAST).log_().mul_(self.slope).add_(self.offset)
        logs.clamp_(self.low, self.high)
        if self.until == math.inf:
            return logs
        return torch.where(x < self.until, logs, polynomial(self.beyond, x))


@dataclass(frozen=True, slots=True)
class Power:
    """``min(factor x^exponent, high)``, for a negative exponent."""

    factor: float
    exponent: float
    high: float

    def __call__(self, x: Tensor) -> Tensor:
        """Value at ``x >= 0``."""
        return x.clamp(min=_LEAST).pow_(self.exponent).mul_(self.factor).clamp_(max=self.high)


def interpolate(x: Tensor, at: tuple[float, ...], values: tuple[float, ...]) -> Tensor:
    """Piecewise linear function through (at, values), constant outside."""
    places, known = x.new_tensor(at), x.new_tensor(values)
    inside = x.clamp(at[0], at[-1])
    right = torch.searchsorted(places, inside).clamp_(1, len(at) - 1)
    left = right - 1
    share = (inside - places[left]) / (places[right] - places[left])
    return torch.lerp(known[left], known[right], share)


def weights_at(time: float, times: tuple[float, ...]) -> tuple[tuple[int, float], ...]:
    """Measured times to mix for ``time``, with their weights: linear, constant outside."""
    if time <= times[0]:
        return ((0, 1.0),)
    for i, (start, stop) in enumerate(pairwise(times)):
        if time <= stop:
            share = (time - start) / (stop - start)
            return ((i, 1 - share), (i + 1, share)) if share < 1 else ((i + 1, 1.0),)
    return ((len(times) - 1, 1.0),)


def wandered(mean: Tensor, sigma: Tensor, fresh: Tensor, key: NoiseKey, aged: bool) -> Tensor:
    """Values spread by ``sigma`` around ``mean``, each on a path from where it was programmed.

    Data on a population give mean and spread at some times, not the paths. Here a device keeps the
    error it was programmed with, and what the spread grows by is independent of that.

    Args:
        mean: of the values, by then.
        sigma: standard deviation, by then.
        fresh: standard deviation when they were programmed.
        key: of the programming.
        aged: False if ``sigma`` is ``fresh``.

    Returns:
        Values, not below 0.
    """
    drawn = key.normal(mean.shape, mean.dtype, mean.device)
    if aged:
        kept = torch.where(sigma > 0, fresh / sigma, 1.0).clamp_(max=1)
        added = sub_key(key, "drift").normal(mean.shape, mean.dtype, mean.device)
        drawn = drawn.mul_(kept).addcmul_(added, (1 - kept.square()).sqrt_())
    return drawn.mul_(sigma).add_(mean).clamp_(min=0)


def check_scales(device: object, *names: str) -> None:
    """InputError unless each of these fields is a finite number of at least 0."""
    for name in names:
        value = getattr(device, name)
        if not is_number(value) or value < 0:
            kind = type(device).__name__
            raise InputError(f"{kind}.{name} must be a finite number >= 0, got {value!r}")


def check_positive(device: object, *names: str) -> None:
    """InputError unless each of these fields is None or a positive finite number."""
    for name in names:
        value = getattr(device, name)
        if value is not None and (not is_number(value) or value <= 0):
            kind = type(device).__name__
            raise InputError(f"{kind}.{name} must be a positive finite number, got {value!r}")
