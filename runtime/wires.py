"""Resistance of the lines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wires:
    """Owner: helper p3."""
