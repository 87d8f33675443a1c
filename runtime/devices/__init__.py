"""Device models: what a target weight becomes when it is written into resistive devices.

A model is a small frozen dataclass with a ``kind`` (its name in JSON), ``program`` and ``drift``.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from ..noise import NoiseKey
from .gaussian import GaussianDevice
from .ideal import IdealDevice

__all__ = ["KINDS", "Device", "GaussianDevice", "IdealDevice"]


@runtime_checkable
class Device(Protocol):
    """What the runtime asks of a device model."""

    kind: ClassVar[str]

    @property
    def is_ideal(self) -> bool:
        """True if programming changes nothing."""
        ...

    def program(self, weight: Tensor, key: NoiseKey) -> Tensor:
        """Effective normalised weight after writing ``weight`` (both in units of full scale)."""
        ...

    @property
    def drifts(self) -> bool:
        """True if what was written changes with time."""
        ...

    def drift(self, written: Tensor, seconds: float, key: NoiseKey) -> Tensor:
        """What ``written`` has become ``seconds`` after programming: a function of its operands."""
        ...


KINDS: dict[str, type[IdealDevice] | type[GaussianDevice]] = {
    IdealDevice.kind: IdealDevice,
    GaussianDevice.kind: GaussianDevice,
}
