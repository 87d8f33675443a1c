"""The errors a user can meet.

Each names the place (layer, node, source line) and the fix. Broken invariants of analogc itself are
assertions instead.
"""

from __future__ import annotations

__all__ = [
    "AccessError",
    "AnalogcError",
    "FormatError",
    "InputError",
    "SyncError",
    "UnsupportedError",
    "VerifyError",
]


class AnalogcError(Exception):
    """Base of all errors that analogc raises for a user's fault."""

    def __init__(self, message: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.message = message
        self.where = where
        """The layer, node or source line concerned, if there is one."""
        self.fix = fix
        """What to do about it, if there is one clear thing."""
        parts = [message]
        if where:
            parts.append(f"  at:  {where}")
        if fix:
            parts.append(f"  fix: {fix}")
        super().__init__("\n".join(parts))


class UnsupportedError(AnalogcError):
    """The model does something that analogc cannot capture or map."""


class InputError(AnalogcError, ValueError):
    """An argument of a public call is wrong: its type, shape, name or value."""


class AccessError(AnalogcError):
    """A weight was written or looked at against the model's ``weight_access``."""


class VerifyError(AnalogcError):
    """A graph breaks the rules of the IR; raised by the verifier."""


class SyncError(AnalogcError):
    """A tile array is stale and may not be re-programmed without being asked."""


class FormatError(AnalogcError):
    """A compiled file is truncated, altered, or of an unknown version."""
