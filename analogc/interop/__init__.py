"""Settings of other simulators as targets."""

from . import aihwkit

__all__ = ["aihwkit"]
