"""A device that holds exactly the weight that was asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..noise import NoiseKey
from .base import Units


@dataclass(frozen=True, slots=True)
class IdealDevice:
    """No noise, no drift."""

    kind: ClassVar[str] = "ideal"
    units: ClassVar[Units] = "full scale"

    @property
    def is_ideal(self) -> bool:
        """Always true."""
        return True

    @property
    def drifts(self) -> bool:
        """Never."""
        return False

    @property
    def reads_noisily(self) -> bool:
        """Never."""
        return False

    @property
    def g_range(self) -> tuple[float, float]:
        """Any conductance."""
        return 0.0, math.inf

    @property
    def last_measured(self) -> float:
        """Any time."""
        return math.inf

    def state(self, target: Tensor, seconds: float, key: NoiseKey) -> Tensor:
        """Return ``target`` itself."""
        return target

    def read_sigma(self, state: Tensor, target: Tensor, seconds: float) -> Tensor:
        """Zero."""
        return torch.zeros_like(state)
