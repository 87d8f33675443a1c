"""Circuits between columns and ADC."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Periphery:
    """Owner: helper p2."""
