"""Input and output structures as JSON: tuples, lists, dicts, named tuples, dataclasses."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import keyword
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..runtime.errors import FormatError, UnsupportedError
from .graph_json import checked_name


def tree_to_json(spec: pytree.TreeSpec) -> Any:
    """Plain values for a TreeSpec."""
    if spec.is_leaf():
        return "*"
    children = [tree_to_json(child) for child in spec.children()]
    if spec.type in (tuple, list):
        return [spec.type.__name__, children]
    if isinstance(spec.type, type) and issubclass(spec.type, dict):
        keys = list(spec.context if isinstance(spec.context, list) else spec.context[-1])
        if all(isinstance(key, str | int) for key in keys) and spec.type is dict:
            return ["dict", keys, children]
        if all(isinstance(key, str) for key in keys):
            return ["named", spec.type.__name__, keys, [], children]
    names = _fields(spec)
    if names is not None:
        return ["named", spec.type.__name__, *names, children]
    raise UnsupportedError(
        f"inputs or outputs of type {spec.type!r} have no form in a file",
        fix="return tensors, tuples, lists, dicts or dataclasses",
    )


def _fields(spec: pytree.TreeSpec) -> tuple[list[str], list[str]] | None:
    """Names of the fields with a value, and of those that are None."""
    if dataclasses.is_dataclass(spec.type):
        present, absent = spec.context
        return list(present), list(absent)
    kind = spec.context if spec.type.__name__ == "namedtuple" else spec.type
    fields = getattr(kind, "_fields", None)
    return None if fields is None else (list(fields), [])


def tree_from_json(data: Any) -> pytree.TreeSpec:
    """TreeSpec of the plain values. A dataclass comes back as one of the same name and fields."""
    return pytree.tree_structure(_example(data))


def _example(data: Any) -> Any:
    if data == "*":
        return 0
    match data:
        case ["tuple", list(children)]:
            return tuple(map(_example, children))
        case ["list", list(children)]:
            return list(map(_example, children))
        case ["dict", list(keys), list(children)]:
            return dict(zip(keys, map(_example, children), strict=True))
        case ["named", str(name), list(present), list(absent), list(children)]:
            kind = _stand_in(name, tuple(present), tuple(absent))
            return kind(**dict(zip(present, map(_example, children), strict=True)))
    raise FormatError("not a structure of inputs or outputs")


@functools.lru_cache(maxsize=256)
def _stand_in(name: str, present: tuple[str, ...], absent: tuple[str, ...]) -> type:
    """A dataclass for one whose own class is not here."""
    for field in (name, *present, *absent):
        if keyword.iskeyword(checked_name(field)):
            raise FormatError(f"not a plain name: {field!r}")
    fields: list[Any] = [(field, Any) for field in present]
    fields += [(field, Any, dataclasses.field(default=None)) for field in absent]
    kind = dataclasses.make_dataclass(name, fields)
    torch.export.register_dataclass(kind, serialized_type_name=f"analogc.{name}.{id(kind)}")
    return kind


def parameters_to_json(signature: inspect.Signature | None) -> Any:
    """Parameters of a forward; defaults that are plain values are kept."""
    if signature is None:
        return None
    return [
        [p.name, int(p.kind), p.default is not inspect.Parameter.empty, _plain(p.default)]
        for p in signature.parameters.values()
    ]


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else None


def parameters_from_json(data: Any) -> inspect.Signature | None:
    """Signature of the plain values."""
    if data is None:
        return None
    kinds = list(inspect._ParameterKind)
    return inspect.Signature(
        [
            inspect.Parameter(
                checked_name(name),
                kinds[kind],
                default=default if has_default else inspect.Parameter.empty,
            )
            for name, kind, has_default, default in data
        ]
    )
