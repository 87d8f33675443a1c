"""``analogc.compile``: from a model and example inputs to a compiled model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn
from torch.export import ExportedProgram

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
from .model import CompiledModel
from .settings import Select, Settings


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
    seed: int | None = None,
    check: bool = False,
    strict: bool = False,
) -> CompiledModel:
    """Compile ``model`` to analog tiles.

    The compiled model holds the model's own Parameter objects and its mode, device and dtype.

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
    source = Source(model, example_inputs, kwargs or {}, dynamic_shapes, capture)
    check_source(source)
    source.home = home_of(model) if isinstance(model, nn.Module) else None
    _check_digital(model)
    settings = Settings.of(target, select, passes, seed, check, strict)
    weight_access = checked_access(weight_access)
    root = hold(module_of(source))
    if calibration_data is not None and _again(calibration_data) is calibration_data:
        # An iterator can be used once; the graph of the other mode will want it too.
        calibration_data = list(calibration_data)
    ctx, chosen = settings.context(root)
    failed: ExportError | None = None
    if capture != "dynamo":
        try:
            program = build(source, root, settings.passes, ctx, check)
        except ExportError as err:
            if capture != "auto":
                raise
            failed = err
    if capture == "dynamo" or failed is not None:
        from .dynamo_capture import compile_pieces

        return compile_pieces(source, settings, calibration_data, weight_access, failed)
    chosen.check()
    warn_of_backward_hooks(model)
    warn_of_waste(fixed_ranges(program.graph, settings.target))
    programs = {mode_of(root): program}
    return CompiledModel(
        root, ctx, programs, settings.passes, source, calibration_data, check, None, weight_access
    )


def _again(data: Iterable[Any]) -> Iterator[Any]:
    try:
        return iter(data)
    except TypeError:
        raise InputError(
            f"calibration_data must be an iterable of inputs, got {type(data).__name__}"
        ) from None


def _check_digital(model: nn.Module | ExportedProgram) -> None:
    for path, part in model.named_modules() if isinstance(model, nn.Module) else ():
        if isinstance(part, CompiledModel):
            raise UnsupportedError(
                f"submodule {path!r} is a compiled model" if path else "the model is compiled",
                fix="compile the model that it was made from",
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
