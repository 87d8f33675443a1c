"""What a compiled graph relies on in the structure of the model, and whether that still holds.

Writes to tensors are the tile arrays' business. Here it is about modules that were replaced, and
tensors that moved to another name (pruning, parametrisations): the graph must be captured again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from .holder import Holder, modules_of


class Structure:
    """The modules of a model and the tensors of a graph, as they were when it was captured."""

    def __init__(self, model: nn.Module | None, root: Holder, graph: fx.Graph) -> None:
        self._modules: list[tuple[Mapping[str, Any], str, nn.Module]] = []
        self._tensors: list[tuple[Mapping[str, Any], str]] = []
        if model is None:
            return
        for module in modules_of(model):
            for name, child in module._modules.items():
                if child is not None:
                    self._modules.append((module._modules, name, child))
        for path in {str(node.target) for node in graph.nodes if node.op == "get_attr"}:
            home, _, name = path.rpartition(".")
            holder = root.get_submodule(home)
            for table in (holder._parameters, holder._buffers):
                if name in table:
                    self._tensors.append((table, name))

    def holds(self) -> bool:
        """True if nothing was replaced or renamed; about 50 ns for each module and tensor."""
        for table, name, child in self._modules:
            if table.get(name) is not child:
                return False
        return all(name in table for table, name in self._tensors)

    def difference(self) -> str:
        """What changed, in words."""
        for table, name, child in self._modules:
            if table.get(name) is not child:
                return f"submodule {name!r} was replaced"
        gone = [name for table, name in self._tensors if name not in table]
        return f"tensor {gone[0]!r} went to another name" if gone else "nothing changed"
