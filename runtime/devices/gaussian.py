"""Gaussian programming noise and power-law drift, the simplest models of both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..converters import is_number
from ..errors import InputError
from ..noise import NoiseKey, sub_key
from .base import Units

Scaling = Literal["independent", "proportional", "inverse"]


@dataclass(frozen=True, slots=True)
class GaussianDevice:
    """Each programmed value is ``g + sigma * N(0, 1)``, drawn once each time it is programmed.

    At ``t`` seconds after programming it is that times ``((t + t0) / t0) ** -nu``, the drift law of
    phase-change memory (Joshi et al., Nat. Commun. 11, 2473 (2020)), with an exponent
    ``nu = drift_nu + drift_nu_sigma * N(0, 1)`` of each device's own, not below zero.

    A generic model, not a published device: it is what device-agnostic robustness studies assume.
    A value is a conductance as a fraction of ``g_max``, not below zero; if the cell has no
    conductances, the normalised weight. The three scalings are those of Xiao et al., IEEE Circuits
    Syst. Mag. 22(4), 26 (2022).
    """

    sigma: float = 0.02
    """Standard deviation of programming, as a fraction of full scale."""
    drift_nu: float = 0.0
    """Mean drift exponent; 0 with ``drift_nu_sigma`` 0: no drift."""
    drift_nu_sigma: float = 0.0
    """Standard deviation of the drift exponent from device to device."""
    t0: float = 20.0
    """Time [s] from programming to the first read, which is ``t = 0``."""
    scaling: Scaling = "independent"
    """``independent``: sigma whatever the value. ``proportional``: ``sigma * g``. ``inverse``:
    ``sigma / g``, none at 0. For both noises."""
    read_noise: float = 0.0
    """Standard deviation of one read of each device, fresh for every MVM, as ``sigma``."""
    kind: ClassVar[str] = "gaussian"
    units: ClassVar[Units] = "full scale"

    def __post_init__(self) -> None:
        for name in ("sigma", "drift_nu", "drift_nu_sigma", "read_noise"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise InputError(
                    f"GaussianDevice.{name} must be a finite number >= 0, got {value!r}"
                )
        if not is_number(self.t0) or self.t0 <= 0:
            raise InputError(f"GaussianDevice.t0 must be a time > 0 [s], got {self.t0!r}")
        if self.scaling not in get_args(Scaling):
            known = ", ".join(get_args(Scaling))
            raise InputError(f"GaussianDevice.scaling must be one of {known}, got {self.scaling!r}")

    @property
    def is_ideal(self) -> bool:
        """True if there is neither noise nor drift."""
        return self.sigma == 0 and not self.drifts and not self.reads_noisily

    @property
    def drifts(self) -> bool:
        """True if an exponent can differ from zero."""
        return self.drift_nu > 0 or self.drift_nu_sigma > 0

    @property
    def reads_noisily(self) -> bool:
        """True if there is read noise."""
        return self.read_noise > 0

    @property
    def g_range(self) -> tuple[float, float]:
        """Any conductance."""
        return 0.0, math.inf

    @property
    def last_measured(self) -> float:
        """Any time."""
        return math.inf

    def state(self, target: Tensor, seconds: float, key: NoiseKey) -> Tensor:
        """Return ``target`` plus this key's noise, drifted; ``target`` itself without either."""
        return self.drift(self.program(target, key), seconds, sub_key(key, "drift"))

    def drift(self, written: Tensor, seconds: float, key: NoiseKey) -> Tensor:
        """Return ``written`` at ``seconds`` after programming; the same key, the same exponents."""
        if not self.drifts or seconds == 0:
            return written
        nu: float | Tensor = self.drift_nu
        if self.drift_nu_sigma > 0:
            noise = key.normal(written.shape, written.dtype, written.device)
            nu = noise.mul_(self.drift_nu_sigma).add_(self.drift_nu).clamp_(min=0)
        return written * ((seconds + self.t0) / self.t0) ** -nu

    def program(self, weight: Tensor, key: NoiseKey) -> Tensor:
        """Return ``weight`` (normalised, any shape) plus fresh noise, in a new tensor."""
        if self.sigma == 0:
            return weight
        noise = key.normal(weight.shape, weight.dtype, weight.device)
        if self.scaling == "independent":
            return noise.mul_(self.sigma).add_(weight)
        return noise.mul_(self._scaled(weight, self.sigma)).add_(weight)

    def read_sigma(self, state: Tensor, target: Tensor, seconds: float) -> Tensor:
        """``read_noise``, scaled by the value as it is."""
        return self._scaled(state, self.read_noise)

    def _scaled(self, value: Tensor, sigma: float) -> Tensor:
        size = value.abs()
        if self.scaling == "independent":
            return torch.full_like(size, sigma)
        if self.scaling == "proportional":
            return size.mul_(sigma)
        return torch.where(size > 0, sigma / size, 0.0)
