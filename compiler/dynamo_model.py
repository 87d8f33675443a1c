"""A compiled model of several graphs, with Python between them, that dynamo captured."""

from __future__ import annotations

import contextlib
import inspect
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self

import torch
import torch._dynamo
from torch import Tensor, fx, nn

from ..passes.derive_weights import HOME, add_constant
from ..runtime.calibrate import Observation, choose_ranges, feed, unchanged
from ..runtime.errors import FormatError, InputError, UnsupportedError
from ..runtime.guard import Access
from ..runtime.sqnr import warn_of_waste
from ..runtime.target import Calibration
from .backend import BackendReport
from .batches import Mapped, as_call, cloned
from .build import Step, fixed_ranges, lower
from .capture import Source, in_mode_of
from .coverage import CoverageReport, CoverageRow
from .dynamo_trace import bind, signature_of
from .holder import hold
from .home import on_meta
from .marks import marked
from .model import CompiledModel
from .piece import Key, Piece
from .printing import counted
from .python_products import Layer, layers, modules_outside, products_outside
from .settings import Selection, Settings
from .weights import WeightMap

if TYPE_CHECKING:
    from .dynamo_backend import Site

log = logging.getLogger("analogc")
_CONFIG = {
    "allow_rnn": True,
    "fail_on_recompile_limit_hit": True,
    "recompile_limit": 256,
    "suppress_errors": False,
}
"""Dynamo's settings while it runs a model of ours: nothing falls back to Python unsaid."""


