"""From the torch dialect down: to linalg around analog operations, and to linalg alone."""

from __future__ import annotations

from typing import Any

from .pipelines import TO_BACKEND_FORM, TO_LINALG, VERIFY_LINALG, run


def to_analog(module: Any) -> None:
    """Lower the digital work of ``module`` to linalg; analog operations stay.

    Raises:
        UnsupportedError: torch-mlir has no lowering of one of its operators.
    """
    run(module, TO_BACKEND_FORM, "the lowering to torch-mlir's backend form")
    run(module, TO_LINALG, "the lowering to linalg")


def to_linalg(module: Any) -> None:
    """Expand the analog operations of ``module``, too; the official contract holds then.

    Raises:
        UnsupportedError: a layer does what linalg cannot, output noise for example.
    """
    from .passes.expand_analog import expand_analog

    expand_analog(module)
    run(module, VERIFY_LINALG, "the check of the linalg contract")
