"""A graph at one moment of its way through the passes: light, without the graph itself.

What the graph prints is in it as two short strings a node; the text is put together when it is
asked for. Listings of successive moments share the lines that did not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..passes.base import META, line_of, module_path
from ..runtime.regions import ENTERS, leave
from .printing import aligned, printed

VIEW, SIZE = "view", "size"


@dataclass(frozen=True, slots=True)
class Line:
    """One node, as it is printed."""

    name: str
    kind: str
    """``input``, ``output``, ``weight`` (made of parameters alone), ``region``, ``size`` (no
    tensor), ``op`` (it has a record, or will get one), or ``view``: it moves no data of its own."""
    left: str
    right: str
    op: str
    """Operation, for example ``aten.add.Tensor``."""
    inputs: tuple[str, ...]
    """Names of the nodes that it reads, parameters left out."""
    module: str
    record: Any
    """The node's Analog, TileMapping or Digital, if it has one."""
    trace: str | None
    """Stack trace of the user's code that made it."""

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
        found = []
        for node, left, right in printed(graph):
            line = Line(
                node.name, _kind(node), left, right, _op(node),
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


def _kind(node: fx.Node) -> str:
    if node.op in ("placeholder", "output"):
        return {"placeholder": "input"}.get(node.op, node.op)
    if node.op == "call_module":
        return "weight"
    if node.target in (*ENTERS, leave):
        return "region"
    if not _holds_tensor(node.meta.get("val")):
        return SIZE
    return "op" if META in node.meta else VIEW


def _op(node: fx.Node) -> str:
    if node.op != "call_function":
        return {"placeholder": "input", "call_module": "derive"}.get(node.op, node.op)
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).removesuffix(".default")
    return str(getattr(node.target, "__name__", node.target))


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)
