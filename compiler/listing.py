"""A graph at one moment of its way through the passes: light, without the graph itself.

What the graph prints is in it as two short strings a node; the text is put together when it is
asked for. Listings of successive moments share the lines that did not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from ..passes.base import META, line_of, module_path
from ..runtime.regions import ENTERS, leave
from .printing import aligned, printed

VIEW, SIZE, WEIGHT = "view", "size", "weight"


@dataclass(frozen=True, slots=True)
class Line:
    """One node, as it is printed."""

    name: str
    kind: str
    """``input``, ``output``, ``weight`` (made of parameters alone), ``region``, ``size`` (no
    tensor), ``op``, or ``view``: it moves data, so that no pass has a record of it."""
    left: str
    right: str
    inputs: tuple[str, ...]
    """Names of the nodes that it reads, parameters left out."""
    module: str
    record: Any
    """The node's Analog, TileMapping or Digital, if it has one."""
    trace: str | None
    """Stack trace of the user's code that made it."""

    @property
    def op(self) -> str:
        """Operation, for example ``aten.add.Tensor``."""
        return "output" if self.kind == "output" else self.right.partition("(")[0]

    @property
    def type(self) -> str:
        """Type of the value, as printed: ``f32[1, 8]``."""
        return self.left.partition(": ")[2]

    @property
    def source(self) -> str | None:
        """User's source line ``file:line``, if known."""
        return line_of(self.trace)


class Listing(tuple[Line, ...]):
    """The lines of one graph, in order."""

    __slots__ = ()

    @classmethod
    def of(cls, graph: fx.Graph, before: Listing | None = None) -> Listing:
        """Lines of ``graph``; those that are in ``before``, too, are shared with it."""
        known = {line.name: line for line in before or ()}
        # Until a pass has told views from the rest, nothing counts as one.
        plain = VIEW if any(META in node.meta for node in graph.nodes) else "op"
        stored = _stored(graph)
        found = []
        for node, left, right in printed(graph):
            line = Line(
                node.name, WEIGHT if node in stored else _kind(node, plain), left, right,
                tuple(n.name for n in node.all_input_nodes if n.op != "get_attr"),
                module_path(node), node.meta.get(META), node.meta.get("stack_trace"),
            )  # fmt: skip
            old = known.get(line.name)
            found.append(old if old == line else line)
        return cls(found)

    @property
    def text(self) -> str:
        """The printed form."""
        return aligned((line.left, line.right) for line in self)


def _stored(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that compute with parameters alone."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (node.op != "output" and inputs and found.issuperset(inputs)):
            found.add(node)
    return found


def _kind(node: fx.Node, plain: str) -> str:
    if node.op in ("placeholder", "output"):
        return {"placeholder": "input"}.get(node.op, node.op)
    if node.target in (*ENTERS, leave):
        return "region"
    if not holds_tensor(node.meta.get("val")):
        return SIZE
    return "op" if META in node.meta or writes(node) else plain


def writes(node: fx.Node) -> bool:
    """True for an operator that works in place, such as ``relu_``."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def holds_tensor(value: Any) -> bool:
    """True for a tensor, or a list of anything with one in it."""
    if isinstance(value, list | tuple):
        return any(map(holds_tensor, value))
    return isinstance(value, Tensor)
