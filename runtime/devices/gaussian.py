"""State-independent Gaussian programming noise and power-law drift, the simplest models of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..converters import is_number
from ..errors import InputError
from ..noise import NoiseKey


@dataclass(frozen=True, slots=True)
class GaussianDevice:
    """Each programmed weight is ``w + sigma * N(0, 1)``, drawn once each time it is programmed.

    At ``t`` seconds after programming it is that times ``((t + t0) / t0) ** -nu``, the drift law of
    phase-change memory (Joshi et al., Nat. Commun. 11, 2473 (2020)), with an exponent
    ``nu = drift_nu + drift_nu_sigma * N(0, 1)`` of each weight's own, not below zero.

    A generic model, not a published device: it is what device-agnostic robustness studies assume.
    """

    sigma: float = 0.02
    """Standard deviation as a fraction of full scale (the largest weight of the tile)."""
    drift_nu: float = 0.0
    """Mean drift exponent; 0 with ``drift_nu_sigma`` 0: no drift."""
    drift_nu_sigma: float = 0.0
    """Standard deviation of the drift exponent from weight to weight."""
    t0: float = 20.0
    """Time [s] from programming to the first read, which is ``t = 0``."""
    kind: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        for name in ("sigma", "drift_nu", "drift_nu_sigma"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise InputError(
                    f"GaussianDevice.{name} must be a finite number >= 0, got {value!r}"
                )
        if not is_number(self.t0) or self.t0 <= 0:
            raise InputError(f"GaussianDevice.t0 must be a time > 0 [s], got {self.t0!r}")

    @property
    def is_ideal(self) -> bool:
        """True if there is neither noise nor drift."""
        return self.sigma == 0 and not self.drifts

    @property
    def drifts(self) -> bool:
        """True if an exponent can differ from zero."""
        return self.drift_nu > 0 or self.drift_nu_sigma > 0

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
        return noise.mul_(self.sigma).add_(weight)
