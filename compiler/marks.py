"""Sizes that ``dynamic_shapes=`` leaves open, as marks on example inputs, which is dynamo's way."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch._dynamo
from torch import Tensor, nn

from .batches import Call
from .capture import Source


def marked(call: Call, source: Source) -> Call:
    """``call`` with its tensors marked as ``source.dynamic_shapes`` says."""
    args, kwargs = call
    shapes = source.dynamic_shapes
    assert isinstance(source.model, nn.Module), "an ExportedProgram has shapes of its own"
    if isinstance(shapes, str):
        _mark((args, kwargs), {d: None for d in range(1 if shapes == "batch" else 8)}, True)
        return call
    bound = inspect.signature(source.model.forward).bind(*args, **kwargs).arguments
    each = shapes if isinstance(shapes, dict) else dict(zip(bound, shapes, strict=False))
    for name, value in bound.items():
        _mark(value, each.get(name))
    return call


def _mark(value: Any, spec: Any, everywhere: bool = False) -> None:
    if isinstance(value, Tensor):
        dims = spec.items() if isinstance(spec, dict) else enumerate(spec or ())
        for dim, size in dims:
            if (everywhere or size is not None) and dim < value.dim():
                torch._dynamo.maybe_mark_dynamic(value, dim)
        return
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        if everywhere:
            _mark(item, spec, True)
        elif isinstance(spec, dict):
            _mark(item, spec.get(key))
        elif isinstance(spec, list | tuple) and isinstance(key, int) and key < len(spec):
            _mark(item, spec[key])
