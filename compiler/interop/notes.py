"""What a translation of settings could not carry over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

How = Literal["dropped", "approximated", "differs"]


@dataclass(frozen=True, slots=True)
class Note:
    """One setting that the target does not have as it was."""

    setting: str
    """Path in the settings, as ``forward.out_noise_std``."""
    how: How
    """``dropped``: not in the target. ``approximated``: something near to it is. ``differs``: it
    is, and means something else in cases that the reason names."""
    reason: str

    def __str__(self) -> str:
        return f"{self.setting} {self.how}: {self.reason}"


class InteropWarning(UserWarning):
    """Settings of another simulator that a target does not have as they were."""
