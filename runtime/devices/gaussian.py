"""State-independent Gaussian programming noise, the simplest model of write error."""

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

    A generic model, not a published device: it is what device-agnostic robustness studies assume.
    """

    sigma: float = 0.02
    """Standard deviation as a fraction of full scale (the largest weight of the tile)."""
    kind: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        if not is_number(self.sigma) or self.sigma < 0:
            raise InputError(
                f"GaussianDevice.sigma must be a finite number >= 0, got {self.sigma!r}"
            )

    @property
    def is_ideal(self) -> bool:
        """True if ``sigma`` is zero."""
        return self.sigma == 0

    def program(self, weight: Tensor, key: NoiseKey) -> Tensor:
        """Return ``weight`` (normalised, any shape) plus fresh noise, in a new tensor."""
        if self.is_ideal:
            return weight
        noise = key.normal(weight.shape, weight.dtype, weight.device)
        return noise.mul_(self.sigma).add_(weight)
