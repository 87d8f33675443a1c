"""Names for buffers and modules."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container


def free_name(wanted: str, taken: Container[str]) -> str:
    """``wanted`` as an identifier, with a number behind it if that is taken."""
    plain = re.sub(r"\W", "_", wanted)
    numbered = (f"{plain}_{i}" for i in itertools.count(2))
    return next(name for name in itertools.chain([plain], numbered) if name not in taken)
