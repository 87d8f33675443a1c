"""What a compiled graph relies on in the structure of the model, and whether that still holds.

Writes to tensors are the tile arrays' business. Here it is about modules that were replaced, and
tensors that moved to another name (pruning, parametrisations), or a model that moved to another
device or dtype: the graph must be captured again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from .holder import Holder, modules_of
from .home import Home, Place, place_of


class Structure:
    """The modules of a model and the tensors of a graph, as they were when it was captured."""

    def __init__(self, model: nn.Module | None, root: Holder, graph: fx.Graph) -> None:
        self._modules: list[tuple[Mapping[str, Any], str, nn.Module]] = []
        self._tensors: list[tuple[Mapping[str, Any], str]] = []
        self._place: Place | None = None
        if model is None:
            return
        self._place = place_of(model)
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
        """True if nothing was replaced, renamed or moved; about 50 ns for each table entry."""
        for table, name, child in self._modules:
            if table.get(name) is not child:
                return False
        return all(name in table for table, name in self._tensors) and not self._has_moved()

    def _has_moved(self) -> bool:
        """Whether the model went to another device or dtype, which the graph was not made for."""
        if self._place is None:
            return False
        table, name, home = self._place
        value = table.get(name)
        # torch.func.functional_call puts plain tensors there for one call.
        if not isinstance(value, nn.Parameter):
            return False
        return value.dtype != home.dtype or value.device != home.device

    def difference(self) -> str:
        """What changed, in words."""
        for table, name, child in self._modules:
            if table.get(name) is not child:
                return f"submodule {name!r} was replaced"
        if self._place is not None and self._has_moved():
            table, name, home = self._place
            return f"{home} became {Home(table[name].device, table[name].dtype)}"
        gone = [name for table, name in self._tensors if name not in table]
        return f"tensor {gone[0]!r} went to another name" if gone else "nothing changed"
