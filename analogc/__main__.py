"""``python -m analogc``, and the ``analogc`` command."""

import sys

from .compiler.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
