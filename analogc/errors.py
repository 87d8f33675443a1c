"""The errors that users can meet; see ``analogc.runtime.errors``."""

from .runtime.errors import (
    AccessError,
    AnalogcError,
    FormatError,
    InputError,
    SyncError,
    UnsupportedError,
    VerifyError,
)

__all__ = [
    "AccessError",
    "AnalogcError",
    "FormatError",
    "InputError",
    "SyncError",
    "UnsupportedError",
    "VerifyError",
]
