"""Runtime: device and converter models, tile arrays, the analogc:: operators and their kernels.

The lowest room: it imports nothing of ``passes`` or ``compiler``. Importing it registers the
operators.
"""

from . import ops, reference, transforms

__all__ = ["ops", "reference", "transforms"]
