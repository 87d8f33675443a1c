"""A device that holds exactly the weight that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..noise import NoiseKey


@dataclass(frozen=True, slots=True)
class IdealDevice:
    """No levels, no noise, no drift."""

    kind: ClassVar[str] = "ideal"

    @property
    def is_ideal(self) -> bool:
        """Always true."""
        return True

    @property
    def drifts(self) -> bool:
        """Never."""
        return False

    def drift(self, written: Tensor, seconds: float, key: NoiseKey) -> Tensor:
        """Return ``written`` itself."""
        return written

    def program(self, weight: Tensor, key: NoiseKey) -> Tensor:
        """Return ``weight`` itself."""
        return weight