class DynamoModel(CompiledModel):
    """A model that dynamo cuts into graphs, each on analog tiles, with Python between them.

    It is called as the model. Graphs are captured when a call first needs them: another branch,
    another shape. All share parameters, tile arrays and noise. Reports are about the graphs that
    ran last, one for each piece of code.
    """

    _pieces: list[Piece]
    _latest: dict[Key, Piece]
    _model: Callable[[], nn.Module | None]
    _settings: Settings
    _selection: Selection
    _caller: dict[str, Any]
    _optimized: Callable[..., Any] | None
    _observing: dict[Piece, Observation] | None
    _only_missing: bool
    _runs: int
    _outside: tuple[CoverageRow, ...] | None
    _alone: list[Layer]
    """Layers that are called in Python."""
    reason: str | None
    """Why torch.export did not take the model, if it was asked."""

    def __init__(
        self,
        settings: Settings,
        model: nn.Module,
        caller: dict[str, Any],
        source: Source | None = None,
        data: Iterable[Any] | None = None,
        weight_access: Access = "direct",
        keep: bool = False,
    ) -> None:
        super(CompiledModel, self).__init__(nn.Module(), fx.Graph())
        root = hold(model)
        ctx, selection = settings.context(
            root, None if source is None else source.lowerings.operators
        )
        self.__dict__.update(
            _ctx=ctx, _programs={}, _passes=settings.passes, _source=source, _data=data,
            _check=settings.check, _settings=settings, _selection=selection, _caller=caller,
            _pieces=[], _latest={}, _alone=[], _observing=None, _only_missing=False, _runs=0,
            _outside=None, _optimized=None,
            # The model of torch.compile is its user's: known, not kept.
            _model=(lambda: model) if keep or source is not None else weakref.ref(model),
            reason=None,
        )  # fmt: skip
        self._bind(root, weight_access)
        self._own_forward(inspect.signature(model.forward))

    def recompile(self) -> Any:
        """Nothing to do: the pieces have the code."""
        return None

    # -- running ---------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's own code, its graphs on the tiles; same arguments and result.

        Raises:
            UnsupportedError: it is traced, or dynamo leaves all of it to Python.
        """
        if torch.compiler.is_compiling():
            raise UnsupportedError(
                "a compiled model of several graphs cannot be captured again",
                fix="capture the model that it was made from",
            )
        model, before = self._live_model(), self._runs
        with self._in_mode(model), torch._dynamo.config.patch(_CONFIG), self._layers_compiled():
            call = self._optimized
            if call is None:
                call = self.__dict__["_optimized"] = torch.compile(model, **self._caller)
            try:
                out = call(*args, **kwargs)
            except torch._dynamo.exc.FailOnRecompileLimitHit as err:
                raise UnsupportedError(
                    f"dynamo gave up after {_CONFIG['recompile_limit']} captures of one function",
                    fix="something that changes with every call is part of the graph; "
                    "TORCH_LOGS=recompiles says what",
                ) from err
        silent = self._runs == before and self._observing is None
        if silent and any(True for _ in self._root.parameters()):
            raise UnsupportedError(
                "this call ran in Python as a whole, none of it on the tiles",
                fix="call the model outside of torch.func transforms and dispatch modes, and with "
                "dynamo switched on",
            )
        return out

    def takes(self, *args: Any, **kwargs: Any) -> bool:
        """True: dynamo captures what other inputs need."""
        return True

    def _live_model(self) -> nn.Module:
        model = self._model()
        if model is None:
            raise UnsupportedError("the model that torch.compile was given is gone")
        return model

    def _in_mode(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._source is None else in_mode_of(model, self._root)

    @contextlib.contextmanager
    def _layers_compiled(self) -> Iterator[None]:
        """Let layers that Python code calls where dynamo gave up be graphs of their own."""
        changed = []
        try:
            for layer in self._alone:
                module = layer.module()
                if module is not None and module._compiled_call_impl is None:
                    if layer.call is None:
                        layer.call = torch.compile(_called(module), **self._caller)
                    module.__dict__["_compiled_call_impl"] = layer.call
                    changed.append(module)
            yield
        finally:
            for module in changed:
                del module.__dict__["_compiled_call_impl"]

    def train(self, mode: bool = True) -> Self:
        """Switch to training (or eval) mode; graphs of that mode are captured by the next call."""
        if self._source is None:
            self._live_model().train(mode)
        nn.Module.train(self, mode)
        self._root.training = mode
        return self

    def run(self, piece: Piece, inputs: Sequence[Any]) -> Any:
        """Outputs of one graph; called by dynamo's code."""
        self.__dict__["_runs"] += 1
        self._latest[piece.key] = piece
        if self._observing is None:
            return piece.run(inputs)
        if piece not in self._observing:
            self._observing[piece] = Observation(piece.graph, self._root, self._only_missing)
        return self._observing[piece](*inputs)

    def capture(self) -> None:
        """Run the model on its example inputs: capture its graphs, choose ranges, program tiles."""
        assert self._source is not None, "there are example inputs"
        self._calibrate(self._data, self.target.calibration, only_missing=True)
        model = self._live_model()
        args, kwargs = cloned((self._source.args, self._source.kwargs))
        with self._in_mode(model), unchanged(self._root):
            found = products_outside(model, lambda: model(*args, **kwargs))
        outside = {row.node for row in found} - self._seen()
        self._alone[:] = [m for m in layers(model) if any(p in outside for p in m.names)]
        if self._alone:
            self._calibrate(self._data, self.target.calibration, only_missing=True)
        seen = self._seen()
        self.__dict__["_outside"] = tuple(row for row in found if row.node not in seen)
        for _, array, weight in self._live_weights():
            if array.programmed is None and not array.spec.is_ideal:
                array.write(weight)

    def _seen(self) -> set[str]:
        return {name for piece in self._pieces for name in piece.names}

    # -- graphs ----------------------------------------------------------------------------------

    def owns(self, weights: Sequence[Tensor]) -> bool:
        """True if all of ``weights`` are this model's."""
        known = self._names()
        return bool(weights) and all(id(weight) in known for weight in weights)

    def has(self, settings: Settings) -> bool:
        """True if it was made with ``settings``."""
        return self._settings == settings

    def piece(self, site: Site, weights: Sequence[Tensor]) -> Piece:
        """The graph of ``site`` on ``weights``, compiled if it was not before."""
        known = self._names()
        model = self._model()
        if model is not None and any(id(weight) not in known for weight in weights):
            self._hold_again(model)
            known = self._names()
        for name, weight in zip(site.template.names, weights, strict=True):
            if id(weight) not in known:
                known[id(weight)] = add_constant(self._root, name, weight)
        names = tuple(known[id(weight)] for weight in weights)
        module = bind(site.template, self._root, names)
        self._ctx.frame = str(site.template.frame)
        program = lower(module, signature_of(module), self._passes, self._ctx, self._check)
        warn_of_waste(fixed_ranges(program.graph, self.target))
        piece = Piece(site, names, self._root, self._ctx, program)
        self._pieces.append(piece)
        self._view.protect(program.graph, self._root)
        log.info("graph %s: %s", piece.label, piece.coverage.summary())
        return piece

    def _names(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for name, value in (*self._root.named_parameters(), *self._root.named_buffers()):
            found.setdefault(id(value), name)
        return found

    def _hold_again(self, model: nn.Module) -> None:
        """Follow modules that were replaced; what belongs to the others is kept."""
        old, root = self._root, hold(model)
        root._modules[HOME] = old._modules[HOME]
        self._ctx.root = root
        kept = [piece for piece in self._pieces if piece.is_alive and piece.is_of(root)]
        for piece in kept:
            piece.__dict__["_root"] = root
        used = {mapping.array for piece in kept for mapping in piece.tiles}
        for array in set(self._ctx.arrays) - used:
            del self._ctx.arrays[array]
        self._pieces[:] = kept
        self._bind(root, self.weight_access)

    def _forget_dead(self) -> None:
        live = [piece for piece in self._pieces if piece.is_alive]
        if len(live) < len(self._pieces):
            self._pieces[:] = live
            for key in [key for key, piece in self._latest.items() if not piece.is_alive]:
                del self._latest[key]

    # -- looking ---------------------------------------------------------------------------------

    @property
    def graphs(self) -> tuple[Piece, ...]:
        """The graphs that ran last, one for each piece of code, in the order of first use."""
        self._forget_dead()
        current = set(map(id, self._latest.values()))
        order = {key: i for i, key in enumerate(self._latest)}
        return tuple(
            sorted(
                (piece for piece in self._pieces if id(piece) in current),
                key=lambda piece: order[piece.key],
            )
        )

    @property
    def graph(self) -> fx.Graph:
        """There is not one graph: see ``graphs``. What takes a GraphModule would take a part."""
        if "_pieces" not in self.__dict__:  # fx is making the module
            return self._graph
        raise UnsupportedError(
            "a compiled model of several graphs has no one graph, and cannot be captured again",
            fix="compiled.graphs has them all; to capture, take the model that it was made from",
        )

    @graph.setter
    def graph(self, value: fx.Graph) -> None:
        self.__dict__["_graph"] = value

    @property
    def code(self) -> str:
        """Python code of all graphs."""
        return "\n".join(f"# graph {piece.label}\n{piece.code}" for piece in self.graphs)

    @property
    def signature(self) -> NoReturn:
        """Only a graph has one."""
        raise UnsupportedError(
            "a model of several graphs takes what the model's own code takes",
            fix="compiled.graphs[i].signature tells what one graph takes",
        )

    @property
    def coverage(self) -> CoverageReport:
        """What went to the tiles, what stayed digital, and why; with what runs in Python."""
        rows = CoverageReport.of(*(piece.graph for piece in self.graphs)).rows
        outside = self._outside
        if outside is None:
            outside = modules_outside(self._live_model(), self._seen())
        return CoverageReport((*rows, *outside))

    @property
    def backend(self) -> BackendReport:
        """Which kernel each layer got, and why."""
        return BackendReport(row for piece in self.graphs for row in piece.backend)

    @property
    def history(self) -> tuple[Step, ...]:
        """IR before and after each pass, graph by graph."""
        return tuple(step for piece in self.graphs for step in piece.history)

    @property
    def compile_seconds(self) -> tuple[float, float]:
        """Time that tracing took after dynamo, and the passes."""
        times = [piece.compile_seconds for piece in self.graphs]
        return sum(a for a, _ in times), sum(b for _, b in times)

    @property
    def weights(self) -> WeightMap:
        """The weights on the tiles, by the name of their tile array."""
        return WeightMap(self, {m.array: self._ctx.arrays[m.array] for m in self.tiles})

    def ir(self) -> str:
        """Printed form of the graphs that ran last."""
        return "\n\n".join(f"graph {piece.label}\n{piece.ir()}" for piece in self.graphs)

    def __str__(self) -> str:
        training = self.training if self._source is not None else self._live_model().training
        mode = "train" if training else "eval"
        count = counted(len(self.graphs), "graph")
        head = f"CompiledModel(target={self.target.name}, mode={mode}, {count})"
        return f"{head}: {self.tiles.summary()}\n{self.ir()}"

    __repr__ = __str__

    # -- weights, tiles and ranges ---------------------------------------------------------------

    def _require_weights(self) -> None:
        if on_meta(self._root):
            raise self._no_weights()

    def sync(self) -> list[str]:
        """Program again every tile array whose weight changed; returns the layers concerned."""
        touched = []
        for mapping, array, weight in self._live_weights():
            if not array.is_current(weight):
                array.write(weight)
                touched.append(mapping.layer)
        return touched

    def _calibrate(self, data: Iterable[Any] | None, how: Calibration, only_missing: bool) -> int:
        if data is None and self._source is not None:
            data = Mapped([(self._source.args, self._source.kwargs)], cloned)
        elif data is None:
            raise InputError("calibrate() needs data: this model has no example inputs")
        else:
            data = Mapped(data, as_call)
        source = self._source
        if source is not None and source.dynamic_shapes is not None:
            data = Mapped(data, lambda call: marked(call, source))
        seen: dict[Piece, Observation] = {}
        self.__dict__.update(_observing=seen, _only_missing=only_missing)
        try:
            with unchanged(self._root):
                count = feed(data, lambda args, kwargs: self(*args, **kwargs))
        finally:
            self.__dict__["_observing"] = None
        choose_ranges(seen.values(), how)
        return count

    # -- copies and files ------------------------------------------------------------------------

    def save(self, path: Any) -> NoReturn:
        """Refused: between the graphs runs the model's own Python code.

        Raises:
            FormatError: always.
        """
        raise FormatError(
            f"a model of {counted(len(self.graphs), 'graph')} cannot be saved: Python code of the "
            "model runs between them, and a file holds no code",
            fix="save the model's state_dict and compile it again, or change what torch.export "
            "does not take" + (f": {self.reason}" if self.reason else ""),
        )

    def __reduce__(self) -> NoReturn:
        self.save("")

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise UnsupportedError(
            "a compiled model of several graphs cannot be copied: dynamo's graphs stay behind",
            fix="copy the model that it was made from, and compile the copy",
        )


def _called(module: nn.Module) -> Callable[..., Any]:
    # Dynamo passes over code of torch's own that it meets in Python, but not when we call it.
    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    return call
