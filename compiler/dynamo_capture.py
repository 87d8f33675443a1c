"""Capture by dynamo, for models that torch.export does not take: several graphs, one model."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..runtime.errors import AnalogcError, InputError, UnsupportedError
from ..runtime.guard import Access
from .build import refuse_unsupported
from .capture import BY_DYNAMO, ExportError, Source, quiet, user_line
from .dynamo_backend import site
from .dynamo_model import DynamoModel, log
from .settings import Settings


def compile_pieces(
    source: Source,
    settings: Settings,
    data: Iterable[Any] | None,
    weight_access: Access,
    because: ExportError | None = None,
) -> DynamoModel:
    """Compile the graphs that dynamo makes of a model when it runs its example inputs.

    Args:
        source: the module and its example inputs.
        settings: what decides how graphs are compiled.
        data: to choose converter ranges from; None: the example inputs.
        weight_access: as for ``analogc.compile``.
        because: why torch.export did not take the model, if it was asked.

    Raises:
        UnsupportedError: dynamo makes no graph of it that has a weight.
    """
    model = source.model
    assert isinstance(model, nn.Module), "an ExportedProgram was captured before"
    if source.lowerings.traced:
        raise InputError(
            "lowerings=: modules and functions are replaced in one graph; dynamo makes several",
            fix="capture='export', or lower the operators that they call",
        )
    compiled = DynamoModel(settings, model, {}, source, data, weight_access)
    known = weakref.ref(compiled)

    def owner(*_: Any) -> DynamoModel:
        owning = known()
        assert owning is not None, "dynamo runs graphs of a model that is there"
        return owning

    compiled._caller.update(backend=lambda graph, examples: site(graph, examples, owner))
    compiled.__dict__["reason"] = None if because is None else because.message
    try:
        with quiet(model):
            compiled.capture()
    except Warning:
        raise
    except Exception as err:
        raise _neither(model, because, err) from err
    if not any(piece.names for piece in compiled.graphs):
        raise _neither(model, because, None)
    compiled._selection.check()
    source.lowerings.check(compiled._ctx.lowered)
    if settings.strict:
        refuse_unsupported(compiled.coverage)
    if because is not None:
        log.warning(
            "torch.export did not take %s (%s; %s), dynamo made it %d graphs",
            type(model).__name__, because.message, because.where, len(compiled.graphs),
        )  # fmt: skip
    return compiled


def _neither(
    model: nn.Module, because: ExportError | None, err: Exception | None
) -> UnsupportedError:
    name = type(model).__name__
    if err is None:
        said = "dynamo: no graph that it makes of the model has a weight: all of them run in Python"
    elif isinstance(err, AnalogcError):
        said = f"dynamo: {err.message}"
    else:
        first = next(iter(str(err).strip().splitlines()), "")
        said = f"dynamo: {type(err).__name__}: {first}"
    where = getattr(err, "where", None) or (user_line(err) if err is not None else None)
    fix = getattr(err, "fix", None) or (
        "check that model(*example_inputs) runs; TORCH_LOGS=graph_breaks shows where dynamo stops"
    )
    if because is None:
        return UnsupportedError(f"{name} cannot be captured. {said}", where=where, fix=fix)
    return UnsupportedError(
        f"{because.message}\n  {said}",
        where=because.where or where,
        fix=(because.fix or "").removesuffix(BY_DYNAMO),
    )
