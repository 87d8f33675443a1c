"""What a command line names, as objects: models, weights, targets, tensors."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..runtime import targets
from ..runtime.errors import FormatError, InputError
from ..runtime.target import Target, TileSpec
from .model import CompiledModel
from .signature import TensorLeaf

_IDS = 10
"""Random integers are below this: valid token ids of any but the smallest vocabulary."""
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")


# -- text -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Shape and dtype of an input."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def random(self) -> Tensor:
        """Normal numbers, small integers or coin flips, from torch's default generator."""
        if self.dtype.is_floating_point:
            return torch.randn(self.shape).to(self.dtype)
        high = 2 if self.dtype is torch.bool else _IDS
        return torch.randint(0, high, self.shape).to(self.dtype)


def input_spec(text: str) -> InputSpec:
    """``2x3x32x32`` or ``2x16:int64``, for argparse."""
    shape, _, dtype = text.partition(":")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 2x3x32x32")
    if dtype and dtype not in _DTYPES:
        raise argparse.ArgumentTypeError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    return InputSpec(tuple(map(int, shape.split("x"))), getattr(torch, dtype or "float32"))


def tile_size(text: str) -> tuple[int, int]:
    """``256x128``: rows and columns, for argparse."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxCOLS, such as 256x128")
    rows, cols = map(int, text.split("x"))
    return rows, cols


def load_target(text: str, tile: tuple[int, int] | None = None) -> Target:
    """Target of a preset's name or a JSON file, with another tile size if ``tile`` is given.

    Raises:
        InputError: there is none of that name, or no such file.
        FormatError: the file does not hold a target.
    """
    if text.endswith(".json"):
        path = Path(text)
        if not path.is_file():
            raise InputError(f"no file {text!r}")
        try:
            target = Target.from_json(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as err:
            raise FormatError(f"{text} is not a text file: {err}") from None
    else:
        target = targets.get(text)
    if tile is None:
        return target
    return target.replace(tile=TileSpec(*tile, target.tile.columns_per_weight))


# -- models ---------------------------------------------------------------------------------------


def load_model(text: str) -> nn.Module:
    """Model that ``package.module:factory`` or ``path/to/file.py:factory`` makes.

    Raises:
        InputError: it cannot be imported, is not there, fails, or makes something else.
    """
    source, _, name = text.rpartition(":")
    if not source or not name:
        raise InputError(
            f"{text!r} does not name a model",
            fix="MODULE:FACTORY, for example mypackage.models:build or models.py:build",
        )
    found: Any = _import(source)
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{source!r} has no {name!r}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise InputError(f"{text} is a {type(found).__name__}, not a function or a class")
    try:
        model = found()
    except Exception as err:
        raise InputError(f"{text}() failed: {type(err).__name__}: {err}") from err
    if not isinstance(model, nn.Module):
        raise InputError(f"{text}() returned a {type(model).__name__}, not an nn.Module")
    return model


def _import(source: str) -> ModuleType:
    path = Path(source)
    is_file = source.endswith(".py")
    if is_file and not path.is_file():
        raise InputError(f"no file {source!r}")
    # As for a script, the modules beside it (or in the working folder) can be imported.
    folder = str(path.resolve().parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _import_file(path) if is_file else importlib.import_module(source)
    except Exception as err:
        raise InputError(f"cannot import {source!r}: {type(err).__name__}: {err}") from err


def _import_file(path: Path) -> ModuleType:
    name = path.stem if path.stem not in sys.modules else f"analogc_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_weights(model: nn.Module, text: str) -> None:
    """Load the state dict in file ``text``, safetensors or torch's, into ``model``.

    Raises:
        FormatError: the file cannot be read as one.
        InputError: there is no such file, or it does not fit the model.
    """
    if not Path(text).is_file():
        raise InputError(f"no file {text!r}")
    try:
        if text.endswith(".safetensors"):
            state: Any = safetensors.torch.load_file(text)
        else:
            state = torch.load(text, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as err:
        first = str(err).strip().partition("\n")[0]
        raise FormatError(
            f"{text} cannot be read as weights: {first}",
            fix="save them with safetensors, or with torch.save(model.state_dict(), path)",
        ) from err
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise FormatError(f"{text} holds a {type(state).__name__}, not a state dict")
    try:
        model.load_state_dict(state)
    except RuntimeError as err:
        raise InputError(f"{text} does not fit the model: {err}") from err


# -- tensors --------------------------------------------------------------------------------------


def read_tensors(paths: Sequence[str], names: Sequence[str]) -> list[Tensor]:
    """Tensors for the inputs ``names``, in their order.

    A ``.npy`` file is the next input that has none yet, a ``.safetensors`` file goes by names (or
    holds one tensor, for a single input).

    Raises:
        FormatError: a file is of neither kind, or damaged.
        InputError: there is no such file, or an input has no tensor.
    """
    found: dict[str, Tensor] = {}
    for text in paths:
        if not Path(text).is_file():
            raise InputError(f"no file {text!r}")
        read = _read_file(text)
        if "" in read or (len(read) == 1 and len(names) == 1):
            free = next((name for name in names if name not in found), None)
            if free is None:
                raise InputError(f"{text}: all inputs have data already ({', '.join(names)})")
            found[free] = next(iter(read.values()))
        else:
            found.update({key: value for key, value in read.items() if key in names})
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"no data for input {', '.join(missing)}",
            fix="a .npy file for each input, or a .safetensors file with tensors of these names",
        )
    return [found[name] for name in names]


def _read_file(text: str) -> dict[str, Tensor]:
    """Tensors by name; that of a .npy file is nameless."""
    try:
        if text.endswith(".npy"):
            return {"": torch.from_numpy(np.load(text, allow_pickle=False))}
        if text.endswith(".safetensors"):
            return safetensors.torch.load_file(text)
    except (safetensors.SafetensorError, ValueError, TypeError, EOFError) as err:
        raise FormatError(f"{text} cannot be read: {err}") from err
    raise FormatError(f"{text} is neither .npy nor .safetensors")


def calibration_batches(
    model: nn.Module, examples: Sequence[Tensor], paths: Sequence[str]
) -> list[tuple[Tensor, ...]]:
    """Data from files in batches as large as that of the examples, what is left over dropped."""
    names = list(inspect.signature(model.forward).parameters)[: len(examples)]
    names += [f"input{i}" for i in range(len(names), len(examples))]
    tensors = read_tensors(paths, names)
    size = max(int(examples[0].shape[0]), 1)
    count = min(len(t) if t.dim() else 0 for t in tensors) // size
    if not count:
        raise InputError(f"calibration data is less than one batch of {size}")
    typed = [_typed(t, e.dtype) for t, e in zip(tensors, examples, strict=True)]
    return [tuple(t[i * size : (i + 1) * size] for t in typed) for i in range(count)]


def call_inputs(
    model: CompiledModel, specs: Sequence[InputSpec], paths: Sequence[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for a call of ``model``: from files, random of given shapes, or just random.

    Raises:
        InputError: too few or too many shapes, or data that does not fit.
    """
    signature = model.signature
    wanted = {
        name: leaf
        for name, leaf in zip(signature.names, signature.leaves, strict=True)
        if isinstance(leaf, TensorLeaf)
    }
    if paths:
        tensors = read_tensors(paths, list(wanted))
        tensors = [_typed(t, leaf.dtype) for t, leaf in zip(tensors, wanted.values(), strict=True)]
    elif specs:
        if len(specs) != len(wanted):
            raise InputError(
                f"{len(specs)} --input given, the model has {len(wanted)}: {', '.join(wanted)}"
            )
        tensors = [spec.random() for spec in specs]
    else:
        tensors = [
            InputSpec(tuple(2 if n is None else n for n in leaf.shape), leaf.dtype).random()
            for leaf in wanted.values()
        ]
    given = iter(tensors)
    values = [
        next(given) if isinstance(leaf, TensorLeaf) else getattr(leaf, "value", 2)
        for leaf in signature.leaves
    ]
    args, kwargs = pytree.tree_unflatten(values, signature.in_spec)
    return tuple(args), dict(kwargs)


def _typed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Files hold float64 and int32 where a model wants float32 and int64; kinds stay apart."""
    same_kind = value.dtype.is_floating_point == dtype.is_floating_point
    return value.to(dtype) if same_kind else value


def write_tensors(path: str, tensors: dict[str, Tensor]) -> None:
    """Write one tensor to a ``.npy`` file, or any number to a ``.safetensors`` file.

    Raises:
        InputError: another kind of file, or several tensors for a ``.npy`` file.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    if path.endswith(".safetensors"):
        safetensors.torch.save_file(plain, path)
        return
    if not path.endswith(".npy") or len(plain) != 1:
        raise InputError(
            f"cannot write {len(plain)} tensors to {path!r}",
            fix="one tensor goes to a .npy file, any number to a .safetensors file",
        )
    (value,) = plain.values()
    # NumPy has no bfloat16.
    np.save(path, value.float().numpy() if value.dtype is torch.bfloat16 else value.numpy())
