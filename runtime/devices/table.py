"""A device of your own, by measured tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ..converters import is_number
from ..errors import InputError
from ..noise import NoiseKey, sub_key
from .base import Units
from .curves import check_positive, interpolate

_TABLES = ("sigma", "nu", "nu_sigma", "read_noise")


@dataclass(frozen=True, slots=True)
class TableDevice:
    """Spread, drift exponent and read noise measured at some conductances, linear between them.

    A device programmed to g [uS] has ``g_P = max(g + sigma(g) N, 0)``, and at ``t = seconds + t0``
    ``g_P (t / t0)^-max(nu(g) + nu_sigma(g) N, 0)``. Each MVM reads it with ``read_noise(g)``, in
    proportion to what the mean drift has left.

    Raises:
        InputError: conductances that do not rise from 0 or more, a table of another length, or with
            values below 0.
    """

    conductances: tuple[float, ...] = (0.0, 25.0)
    """Where it was measured [uS], rising; a cell must not go beyond."""
    sigma: tuple[float, ...] = ()
    """Standard deviation of programming [uS] at each; empty: none."""
    nu: tuple[float, ...] = ()
    """Mean drift exponent at each; empty: none."""
    nu_sigma: tuple[float, ...] = ()
    """Standard deviation of the exponent from device to device; empty: none."""
    read_noise: tuple[float, ...] = ()
    """Standard deviation of a read [uS]; empty: none."""
    t0: float = 20.0
    """First read after programming [s]."""
    kind: ClassVar[str] = "table"
    units: ClassVar[Units] = "uS"

    def __post_init__(self) -> None:
        for name in ("conductances", *_TABLES):
            value = getattr(self, name)
            if not isinstance(value, tuple | list) or not all(is_number(v) for v in value):
                raise InputError(f"TableDevice.{name} must be a tuple of numbers, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        places = self.conductances
        if len(places) < 2 or places[0] < 0 or any(a >= b for a, b in pairwise(places)):
            raise InputError(
                "TableDevice.conductances must be two or more numbers that rise from 0 or more, "
                f"got {places}"
            )
        for name in _TABLES:
            value = getattr(self, name)
            if value and len(value) != len(places):
                raise InputError(
                    f"TableDevice.{name} has {len(value)} values for {len(places)} conductances"
                )
            if any(v < 0 for v in value):
                raise InputError(f"TableDevice.{name} must not be below 0, got {value}")
        if self.t0 is None:
            raise InputError("TableDevice.t0 must be a positive finite number, got None")
        check_positive(self, "t0")

    @property
    def is_ideal(self) -> bool:
        """True if all tables are empty or 0."""
        return not any(map(self._has, _TABLES))

    @property
    def drifts(self) -> bool:
        """True if an exponent can differ from zero."""
        return self._has("nu") or self._has("nu_sigma")

    @property
    def reads_noisily(self) -> bool:
        """True if there is read noise."""
        return self._has("read_noise")

    @property
    def g_range(self) -> tuple[float, float]:
        """From the first conductance to the last [uS]."""
        return self.conductances[0], self.conductances[-1]

    @property
    def last_measured(self) -> float:
        """A power law: any time."""
        return math.inf

    def _has(self, name: str) -> bool:
        return any(value > 0 for value in getattr(self, name))

    def _at(self, name: str, target: Tensor) -> Tensor:
        values = getattr(self, name)
        if not values:
            return torch.zeros_like(target)
        return interpolate(target, self.conductances, values)

    def state(self, target: Tensor, seconds: float, key: NoiseKey) -> Tensor:
        """Conductances [uS]."""
        drawn = key.normal(target.shape, target.dtype, target.device)
        state = drawn.mul_(self._at("sigma", target)).add_(target).clamp_(min=0)
        return state.mul_(self._left(target, seconds, key))

    def _left(self, target: Tensor, seconds: float, key: NoiseKey) -> Tensor:
        if not self.drifts or seconds == 0:
            return torch.ones_like(target)
        drawn = sub_key(key, "drift").normal(target.shape, target.dtype, target.device)
        nu = drawn.mul_(self._at("nu_sigma", target)).add_(self._at("nu", target)).clamp_(min=0)
        return nu.mul_(-math.log((seconds + self.t0) / self.t0)).exp_()

    def read_sigma(self, state: Tensor, target: Tensor, seconds: float) -> Tensor:
        """Standard deviation of a read [uS]."""
        mean = self._at("nu", target)
        left = mean.mul_(-math.log((seconds + self.t0) / self.t0)).exp_()
        return self._at("read_noise", target).mul_(left)
