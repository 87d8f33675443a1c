"""fx graphs as plain JSON values and back. Reading never runs anything that the text names.

Operators are looked up by name in namespaces that only compute; every name that ends up in fx's
generated code is checked to be a plain identifier first.
"""

from __future__ import annotations

import json
import keyword
import math
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..passes.base import FROM, META, module_path, source_line
from ..runtime import regions
from ..runtime.derived import DerivedWeight
from ..runtime.errors import FormatError, UnsupportedError
from ..runtime.mapping import Digital, TileMapping
from .signature import static_size

NAMESPACES = frozenset({"aten", "analogc", "prims"})
_REFUSED = frozenset({"from_file", "_print", "set_data"})

_REGIONS: tuple[Callable[..., Any], ...] = (*regions.ENTERS, regions.leave, regions.join)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in (
            "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow",
            "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_",
        )
    },
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite")
    },
    **{f"math.{name}": getattr(math, name) for name in ("floor", "ceil", "trunc")},
    **{f"regions.{function.__name__}": function for function in _REGIONS},
}  # fmt: skip
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}
_ATOMS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


def checked_path(path: object) -> str:
    """``path`` if it is a dotted path that fx can write into code; FormatError otherwise.

    fx writes ``getattr(x, "a-b")`` for a part that is no identifier, so nothing may end the string.
    """
    good = isinstance(path, str) and path.isprintable() and not set(path) & set("\"'\\")
    if not isinstance(path, str) or not good or not all(path.split(".")):
        raise FormatError(f"not a path of plain names: {path!r}")
    return path


