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
from .capture import Method, Source, check_source, module_of
from .holder import hold, mode_of
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
        dynamic_shapes: ``"batch"`` lets the first dim of every input vary; else as for
            torch.export; None: shapes are those of the example inputs.
        select: predicate ``LayerInfo -> analog``, or names and globs of layers to keep digital.
        capture: ``"export"`` (torch.export, also ``"auto"``) or ``"symbolic_trace"`` (torch.fx
            symbolic tracing first, for models that only that can trace).
        passes: another pipeline, as passes or in text form.
        calibration_data: inputs to choose converter ranges from, each a tensor, a tuple of
            positional inputs or a dict of keyword inputs; default: the example inputs.
        weight_access: what the compiled model shows of its analog weights. ``"direct"``: the
            parameters themselves; ``"readonly"``: tensors that read like them and refuse every
            write; ``"sealed"``: metadata only, the values by ``weights[name].read()``.
        seed: of programming and read noise; None: from torch's default generator.
        check: verify the graph after every pass.
        strict: refuse a model in which an operator with stored weights has no analog form.

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
    source = Source(model, example_inputs, kwargs or {}, dynamic_shapes, capture)
    check_source(source)
    _check_digital(model)
    settings = Settings.of(target, select, passes, seed, check, strict)
    weight_access = checked_access(weight_access)
    root = hold(module_of(source))
    ctx, chosen = settings.context(root)
    program = build(source, root, settings.passes, ctx, check)
    chosen.check()
    warn_of_waste(fixed_ranges(program.graph, settings.target))
    if calibration_data is not None and _again(calibration_data) is calibration_data:
        # An iterator can be used once; the graph of the other mode will want it too.
        calibration_data = list(calibration_data)
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
