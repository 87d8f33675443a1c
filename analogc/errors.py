"""The errors that users can meet; see ``analogc.runtime.errors``."""

from .runtime.errors import (
    AnalogcError,
    FormatError,
    InputError,
    SyncError,
    UnsupportedError,
    VerifyError,
)

__all__ = [
    "AnalogcError",
    "FormatError",
    "InputError",
    "SyncError",
    "UnsupportedError",
    "VerifyError",
]
