"""What there is to see of a compiled model: settings, graph, tiles and their weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx

from ..passes.base import META, PassContext
from ..passes.verify import OPS
from ..runtime.backend import kernel_of
from ..runtime.errors import InputError
from ..runtime.guard import Access
from ..runtime.mapping import TileMapping
from ..runtime.target import Target
from ..runtime.tiles import TileArray
from .access import View
from .backend import BackendReport, LayerKernel
from .build import Program, Step
from .coverage import CoverageReport
from .holder import Holder
from .printing import format_graph
from .signature import Signature
from .tile_table import TileTable


class Inspected(fx.GraphModule):
    """The reading half of a CompiledModel."""

    _root: Holder
    _view: View
    _ctx: PassContext
    _program: Program

    @property
    def target(self) -> Target:
        """The hardware that it was compiled for."""
        return self._ctx.target

    @property
    def seed(self) -> int | None:
        """Seed of all noise; None: torch's default generator."""
        return self._ctx.noise.seed

    @property
    def weight_access(self) -> Access:
        """What it shows of its analog weights: ``"direct"``, ``"readonly"`` or ``"sealed"``."""
        return self._view.access

    @property
    def signature(self) -> Signature:
        """What the current graph takes and gives."""
        return self._program.signature

    @property
    def coverage(self) -> CoverageReport:
        """What went to the tiles, what stayed digital, and why."""
        return CoverageReport.of(self.graph)

    @property
    def tiles(self) -> TileTable:
        """A TileMapping for each tile array of the current graph."""
        return TileTable.of(self.graph)

    @property
    def backend(self) -> BackendReport:
        """Which kernel each layer got, and why."""
        found = []
        for node, mapping in self._analog_nodes():
            array = self._ctx.arrays[mapping.array]
            weight = self._value(node.args[1], operand=True)
            kernel = kernel_of(weight, array.spec, array.programmed, mapping.groups)
            found.append(LayerKernel(mapping.layer, mapping.op, kernel.name, kernel.why))
        return BackendReport(found)

    @property
    def history(self) -> tuple[Step, ...]:
        """IR before and after each pass."""
        return self._program.history

    @property
    def compile_seconds(self) -> tuple[float, float]:
        """Time that torch.export took, and the passes."""
        return self._program.capture_seconds, self._program.passes_seconds

    def ir(self) -> str:
        """Printed form of the current graph: one line a node, with shapes and tiles."""
        return format_graph(self.graph)

    def __str__(self) -> str:
        mode = "train" if self.training else "eval"
        head = f"CompiledModel(target={self.target.name}, mode={mode}): {self.tiles.summary()}"
        return f"{head}\n{self.ir()}"

    __repr__ = __str__

    def _analog_nodes(self) -> Iterator[tuple[fx.Node, TileMapping]]:
        for node in self.graph.nodes:
            if node.op == "call_function" and node.target in OPS:
                yield node, node.meta[META]

    def _arrays(self) -> Iterator[tuple[str, TileArray]]:
        for mapping in self.tiles:
            yield mapping.array, self._ctx.arrays[mapping.array]

    def _live_weight(self, array: str, operand: bool = False) -> Tensor:
        """What tile array ``array`` is programmed from: the numbers, or its layer's operand."""
        for node, mapping in self._analog_nodes():
            if mapping.array == array:
                return self._value(node.args[1], operand)
        raise InputError(f"no tile array named {array!r}")

    def _live_weights(self) -> Iterator[tuple[TileMapping, TileArray, Tensor]]:
        """Each tile array of the current graph once, with its layer's weight operand."""
        seen: set[str] = set()
        for node, mapping in self._analog_nodes():
            if mapping.array not in seen:
                seen.add(mapping.array)
                weight = self._value(node.args[1], operand=True).detach()
                yield mapping, self._ctx.arrays[mapping.array], weight

    def _value(self, node: Any, operand: bool = False) -> Tensor:
        at: Any = self._root
        for part in node.target.split("."):
            at = getattr(at, part)
        if node.op == "call_module":
            sources = map(self._value, node.args)
            at = at(*sources) if operand else at.evaluate(*sources)
        value: Tensor = at
        return value
