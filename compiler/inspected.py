"""What there is to see of a compiled model: settings, graph, tiles and their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx
from torch.fx.graph import CodeGen

from ..passes.base import META, PassContext
from ..passes.verify import OPS
from ..runtime.backend import kernel_of
from ..runtime.errors import InputError
from ..runtime.fast import CALLS
from ..runtime.guard import Access
from ..runtime.mapping import TileMapping
from ..runtime.target import Target
from ..runtime.tiles import TileArray
from .access import View
from .backend import BackendReport, LayerKernel
from .build import Program, Step
from .coverage import CoverageReport
from .holder import Holder
from .lookups import short_lookups
from .printing import format_graph
from .region_code import RegionCode, has_regions
from .signature import Signature
from .tile_table import TileTable

if TYPE_CHECKING:
    from .mlir.execute import Engine
    from .mlir.module import Level, MlirModule

OPERATORS = {call: operator for operator, call in CALLS.items()}


class Inspected(fx.GraphModule):
    """The reading half of a CompiledModel, and of each graph that it consists of."""

    _root: Holder
    _view: View
    _ctx: PassContext
    _program: Program
    _function: Callable[..., Any]

    def recompile(self) -> Any:
        """Make the graph's function anew after a change of ``graph``."""
        # The function takes and gives flat lists, and calls layers by the shortest way; the graph's
        # own codegen knows the structure, for fx.Interpreter and torch.export.
        structured = self._graph._codegen
        graph = self._graph
        graph._codegen = codegen = RegionCode(graph) if has_regions(graph) else CodeGen()
        shown = codegen._body_transformer
        root = self.__dict__.get("_root", self)
        codegen._body_transformer = short_lookups(graph, root, shown)
        kind = type(self)
        layers = [node for node in self._graph.nodes if node.target in CALLS]
        try:
            for node in layers:
                node.target = CALLS[node.target]
            super().recompile()
        finally:
            for node in layers:
                node.target = OPERATORS.get(node.target, node.target)
        function = kind.__dict__["forward"]
        codegen._body_transformer = shown
        code = super().recompile()
        self._graph._codegen = structured
        # fx puts the graph's function and its own __call__ on the class made for this object;
        # ours go first, and call that function with the root holder for its self.
        self.__dict__["_function"] = function
        del kind.forward
        if "__call__" in kind.__dict__:
            del kind.__call__
        return code

    @property
    def graphs(self) -> tuple[fx.GraphModule, ...]:
        """A GraphModule for each graph of the model: itself, unless dynamo cut the model."""
        return (self,)

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
        return CoverageReport.of(*(module.graph for module in self.graphs))

    @property
    def tiles(self) -> TileTable:
        """A TileMapping for each tile array."""
        return TileTable.of(*(module.graph for module in self.graphs))

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

    def to_mlir(
        self, level: Level = "analog", weights: str | Path = "args", programmed: bool | None = None
    ) -> MlirModule:
        """The current graph in MLIR, as a function ``main``; needs the extra ``mlir``.

        Args:
            level: ``"torch"``: the torch dialect, layers as operators. ``"analog"``: layers as
                opaque operations of the dialect ``analog``, digital work in linalg. ``"linalg"``:
                layers expanded, too.
            weights: ``"args"``: weights and converter ranges are arguments of the function, each
                with its name. ``"inline"``: constants of those names. The path of a .safetensors
                file: arguments, and their values go to that file.
            programmed: layers get what their tiles hold, with all programming errors, and its
                scale, in place of weights that the function itself writes into ideal devices.
                Default: at level linalg, if the devices are not ideal.

        Raises:
            UnsupportedError: it is in training mode, or an operator (linalg: or a setting of a
                layer, such as output noise) has no lowering; the message says where.
        """
        from .mlir.emit import to_mlir

        return to_mlir(self, level, weights, programmed)

    def run_mlir(self, *args: Any, engine: Engine = "native", **kwargs: Any) -> Any:
        """Run the model as MLIR; same arguments and result as the model, without gradients.

        It is emitted and compiled at the first call, and again when the graph changed. Weights are
        the live ones in every call.

        Args:
            args: inputs of the model.
            engine: ``"native"``: level linalg by torch-mlir's execution engine, simple loops.
                ``"callbacks"``: level analog, so that layers run on the tiles of this model, their
                noise included. ``"iree"``: level linalg by IREE; needs the extra ``iree``.
            kwargs: inputs of the model.
        """
        from .mlir.emit import check
        from .mlir.execute import run_mlir

        check(self)
        return run_mlir(self, engine, args, kwargs)

    def _follow_changes(self, inputs: Any) -> None:
        """Bring the graph up to date with the model, for a call with ``inputs``."""

    def __str__(self) -> str:
        mode = "train" if self.training else "eval"
        head = f"CompiledModel(target={self.target.name}, mode={mode}): {self.tiles.summary()}"
        return f"{head}\n{self.ir()}"

    __repr__ = __str__

    def _analog_nodes(self) -> Iterator[tuple[fx.Node, TileMapping]]:
        for module in self.graphs:
            for node in module.graph.nodes:
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
