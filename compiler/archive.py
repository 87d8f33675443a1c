"""One file for a compiled model: a safetensors file whose metadata holds the rest as JSON.

No pickle, no code. A checksum over everything is compared first, so a damaged file is refused as a
whole; what the JSON says is checked on its own, so an altered one cannot do harm either.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..runtime.errors import AnalogcError, FormatError, InputError
from .archive_read import rebuild
from .archive_write import FORMAT, describe
from .model import CompiledModel

_MANIFEST, _CHECKSUM = "analogc.manifest", "analogc.sha256"


# -- writing --------------------------------------------------------------------------------------


def to_bytes(model: CompiledModel) -> bytes:
    """File content for ``model``."""
    manifest, tensors = describe(model)
    text = json.dumps(manifest, separators=(",", ":"))
    metadata = {_MANIFEST: text, _CHECKSUM: _checksum(text, tensors)}
    return safetensors.torch.save(tensors, metadata)


def save(model: CompiledModel, path: Path) -> None:
    """Write ``model`` to ``path``; a file that is there is replaced only when all is written."""
    data = to_bytes(model)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        if value.numel():
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# -- reading --------------------------------------------------------------------------------------


def load(
    path: str | Path,
    map_location: str | torch.device = "cpu",
    allow_ops: Collection[str] = (),
) -> CompiledModel:
    """Read a compiled model from the file that ``CompiledModel.save`` wrote.

    The model's class is not needed. Nothing in the file is executed on loading.

    Args:
        path: the file.
        map_location: device to put the model on.
        allow_ops: namespaces of custom operators that its graph may use, besides torch's.

    Raises:
        FormatError: the file is truncated, altered, or not one of analogc's.
        InputError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {str(path)!r}")
    with path.open("rb") as stream:
        return from_file(stream, map_location, allow_ops, str(path))


def from_file(
    stream: io.BufferedIOBase | io.BytesIO | Any,
    map_location: str | torch.device = "cpu",
    allow_ops: Collection[str] = (),
    name: str = "data",
) -> CompiledModel:
    """Read a compiled model from an open binary stream."""
    data = stream.read()
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError, RuntimeError, OverflowError) as err:
        raise FormatError(f"{name} is not a compiled model, or is truncated: {err}") from None
    if _MANIFEST not in metadata or _CHECKSUM not in metadata:
        raise FormatError(f"{name} is a safetensors file, but not of a compiled model")
    text = metadata[_MANIFEST]
    if _checksum(text, tensors) != metadata[_CHECKSUM]:
        raise FormatError(f"{name} was altered or damaged: its checksum does not match")
    try:
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            raise FormatError(
                f"{name} has format {manifest['format']!r}, this analogc reads format {FORMAT}"
            )
        return rebuild(manifest, tensors, torch.device(map_location), allow_ops)
    except AnalogcError as err:
        if isinstance(err, FormatError):
            raise
        raise FormatError(f"{name} does not hold a valid model: {err}") from err
    except Exception as err:
        # Whatever an altered file leads to, it is the file's fault.
        raise FormatError(
            f"{name} does not hold a valid model: {type(err).__name__}: {err}"
        ) from err