def checked_name(name: object) -> str:
    """``name`` if it is an identifier; FormatError otherwise."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise FormatError(f"not a plain name: {name!r}")
    return name


# -- writing --------------------------------------------------------------------------------------


def graph_to_json(graph: fx.Graph) -> list[dict[str, Any]]:
    """Nodes of ``graph``, in order, as plain values."""
    return [_node_to_json(node) for node in graph.nodes]


def _node_to_json(node: fx.Node) -> dict[str, Any]:
    data: dict[str, Any] = {"name": node.name, "op": node.op, "target": _target_name(node)}
    if node.args:
        data["args"] = [_encode(arg, node) for arg in node.args]
    if node.kwargs:
        data["kwargs"] = {key: _encode(value, node) for key, value in node.kwargs.items()}
    if node.op == "placeholder":
        data["value"] = _value_to_json(node.meta.get("val"))
    record = node.meta.get(META)
    if isinstance(record, TileMapping):
        data["tiles"] = record.to_dict()
    elif isinstance(record, Digital):
        data["digital"] = [record.rule, record.reason, record.macs, record.module]
    for key, value in (("module", module_path(node)), ("line", source_line(node))):
        if value:
            data[key] = value
    if FROM in node.meta:
        data["from"] = [list(item) for item in node.meta[FROM]]
    return data


def _target_name(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    if node.target in _FUNCTION_NAMES:
        return _FUNCTION_NAMES[node.target]
    raise UnsupportedError(
        f"node %{node.name} calls {node.target}, which has no form in a file",
        where=source_line(node),
        fix="save the model's state_dict and compile again where it is needed",
    )


def _encode(value: Any, node: fx.Node) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$": "float", "v": str(value)}
    if isinstance(value, fx.Node):
        return {"$": "node", "v": value.name}
    if isinstance(value, list):
        return [_encode(item, node) for item in value]
    if isinstance(value, tuple):
        return {"$": "tuple", "v": [_encode(item, node) for item in value]}
    if isinstance(value, slice):
        parts = [value.start, value.stop, value.step]
        return {"$": "slice", "v": [_encode(part, node) for part in parts]}
    if isinstance(value, torch.device):
        return {"$": "device", "v": str(value)}
    for name, kind in _ATOMS.items():
        if isinstance(value, kind):
            return {"$": name, "v": str(value).removeprefix("torch.")}
    raise UnsupportedError(
        f"node %{node.name} has an argument of type {type(value).__name__}, which has no form in "
        "a file",
        where=source_line(node),
    )


def _value_to_json(value: Any) -> Any:
    if isinstance(value, Tensor):
        shape = [
            {"symbol": str(size), "hint": int(size.node.hint)} if fixed is None else fixed
            for size, fixed in ((size, static_size(size)) for size in list[Any](value.shape))
        ]
        return {"shape": shape, "dtype": str(value.dtype).removeprefix("torch.")}
    return None


# -- reading --------------------------------------------------------------------------------------


class GraphReader:
    """Builds graphs from their JSON form."""

    def __init__(self, device: torch.device, extra_namespaces: Collection[str] = ()) -> None:
        self.device = device
        self.namespaces = NAMESPACES | set(extra_namespaces)

    def read(self, nodes: object, root: nn.Module | None = None) -> fx.Graph:
        """Graph of the JSON nodes; FormatError names what is wrong.

        Args:
            nodes: the JSON form.
            root: what the graph may refer to: its tensors, and the DerivedWeights in it; default:
                nothing.
        """
        if not isinstance(nodes, list):
            raise FormatError("a graph must be a list of nodes")
        graph = fx.Graph()
        made: dict[str, fx.Node] = {}
        for data in nodes:
            if not isinstance(data, dict):
                raise FormatError("a node must be a JSON object")
            name, op = checked_name(data.get("name")), data.get("op")
            if op not in ("placeholder", "get_attr", "call_function", "call_module", "output"):
                raise FormatError(f"node {name!r} has unknown op {op!r}")
            args = tuple(self._decode(arg, made) for arg in data.get("args", []))
            kwargs = {
                checked_name(key): self._decode(value, made)
                for key, value in data.get("kwargs", {}).items()
            }
            target: Any = data.get("target")
            if op == "call_function":
                target = self._function(target)
            elif op == "placeholder":
                target = checked_name(target)
            elif op != "output":
                target = _reference(op, checked_path(target), root)
            node = graph.create_node(op, target, args, kwargs, name)
            made[name] = node
            self._restore_meta(node, data)
        return graph

    def _function(self, name: object) -> Callable[..., Any]:
        if not isinstance(name, str):
            raise FormatError(f"not an operator: {name!r}")
        if name in _FUNCTIONS:
            return _FUNCTIONS[name]
        parts = checked_path(name).split(".")
        if len(parts) != 3 or parts[0] not in self.namespaces or parts[1] in _REFUSED:
            raise FormatError(
                f"operator {name!r} may not be loaded from a file",
                fix="if it is one of your own, name its namespace: load(path, allow_ops=('mine',))",
            )
        packet = getattr(getattr(torch.ops, parts[0]), parts[1], None)
        found = getattr(packet, parts[2], None)
        # TorchScript has operators of its own in aten (save, warn, ...); no graph holds one.
        if isinstance(found, torch._ops.OpOverload) and torch._C._dispatch_has_kernel(found.name()):
            return found
        raise FormatError(f"this torch has no operator {name!r}")

    def _decode(self, value: Any, made: dict[str, fx.Node]) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list):
            return [self._decode(item, made) for item in value]
        if not isinstance(value, dict) or set(value) != {"$", "v"}:
            raise FormatError(f"not an argument: {json.dumps(value)[:80]}")
        kind, inner = value["$"], value["v"]
        if kind == "node":
            if inner not in made:
                raise FormatError(f"node {inner!r} is used before it is made")
            return made[inner]
        if kind == "tuple" and isinstance(inner, list):
            return tuple(self._decode(item, made) for item in inner)
        if kind == "slice" and isinstance(inner, list) and len(inner) == 3:
            return slice(*(self._decode(item, made) for item in inner))
        if kind == "float" and inner in ("inf", "-inf", "nan"):
            return float(inner)
        if kind == "device":
            return self.device
        if kind in _ATOMS and isinstance(inner, str):
            return read_atom(kind, inner)
        raise FormatError(f"not an argument: {json.dumps(value)[:80]}")

    def _restore_meta(self, node: fx.Node, data: dict[str, Any]) -> None:
        if "tiles" in data:
            node.meta[META] = TileMapping.from_dict(data["tiles"])
        elif "digital" in data:
            rule, reason, macs, module = data["digital"]
            node.meta[META] = Digital(str(rule), str(reason), int(macs), str(module))
        if "module" in data:
            node.meta["nn_module_stack"] = {"file": (str(data["module"]), "")}
        if "line" in data:
            file, _, number = str(data["line"]).rpartition(":")
            node.meta["stack_trace"] = f'File "{file}", line {number}, in forward'
        if "from" in data:
            node.meta[FROM] = tuple((str(by), str(name)) for by, name in data["from"])


def _reference(op: str, path: str, root: nn.Module | None) -> str:
    """``path`` if it leads to a tensor or a DerivedWeight through the tables of modules.

    Not by getattr, which would lead to methods, and from there to all of Python.
    """
    *prefix, last = path.split(".")
    at = root
    for part in prefix:
        at = None if at is None else at._modules.get(part)
    found: object = None
    if at is not None and op == "get_attr":
        found = at._parameters.get(last, at._buffers.get(last))
    elif at is not None:
        found = at._modules.get(last)
    if not isinstance(found, Tensor if op == "get_attr" else DerivedWeight):
        raise FormatError(f"the graph refers to {path!r}, which the file does not hold")
    return path


def read_atom(kind: str, name: str) -> Any:
    """torch.dtype, layout or memory format of that name."""
    found = getattr(torch, name, None) if name.isidentifier() else None
    if not isinstance(found, _ATOMS[kind]):
        raise FormatError(f"no torch.{kind} named {name!r}")
    return found
