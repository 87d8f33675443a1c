"""``torch.compile(model, backend="analogc")``: registered by entry point.

Dynamo calls ``backend`` with each graph that it captures. Graphs of one model and the same options
share one DynamoModel: its parameters, tile arrays, converter ranges and noise.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from torch import Tensor, fx, nn
from torch._dynamo.eval_frame import OptimizedModule

from ..runtime.errors import AnalogcError, InputError
from ..runtime.names import free_name
from .dynamo_model import DynamoModel
from .dynamo_trace import Template, trace
from .inspected import Inspected
from .piece import Piece
from .settings import Settings

OPTIONS = tuple(inspect.signature(Settings.of).parameters)
Owner = Callable[[Template, Sequence[Tensor]], DynamoModel]

_MODELS: weakref.WeakKeyDictionary[nn.Module, dict[Settings, DynamoModel]]
_MODELS = weakref.WeakKeyDictionary()
_LOOSE: weakref.WeakSet[DynamoModel] = weakref.WeakSet()
"""Models of tensors that no module has."""


class Site:
    """A graph of dynamo's as the function that dynamo calls."""

    def __init__(self, template: Template, owner: Owner) -> None:
        self.template = template
        self._owner = owner
        # Dynamo keeps a graph for as long as the code that it is of; the model may go before.
        self._pieces: list[tuple[weakref.ref[Piece], weakref.ref[DynamoModel]]] = []
        self._kept: list[DynamoModel] = []

    def __call__(self, *inputs: Any) -> Any:
        """Outputs of the graph, on the tiles of whichever weights are among ``inputs``."""
        model, piece = self.find([inputs[i] for i in self.template.weights])
        return model.run(piece, [inputs[i] for i in self.template.inputs])

    def find(self, weights: Sequence[Tensor]) -> tuple[DynamoModel, Piece]:
        """The graph on ``weights``, and the model that it belongs to."""
        for place, (piece_ref, model_ref) in enumerate(self._pieces):
            piece, model = piece_ref(), model_ref()
            if piece is not None and model is not None and piece.takes(weights):
                if place:
                    self._pieces.insert(0, self._pieces.pop(place))
                return model, piece
        model = self._owner(self.template, weights)
        if model in _LOOSE:
            self._kept.append(model)
        piece = model.piece(self, weights)
        live = [pair for pair in self._pieces if pair[0]() is not None]
        self._pieces = [(weakref.ref(piece), weakref.ref(model)), *live]
        return model, piece


def backend(captured: fx.GraphModule, examples: Sequence[Any], **given: Any) -> Callable[..., Any]:
    """Compile a graph of dynamo's to analog tiles.

    Args:
        captured: the graph.
        examples: its inputs.
        given: what torch.compile was given besides: ``options``, a dict with any of ``target``,
            ``select``, ``passes``, ``seed``, ``check`` and ``strict``, as for ``analogc.compile``.

    Returns:
        The graph as a function. An AnalogcError is raised by that function, so that it reaches the
        caller as it is, and is not taken for a reason to run the graph in Python.
    """
    try:
        settings = _settings(given)
    except AnalogcError as err:
        return _raiser(err)
    caller = {"backend": backend, **given}
    return site(captured, examples, lambda t, weights: _model_of(t, weights, settings, caller))


def site(captured: fx.GraphModule, examples: Sequence[Any], owner: Owner) -> Callable[..., Any]:
    """A graph of dynamo's as a function; the first weights are compiled at once."""
    try:
        found = Site(trace(captured, examples), owner)
        found.find([examples[i] for i in found.template.weights])
    except AnalogcError as err:
        return _raiser(err)
    return found


def models(model: nn.Module | None = None) -> list[DynamoModel]:
    """The compiled models that have tensors of ``model``, or all."""
    every = [found for each in _MODELS.values() for found in each.values()] + list(_LOOSE)
    if model is None:
        return every
    tensors = [*model.parameters(), *model.buffers()]
    return [found for found in every if any(found.owns([tensor]) for tensor in tensors)]


def _settings(given: dict[str, Any]) -> Settings:
    options = given.get("options") or {}
    unknown = [f"{name}=" for name in given if name != "options"]
    unknown += [f"option {name!r}" for name in options if name not in OPTIONS]
    if unknown:
        raise InputError(
            f"torch.compile(backend='analogc') does not take {', '.join(unknown)}",
            fix=f"options={{...}} takes {', '.join(OPTIONS)}; converter ranges come from the first "
            "inputs, or from analogc.compiled_models(model)[0].calibrate(data)",
        )
    return Settings.of(**options)


def _raiser(err: AnalogcError) -> Callable[..., NoReturn]:
    def fail(*_: Any) -> NoReturn:
        raise err.with_traceback(None)

    return fail


def _model_of(
    template: Template, weights: Sequence[Tensor], settings: Settings, caller: dict[str, Any]
) -> DynamoModel:
    """The compiled model that ``weights`` belong to."""
    known = [each[settings] for each in _MODELS.values() if settings in each]
    for model in (*known, *_LOOSE):
        if model.owns(weights) and model.has(settings):
            return model
    wanted = set(map(id, weights))
    for module in _running_modules():
        tensors = [*module.parameters(), *module.buffers()]
        if any(id(tensor) in wanted for tensor in tensors) or (tensors and not weights):
            table = _MODELS.setdefault(module, {})
            if settings not in table:
                table[settings] = DynamoModel(settings, module, caller)
            return table[settings]
    home = nn.Module()
    for name, weight in zip(template.names, weights, strict=True):
        tables = {**home._parameters, **home._buffers}
        if isinstance(weight, nn.Parameter):
            home.register_parameter(free_name(name, tables), weight)
        else:
            home.register_buffer(free_name(name, tables), weight)
    model = DynamoModel(settings, home, caller, keep=True)
    _LOOSE.add(model)
    return model


def _running_modules() -> Iterator[nn.Module]:
    """The modules whose methods are running, outermost first."""
    found: list[nn.Module] = []
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(first, OptimizedModule):
            first = first._orig_mod
        if isinstance(first, nn.Module) and not isinstance(first, Inspected):
            found.append(first)
        frame = frame.f_back  # type: ignore[assignment]
    yield from reversed(found)
