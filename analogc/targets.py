"""Preset targets; see ``analogc.runtime.targets``."""

from .runtime.targets import generic_8bit, generic_8bit_noisy, get, ideal, isaac_like, names

__all__ = ["generic_8bit", "generic_8bit_noisy", "get", "ideal", "isaac_like", "names"]
