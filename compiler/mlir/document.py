"""The reference page of the ``analog`` dialect, from its definitions."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, get_args, get_type_hints

from torch_mlir import ir

from . import dialect, kinds
from .dialect import Analog
from .kinds import Bool, I64Array
from .opt import PASSES

_HEAD = """# The analog dialect

Written by `pytest tests/compiler/mlir --update-docs` from `compiler/mlir/dialect.py` and
`kinds.py`; edit those. `compiler/mlir/analog.irdl.mlir` is the same in IRDL. With it
`torch-mlir-opt --irdl-file=analog.irdl.mlir` reads what analogc writes and checks its structure;
analogc itself runs the verifiers, too.
"""

_NAMES: dict[Any, str] = {
    Any: "any",
    ir.RankedTensorType: "ranked tensor of floats",
    ir.IntegerAttr: "integer",
    ir.FloatAttr: "float",
    ir.StringAttr: "string",
    ir.DictAttr: "dictionary",
    I64Array: "`array<i64: ...>`",
    Bool: "bool",
}


def page() -> str:
    """Text of docs/dialect.md."""
    parts = [_HEAD, _text(kinds.Analog), "## Types\n"]
    parts += [_parameters("!", kind, kind.type_name) for kind in Analog.types]
    parts.append("## Attributes\n")
    parts += [_parameters("#", kind, kind.attr_name) for kind in Analog.attributes]
    parts.append("## Operations\n")
    parts.append(_text(dialect).split("\n\n", 1)[1])
    parts += [_operation(kind) for kind in Analog.operations]
    parts.append("## Passes\n\nRun by `analogc opt --passes TEXT`, which takes MLIR's own, too.\n")
    parts += [_pass(name, kind) for name, kind in PASSES.items()]
    return "\n".join(parts)


def _text(item: Any) -> str:
    text = inspect.cleandoc(item.__doc__).replace("``", "`")
    return f"{text}\n"


def _parameters(sign: str, kind: Any, name: str) -> str:
    fields = kind._fields
    inner = ", ".join(field.name for field in fields)
    lines = [f"### `{sign}{name}{f'<{inner}>' if inner else ''}`\n", _text(kind)]
    if fields:
        lines.append("| parameter | kind |\n|---|---|")
        lines += [f"| `{field.name}` | {_kind(field.constraint)} |" for field in fields]
        lines.append("")
    return "\n".join(lines)


def _operation(kind: Any) -> str:
    lines = [f"### `{kind.OPERATION_NAME}`\n", _text(kind), "| field | is | kind |\n|---|---|---|"]
    order = {"operand": 0, "attribute": 1, "result": 2}
    rows = [(type(field).__name__.removesuffix("Def").lower(), field) for field in kind._fields]
    for role, field in sorted(rows, key=lambda row: order[row[0]]):
        many = field.variadicity.name
        role = role if many == "single" else f"{many} {role}"
        lines.append(f"| `{field.name}` | {role} | {_kind(field.constraint)} |")
    return "\n".join([*lines, ""])


def _kind(constraint: Any) -> str:
    if constraint in _NAMES:
        return _NAMES[constraint]
    if options := get_args(constraint):
        return " or ".join(map(_kind, options))
    if constraint in Analog.types:
        return f"`!{constraint.type_name}`"
    return f"`#{constraint.attr_name}`"


def _pass(name: str, kind: Any) -> str:
    lines = [f"### `{name}`\n", _text(inspect.getmodule(kind))]
    options = [
        f"| `{f.name}` | {' or '.join(map(str, get_args(hint))) or 'text'} | `{f.default}` |"
        for f, hint in ((f, get_type_hints(kind)[f.name]) for f in dataclasses.fields(kind))
    ]
    if options:
        lines += ["| option | values | default |\n|---|---|---|", *options, ""]
    return "\n".join(lines)
