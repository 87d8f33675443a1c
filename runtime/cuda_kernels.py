"""Compiles and launches native/kernels.cu through CuPy, on torch's stream and torch's memory."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

OPTIONS = ("--std=c++17", "--fmad=false")
"""For NVRTC, which must not fuse multiplications and additions: results are those of the CPU."""

Argument = Tensor | np.generic | None
"""A tensor goes by its address, None as a null pointer, a number with its NumPy type."""


class Kernels(Protocol):
    """What launches the kernels by name."""

    def launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int], args: Sequence[Argument]
    ) -> None:
        """Run kernel ``name`` on the current stream."""
        ...


def source() -> str:
    """The CUDA source as one text, with scalar.h in place of its include."""
    folder = Path(__file__).parent / "native"
    scalar = (folder / "scalar.h").read_text().replace("#pragma once\n", "")
    return (folder / "kernels.cu").read_text().replace('#include "scalar.h"\n', scalar)


def address(value: Argument) -> np.generic:
    """An argument as what a kernel takes: pointers are 64-bit numbers."""
    if value is None:
        return np.uint64(0)
    return np.uint64(value.data_ptr()) if isinstance(value, Tensor) else value


class CupyKernels:
    """The kernels on one device. Memory is torch's, so a launch can be captured in a CUDA graph."""

    def __init__(self, device: torch.device) -> None:
        import cupy

        self._cupy = cupy
        self._index = device.index
        self._module = cupy.RawModule(code=source(), options=OPTIONS)
        with torch.cuda.device(device), cupy.cuda.Device(self._index):
            self._module.compile()

    def launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int], args: Sequence[Argument]
    ) -> None:
        """Run kernel ``name`` on torch's current stream."""
        stream = torch.cuda.current_stream(self._index)
        with self._cupy.cuda.Device(self._index), self._cupy.cuda.Stream.from_external(stream):
            self._module.get_function(name)(grid, block, tuple(map(address, args)))


@functools.cache
def kernels_for(device: torch.device) -> Kernels | None:
    """The kernels on ``device``; None, with a warning once, where they cannot be had."""
    try:
        return CupyKernels(device)
    except Exception as error:  # CuPy missing, its driver too old, or NVRTC absent
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(
            f"analog layers on {device} run as plain torch operations, which is slower: {reason} "
            f"(for the CUDA kernels: pip install 'analogc[cuda]')",
            stacklevel=2,
        )
        return None
