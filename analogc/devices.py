"""Device models and cells; see ``analogc.runtime.devices``."""

from .runtime.devices import (
    Cell,
    Device,
    DeviceTimeWarning,
    GaussianDevice,
    IdealDevice,
    PCMDevice,
    ReRAMCMODevice,
    ReRAMMiloDevice,
    ReRAMWanDevice,
    SONOSDevice,
    TableDevice,
)

__all__ = [
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
