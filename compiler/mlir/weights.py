"""Where the weights of a module are: arguments, constants inside, or a file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
from torch import Tensor
from torch_mlir import ir

from ...runtime.errors import InputError
from .arguments import Argument

if TYPE_CHECKING:
    from ..inspected import Inspected
    from .module import MlirModule

FILE = "analog.weights"
"""Attribute of a module: name of the file that holds its weights, by argument name."""


def check(weights: str | Path) -> None:
    """Raise InputError unless ``weights`` is a way to keep weights."""
    if weights not in ("args", "inline") and Path(weights).suffix != ".safetensors":
        raise InputError(
            f"weights must be 'args', 'inline' or the path of a .safetensors file, got {weights!r}"
        )


def literals(arguments: tuple[Argument, ...], model: Inspected) -> dict[str, Tensor]:
    """Values of all arguments that are no inputs."""
    return {a.name: a.value(model) for a in arguments if a.kind != "input"}


def write(path: Path, made: MlirModule, model: Inspected) -> None:
    """Write the weights that ``made`` takes to ``path``, and let the module name the file."""
    values = literals(made.arguments, model)
    # Clones: safetensors takes no two tensors in one memory.
    tensors = {name: value.cpu().contiguous().clone() for name, value in values.items()}
    safetensors.torch.save_file(tensors, path)
    with made.module.context:
        made.module.operation.attributes[FILE] = ir.StringAttr.get(path.name)
