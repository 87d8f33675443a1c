"""Device models: what a target value becomes when it is written into resistive devices.

A model is a small frozen dataclass with a ``kind`` (its name in JSON), see ``base.Device``. A
published one is in the file of its family.
"""

from __future__ import annotations

from .base import Device, DeviceTimeWarning
from .cell import Cell
from .gaussian import GaussianDevice
from .ideal import IdealDevice
from .pcm import PCMDevice
from .reram import ReRAMCMODevice, ReRAMMiloDevice, ReRAMWanDevice
from .sonos import SONOSDevice
from .table import TableDevice

__all__ = [
    "KINDS",
    "Cell",
    "Device",
    "DeviceTimeWarning",
    "GaussianDevice",
    "IdealDevice",
    "PCMDevice",
    "ReRAMCMODevice",
    "ReRAMMiloDevice",
    "ReRAMWanDevice",
    "SONOSDevice",
    "TableDevice",
]

_KINDS: tuple[type[Device], ...] = (
    IdealDevice, GaussianDevice, PCMDevice, ReRAMWanDevice, ReRAMMiloDevice, ReRAMCMODevice,
    SONOSDevice, TableDevice,
)  # fmt: skip
KINDS: dict[str, type[Device]] = {kind.kind: kind for kind in _KINDS}
"""Device models by name."""
