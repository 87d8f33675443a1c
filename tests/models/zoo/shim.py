"""Make torchvision importable beside a CPU build of torch.

torchvision's wheels are linked against CUDA. Where its native library cannot be loaded, the import
fails for want of two operators, which no classifier uses. They are declared without an
implementation: models work, and detection's own operators raise when they are called.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest
import torch

INSTALL = "pip install torch==2.13.0 -e '.[test,zoo]'"
_declared: list[torch.library.Library] = []


def need(*names: str) -> None:
    """Skip the tests of the fixture that calls this if one of the packages is not installed.

    transformers looks for torchvision, so that too has to be importable or absent.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: {INSTALL}")
    if importlib.util.find_spec("torchvision") is not None:
        _import_torchvision()


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
        return
    except (RuntimeError, OSError):
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    if not _declared:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)  # an operator lives as long as its library
    importlib.import_module("torchvision")
