"""Device models: what a target value becomes when it is written into resistive devices.

A model is a small frozen dataclass with a ``kind`` (its name in JSON), see ``base.Device``.
"""

from __future__ import annotations

from .base import Device
from .cell import Cell
from .gaussian import GaussianDevice
from .ideal import IdealDevice

__all__ = ["KINDS", "Cell", "Device", "GaussianDevice", "IdealDevice"]

KINDS: dict[str, type[IdealDevice] | type[GaussianDevice]] = {
    IdealDevice.kind: IdealDevice,
    GaussianDevice.kind: GaussianDevice,
}
