"""Settings of the IBM Analog Hardware Acceleration Kit; see ``compiler/interop``."""

from ..compiler.interop.aihwkit_config import target_from, to_dict
from ..compiler.interop.notes import InteropWarning, Note

__all__ = ["InteropWarning", "Note", "target_from", "to_dict"]
