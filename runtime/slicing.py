"""Bit slices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slicing:
    """Owner: helper p2."""
