"""Run every call of a model on tiles, whatever its inputs: what ``generate`` of a decoder needs.

One graph has one structure of inputs. A decoder gets a prompt first and then, for each token, a
cache that grows. Here a graph is captured when a call comes that no graph takes, with every size
left open that the model leaves open; all graphs share the tile arrays, the converter ranges and the
noise.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from ..passes.derive_weights import HOME
from ..runtime.errors import InputError, UnsupportedError
from .build import build
from .compile import compile
from .copying import new_uid
from .holder import hold, mode_of
from .model import CompiledModel
from .source import check_source
from .weights import AnalogWeight

_NAMED = inspect.Parameter.KEYWORD_ONLY
_capturing: ContextVar[bool] = ContextVar("analogc_capturing", default=False)


class Attached:
    """A model whose ``forward`` runs on tiles until ``detach()``; made by ``analogc.attach``."""

    def __init__(self, model: nn.Module, options: dict[str, Any]) -> None:
        self._model = model
        self._options = options
        self._first: CompiledModel | None = None
        self._graphs: list[tuple[tuple[bool, ...], CompiledModel]] = []
        self._digital = model.forward
        model.forward = self._forward()

    def _forward(self) -> Callable[..., Any]:
        @functools.wraps(self._digital)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if _capturing.get():
                return self._digital(*args, **kwargs)
            if torch.compiler.is_compiling():
                raise UnsupportedError(
                    f"this {type(self._model).__name__} is attached: it runs graphs of analogc",
                    fix="detach() it before torch.compile or torch.export",
                )
            return self.graph_for(*args, **kwargs)(*args, **kwargs)

        return forward

    @property
    def graphs(self) -> tuple[CompiledModel, ...]:
        """The compiled graphs, one for each kind of call so far, the one used last at the front."""
        return tuple(graph for _, graph in self._graphs)

    @property
    def weights(self) -> dict[str, AnalogWeight]:
        """The weights on the tiles, by layer."""
        return {name: w for graph in reversed(self.graphs) for name, w in graph.weights.items()}

    def program(self, seed: int | None = None) -> None:
        """``CompiledModel.program`` for all graphs: each tile array is written once.

        Raises:
            InputError: no call has come yet, so there are no tiles.
        """
        latest, *others = self._called("program()")
        latest.program(seed)
        done = {mapping.array for mapping, _, _ in latest._live_weights()}
        for graph in others:
            for mapping, array, weight in graph._live_weights():
                if mapping.array not in done and not array.spec.is_ideal:
                    array.write(weight)
                done.add(mapping.array)

    def drift_to(self, seconds: float) -> None:
        """``CompiledModel.drift_to`` for all graphs.

        Layers that a later call uses first are programmed then, and are fresh.

        Raises:
            InputError: no call has come yet, so there are no tiles; or as there.
        """
        for graph in self._called("drift_to()"):
            graph.drift_to(seconds)

    def _called(self, what: str) -> tuple[CompiledModel, ...]:
        if not self._graphs:
            raise InputError(
                f"{what}: the attached model was not called yet, so there are no tiles",
                fix="call it once",
            )
        return self.graphs

    def graph_for(self, *args: Any, **kwargs: Any) -> CompiledModel:
        """The graph that takes these inputs; captured and calibrated with them if there is none.

        Raises:
            UnsupportedError: the model cannot be captured with these inputs.
        """
        mode = mode_of(self._model)
        if not all(graph._structure.holds() for graph in self.graphs):
            self._graphs.clear()
        for i, (own, graph) in enumerate(self._graphs):
            if own == mode and graph.takes(*args, **kwargs):
                if i:
                    self._graphs.insert(0, self._graphs.pop(i))
                return graph
        with _digital():
            graph = self._capture(args, kwargs)
        self._graphs.insert(0, (mode, graph))
        return graph

    def _capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CompiledModel:
        first = self._first
        if first is None:
            # Only a whole graph can stand for the forward that it replaces.
            defaults = {"dynamic_shapes": "auto", "capture": "export"}
            self._first = compile(self._model, args, kwargs, **{**defaults, **self._options})
            return self._first
        assert first._source is not None, "compiled from a module"
        source = dataclasses.replace(first._source, args=args, kwargs=kwargs)
        check_source(source)
        root = hold(self._model)
        ranges = first._root.get_submodule(f"{HOME}.ranges")
        root.get_submodule(HOME)._modules["ranges"] = ranges
        # Arrays, their names and ranges are the first graph's; the tree is this graph's own.
        ctx = dataclasses.replace(first._ctx, root=root, derived={}, uid=new_uid())
        program = build(source, root, first._passes, ctx, first._check)
        first._ctx.tiles = ctx.tiles
        return CompiledModel(
            root, ctx, {mode_of(root): program}, first._passes, source, None, first._check, None,
            first.weight_access,
        )  # fmt: skip

    def detach(self) -> None:
        """Give the model its own ``forward`` back."""
        self._model.__dict__.pop("forward", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None
    ) -> None:
        self.detach()


@contextmanager
def _digital() -> Iterator[None]:
    """Attached models run their own code meanwhile."""
    token = _capturing.set(True)
    try:
        yield
    finally:
        _capturing.reset(token)


def attach(model: nn.Module, **options: Any) -> Attached:
    """Let every call of ``model`` run on tiles, whatever its inputs.

    The model stays what it is; only its ``forward`` is replaced, until ``detach()`` or the end of a
    ``with`` block. A call of a new kind (other structure of inputs, other mode, sizes that no graph
    takes) is captured when it comes. All graphs share tile arrays and converter ranges; ranges are
    calibrated by the first call that uses a layer, unless ``calibration_data=`` is given.

    Args:
        model: nn.Module; a submodule that is called by itself is attached by itself.
        options: as for ``analogc.compile``; ``dynamic_shapes`` is ``"auto"`` if not given.

    Raises:
        InputError: no module, one that is attached already, or an option that there is not.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"attach() takes an nn.Module, got {type(model).__name__}",
            fix="attach the module whose calls shall run on tiles",
        )
    if isinstance(model, CompiledModel):
        raise InputError(
            "attach() takes the digital model, not a compiled one",
            fix="attach the model that it was compiled from",
        )
    known = [p.name for p in inspect.signature(compile).parameters.values() if p.kind is _NAMED]
    wrong = sorted(set(options) - set(known))
    if wrong:
        raise InputError(
            f"attach() has no option {', '.join(wrong)}", fix=f"options: {', '.join(known)}"
        )
    if "forward" in vars(model):
        raise InputError(
            f"the forward of this {type(model).__name__} is replaced already",
            fix="detach() it first, or remove its own `forward` attribute",
        )
    return Attached(model, options)
