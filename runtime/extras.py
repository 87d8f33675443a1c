"""Optional packages: imported where they are used, with a message that says how to get them."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import InputError


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, which the extra ``extra`` of this package installs.

    Raises:
        InputError: it is missing; the fix is the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as err:
        package = module.partition(".")[0]
        if (err.name or "").partition(".")[0] != package:
            raise
        raise InputError(
            f"this needs {package}, which is not installed", fix=f"pip install 'analogc[{extra}]'"
        ) from None
