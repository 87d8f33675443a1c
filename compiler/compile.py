"""``analogc.compile``: from a model and example inputs to a compiled model."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from ..passes.base import Pass
from ..runtime.errors import InputError, UnsupportedError
from ..runtime.guard import Access, checked_access
from ..runtime.sqnr import warn_of_waste
from ..runtime.target import Target
from .build import build, fixed_ranges
from .capture import (
    ExportError,
    Method,
    Source,
    check_source,
    module_of,
    warn_of_backward_hooks,
)
from .holder import hold, mode_of
from .home import home_of
from .lowerings import Lowerings
from .model import CompiledModel
from .settings import Select, Settings

_LOG = logging.getLogger("analogc")


def compile(
    model: nn.Module | ExportedProgram,
    example_inputs: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    *,
    target: str | Target = "generic-8bit",
    dynamic_shapes: Any = None,
    select: Select | None = None,
    capture: Method = "auto",
    passes: Sequence[Pass] | str | None = None,
    calibration_data: Iterable[Any] | None = None,
    weight_access: Access = "direct",
    lowerings: Mapping[Any, Callable[..., Any]] | None = None,
    seed: int | None = None,
    check: bool = False,
    strict: bool = False,
) -> CompiledModel:
    """Compile ``model`` to analog tiles.

    The compiled model holds the model's own Parameter objects and its mode, device and dtype. A
    summary is logged once, to logger ``analogc``.

    Args:
        model: nn.Module (also a GraphModule) or ExportedProgram.
        example_inputs: tuple of positional inputs; of an ExportedProgram its own are the default.
        kwargs: keyword inputs.
        target: name of a preset (``analogc.targets.names()``) or a Target.
        dynamic_shapes: ``"batch"`` lets the first dim of every input vary, ``"auto"`` every dim
            that the model lets vary; else as for torch.export; None: shapes are those of the
            example inputs.
        select: predicate ``LayerInfo -> analog``, or names and globs of layers to keep digital.
        capture: ``"auto"``: torch.export, and dynamo if that cannot; ``"export"`` or ``"dynamo"``:
            that one only; ``"symbolic_trace"`` or a SymbolicTrace with options: torch.fx symbolic
            tracing before torch.export. Dynamo may cut the model into several graphs, with Python
            between them.
        passes: another pipeline, as passes or in text form.
        calibration_data: inputs to choose converter ranges from, each a tensor, a tuple of
            positional inputs or a dict of keyword inputs; default: the example inputs.
        weight_access: what the compiled model shows of its analog weights. ``"direct"``: the
            parameters themselves; ``"readonly"``: tensors that read like them and refuse every
            write; ``"sealed"``: metadata only, the values by ``weights[name].read()``.
        lowerings: what stands for an operator, module or function of your own, made of torch
            operations, so that its work with stored weights goes analog. Keys: an operator
            (``torch.ops.my.op.default``, or what ``torch.library.custom_op`` returned), lowered by
            a function of its signature; an nn.Module class, lowered by ``function(module,
            *inputs)`` in place of its forward, also in subclasses that keep that forward; a Python
            function or autograd.Function class. Used in every capture, not kept in files.
        seed: of programming and read noise; None: from torch's default generator.
        check: verify the graph after every pass.
        strict: refuse a model in which an operator with stored weights has no analog form.

    Returns:
        The compiled model; ``compiled.graphs`` has more than one graph if dynamo cut it.

    Raises:
        UnsupportedError: the model cannot be captured; or ``strict``, and an operator with stored
            weights would stay digital: lists node, module, source line and reason of each.
        InputError: an argument is wrong.
    """
    if isinstance(model, ExportedProgram) and example_inputs is None:
        found = model.example_inputs
        example_inputs, kwargs = found if found is not None else ((), {})
    if example_inputs is None:
        raise InputError("example_inputs are missing", fix="compile(model, (x,))")
    if isinstance(model, nn.Module) and "_orig_mod" in model._modules:
        model = model.get_submodule("_orig_mod")  # torch.compile wrapped it
    own = Lowerings.of(lowerings)
    source = Source(model, example_inputs, kwargs or {}, dynamic_shapes, capture, own)
    check_source(source)
    source.home = home_of(model) if isinstance(model, nn.Module) else None
    _check_modules(model)
    settings = Settings.of(target, select, passes, seed, check, strict)
    weight_access = checked_access(weight_access)
    root = hold(module_of(source))
    if calibration_data is not None and _again(calibration_data) is calibration_data:
        # An iterator can be used once; the graph of the other mode will want it too.
        calibration_data = list(calibration_data)
    ctx, chosen = settings.context(root, own.operators)
    failed: ExportError | None = None
    if capture != "dynamo":
        try:
            program = build(source, root, settings.passes, ctx, check)
        except ExportError as err:
            if capture != "auto" or own.traced:
                raise
            failed = err
    if capture == "dynamo" or failed is not None:
        from .dynamo_capture import compile_pieces

        pieces = compile_pieces(source, settings, calibration_data, weight_access, failed)
        _log(model, pieces)
        return pieces
    chosen.check()
    own.check(ctx.lowered)
    warn_of_backward_hooks(model)
    warn_of_waste(fixed_ranges(program.graph, settings.target))
    programs = {mode_of(root): program}
    compiled = CompiledModel(
        root, ctx, programs, settings.passes, source, calibration_data, check, None, weight_access
    )
    _log(model, compiled)
    return compiled


def _log(model: nn.Module | ExportedProgram, compiled: CompiledModel) -> None:
    """One line to logger ``analogc``: INFO, or WARNING if an operator has no analog form."""
    coverage = compiled.coverage
    text = f"{type(model).__name__} for {compiled.target.name}: {coverage.summary()}"
    rows = coverage.unsupported
    if rows:
        first = f"{rows[0].op} ({rows[0].place or rows[0].node}): {rows[0].reason}"
        more = f"; and {len(rows) - 1} more" if len(rows) > 1 else ""
        text += f"; {first}{more}; print(compiled.coverage) lists all"
    _LOG.log(logging.WARNING if rows else logging.INFO, "%s", text)


def _again(data: Iterable[Any]) -> Iterator[Any]:
    try:
        return iter(data)
    except TypeError:
        raise InputError(
            f"calibration_data must be an iterable of inputs, got {type(data).__name__}",
            fix="calibration_data=[x1, x2]: tensors, tuples of inputs, or dicts of keyword inputs",
        ) from None


def _check_modules(model: nn.Module | ExportedProgram) -> None:
    for path, part in model.named_modules() if isinstance(model, nn.Module) else ():
        what = f"submodule {path!r}" if path else "the model"
        where = f"module {path}" if path else None
        if isinstance(part, CompiledModel):
            what = f"{what} is a compiled model" if path else "the model is compiled"
            raise UnsupportedError(what, fix="compile the model that it was made from")
        if re.match(r"torch\.ao\.nn\.(intrinsic\.)?quantized\b", type(part).__module__):
            raise UnsupportedError(
                f"{what} is a {type(part).__name__} of torch.ao.nn.quantized, whose packed integer "
                "weights no graph can hold",
                where=where,
                fix="compile the float model that it was made from: tiles quantise by their own "
                "converters",
            )
        for name, value in part._parameters.items():
            if is_lazy(value):
                raise InputError(
                    f"parameter {name!r} of {what} has no shape yet: the module is lazy",
                    where=where,
                    fix="run model(*example_inputs) once before compile",
                )


def compiled_models(model: nn.Module | None = None) -> list[CompiledModel]:
    """The compiled models behind ``torch.compile(model, backend="analogc")``.

    Each has the reports, tiles and methods of what ``analogc.compile`` returns.

    Args:
        model: what was given to torch.compile, or what it returned; None: of all models and
            functions.

    Returns:
        One for each set of options, in the order of the first call.

    Raises:
        InputError: there is none: the model was not called since, or ran in Python as a whole.
    """
    from .dynamo_backend import models

    found = models(model)
    if model is not None and not found:
        raise InputError(
            f"torch.compile made no graph of {type(model).__name__} with backend='analogc'",
            fix="call it once; then, if dynamo leaves the model to Python (TORCH_LOGS=graph_breaks "
            "says why), torch.compile(..., fullgraph=True) makes that an error. A recurrent layer "
            "needs torch._dynamo.config.allow_rnn = True",
        )
    return list(found)
