"""A compiled model as a networkx graph: a node for each value, an edge for each use of it.

Attributes are plain ``str``, ``int``, ``float`` and ``bool``, so every networkx writer takes them:
``write_graphml``, ``write_gml``, ``node_link_data`` with ``json.dumps``. A node has those of its
kind and no others.

=============== ====== ============================================================================
of nodes
=============== ====== ============================================================================
kind            str    ``input``, ``output``, ``parameter``, ``analog`` or ``digital``
op              str    operator (``analogc.conv2d``, ``aten.relu``); of a parameter: ``parameter``,
                       ``buffer``, ``range`` (of a converter) or ``derive`` (computed from others)
name            str    name in the printed graph
graph           str    label of the graph that it is in; ``""`` if there is only one
shape           str    ``[s0, 16, 8, 8]``; ``s0``: any size. ``([..], [..])`` for several tensors
dtype           str    ``float32``; of several tensors the first one's
bytes           int    size of the value at the example shape
dynamic         bool   whether a size is open
module          str    path of the module whose forward made it; ``""``: the model's own
source          str    the user's source line, ``file:line``; ``""``: not known
macs            int    multiply-accumulates of one call at the example shape
coverage        str    as in ``compiled.coverage``: ``analog``, ``rule``, ``choice``,
                       ``unsupported``; ``""``: no arithmetic (views, sizes, inputs)
reason          str    why it is digital; ``""``: it is not, or there is nothing to tell
=============== ====== ============================================================================
of analog nodes
=============== ====== ============================================================================
layer           str    name of this use of the weight
array           str    name of the tile array, shared by all uses of a weight
mvms            int    input vectors that go through its tiles in one call, at the example shape
tiles           int    number of tiles
first_tile      int    id of the first one
grid            str    ``groups x row blocks x column blocks``
tile            str    ``rows x columns`` of one tile
utilisation     float  share of the tiles' cells that hold a weight, 0..1
weight_shape    str    as ``shape``
settings        str    converters, device and row blocks, JSON
=============== ====== ============================================================================
of parameter nodes
=============== ====== ============================================================================
path            str    name in the model, as in ``state_dict()``
=============== ====== ============================================================================
of edges
=============== ====== ============================================================================
operands        str    which operands of the user it is: ``0``, ``0,1`` for ``x + x``, ``weight``
                       for a keyword, ``0.2`` for the third item of a list
shape, dtype, bytes, dynamic   as of the node that it comes from
=============== ====== ============================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from ..passes.base import META, module_path, source_line
from ..passes.derive_weights import HOME
from ..runtime.mapping import Digital, TileMapping
from .printing import Symbols

if TYPE_CHECKING:
    import networkx as nx

    from .inspected import Inspected

_OF_EDGES = ("shape", "dtype", "bytes", "dynamic")


def to_networkx(model: Inspected) -> nx.DiGraph:
    """Directed graph of ``model``; the module's docstring lists the attributes.

    Several graphs of one model are side by side, with no edge between them: what connects them is
    Python code. Their nodes are called ``label:name`` then. Order is as in the printed graph.
    """
    import networkx as nx

    found = nx.DiGraph(target=model.target.name)
    several = len(model.graphs) != 1
    for module in model.graphs:
        label = str(getattr(module, "label", "")) if several else ""
        _add(found, module.graph, model._root, label)
    return found


def _add(found: nx.DiGraph, graph: fx.Graph, root: nn.Module, label: str) -> None:
    symbols = Symbols()
    names = {node: f"{label}:{node.name}" if label else node.name for node in graph.nodes}
    for node in graph.nodes:
        found.add_node(names[node], **_facts(node, root, symbols), graph=label)
        operands: dict[fx.Node, list[str]] = {}
        for place, source in _operands(node):
            operands.setdefault(source, []).append(place)
        for source, places in operands.items():
            value = found.nodes[names[source]]
            facts = {name: value[name] for name in _OF_EDGES}
            found.add_edge(names[source], names[node], operands=",".join(places), **facts)


def _operands(node: fx.Node) -> Iterator[tuple[str, fx.Node]]:
    for i, arg in enumerate(node.args):
        yield from _inside(arg, str(i))
    for name, arg in node.kwargs.items():
        yield from _inside(arg, name)


def _inside(arg: Any, place: str) -> Iterator[tuple[str, fx.Node]]:
    if isinstance(arg, fx.Node):
        yield place, arg
    elif isinstance(arg, list | tuple):
        for i, item in enumerate(arg):
            yield from _inside(item, f"{place}.{i}")
    elif isinstance(arg, dict):
        for name, item in arg.items():
            yield from _inside(item, f"{place}.{name}")


def _facts(node: fx.Node, root: nn.Module, symbols: Symbols) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": node.name,
        "module": module_path(node),
        "source": source_line(node) or "",
        "macs": 0,
        "coverage": "",
        "reason": "",
    }
    value = node.meta.get("val")
    if node.op == "output":
        value = fx.node.map_arg(node.args[0], lambda source: source.meta.get("val"))
    facts |= _value(value, symbols)
    if node.op in ("placeholder", "output"):
        kind = "input" if node.op == "placeholder" else "output"
        return {"kind": kind, "op": kind, **facts}
    if node.op in ("get_attr", "call_module"):
        path = str(node.target)
        return {"kind": "parameter", "op": _stored(node, root), **facts, "path": path}
    op = str(getattr(node.target, "__name__", node.target))
    if isinstance(node.target, torch._ops.OpOverload):
        op = str(node.target).removesuffix(".default")
    record = node.meta.get(META)
    if isinstance(record, TileMapping):
        facts |= {"coverage": "analog", "macs": record.macs, "module": record.module}
        return {"kind": "analog", "op": op, **facts, **_analog(record, str(node.args[-2]))}
    if isinstance(record, Digital):
        facts |= {"coverage": record.rule, "reason": record.reason, "macs": record.macs}
    return {"kind": "digital", "op": op, **facts}


def _analog(mapping: TileMapping, settings: str) -> dict[str, Any]:
    work = mapping.groups * mapping.out_features * mapping.in_features
    rows, cols = mapping.grid
    return {
        "layer": mapping.layer,
        "array": mapping.array,
        "mvms": mapping.macs // work if work else 0,
        "tiles": mapping.tiles,
        "first_tile": mapping.first_tile,
        "grid": f"{mapping.groups}x{rows}x{cols}",
        "tile": f"{mapping.tile_rows}x{mapping.tile_cols}",
        "utilisation": mapping.utilisation,
        "weight_shape": str(list(mapping.weight_shape)),
        "settings": settings,
    }


def _stored(node: fx.Node, root: nn.Module) -> str:
    if node.op == "call_module":
        return "derive"
    home, _, name = str(node.target).rpartition(".")
    if home == f"{HOME}.ranges":
        return "range"
    return "parameter" if name in root.get_submodule(home)._parameters else "buffer"


def _value(value: Any, symbols: Symbols) -> dict[str, Any]:
    tensors = [v for v in _flat(value) if isinstance(v, Tensor)]
    if isinstance(value, Tensor):
        shape = _shape(value, symbols)
    elif isinstance(value, list | tuple):
        shape = f"({', '.join(_shape(tensor, symbols) for tensor in tensors)})"
    else:
        shape = ""
    scalar = "" if value is None else type(value).__name__.removeprefix("Sym").lower()
    return {
        "shape": shape,
        "dtype": str(tensors[0].dtype).removeprefix("torch.") if tensors else scalar,
        "bytes": sum(_bytes(tensor) for tensor in tensors),
        "dynamic": any(isinstance(size, torch.SymInt) for t in tensors for size in t.shape),
    }


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _shape(tensor: Tensor, symbols: Symbols) -> str:
    return f"[{', '.join(symbols.text(size) for size in tensor.shape)}]"


def _bytes(tensor: Tensor) -> int:
    count = tensor.element_size()
    for size in tensor.shape:
        hint = size.node.hint if isinstance(size, torch.SymInt) else size
        count *= 1 if hint is None else int(hint)  # None: only the values tell
    return count
