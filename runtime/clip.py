"""Clipping of weights before they are written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightClip:
    """Owner: helper p1."""
