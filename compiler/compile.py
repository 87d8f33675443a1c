"""``analogc.compile``: from a model and example inputs to a compiled model."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from ..passes import pipeline
from ..passes.base import META, Pass, PassContext
from ..passes.select_analog import LayerInfo
from ..runtime import targets
from ..runtime.errors import InputError, UnsupportedError
from ..runtime.guard import Access, checked_access
from ..runtime.mapping import TileMapping
from ..runtime.noise import NoiseSource
from ..runtime.sqnr import RangeUse, warn_of_waste
from ..runtime.target import Target
from .build import build
from .capture import Method, Source, check_source, module_of
from .copying import new_uid
from .holder import hold, mode_of
from .home import home_of
from .model import CompiledModel

Select = Callable[[LayerInfo], bool] | str | Iterable[str]


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
    source.home = home_of(model) if isinstance(model, nn.Module) else None
    _check_digital(model)
    target = targets.get(target) if isinstance(target, str) else target
    if not isinstance(target, Target):
        raise InputError(f"target must be a name or a Target, got {type(target).__name__}")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise InputError(f"seed must be an int or None, got {seed!r}")
    steps = pipeline.resolve(passes)
    chosen = _Selection(select)
    weight_access = checked_access(weight_access)
    root = hold(module_of(source))
    ctx = PassContext(
        target=target,
        root=root,
        select=None if select is None else chosen,
        noise=NoiseSource(seed),
        uid=new_uid(),
        strict=strict,
    )
    program = build(source, root, steps, ctx, check)
    chosen.check()
    warn_of_waste(_fixed_ranges(program.graph.nodes, target))
    if calibration_data is not None and _again(calibration_data) is calibration_data:
        # An iterator can be used once; the graph of the other mode will want it too.
        calibration_data = list(calibration_data)
    programs = {mode_of(root): program}
    return CompiledModel(
        root, ctx, programs, steps, source, calibration_data, check, None, weight_access
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


class _Selection:
    """A user's choice as a predicate that remembers which of its patterns ever matched."""

    def __init__(self, select: Select | None) -> None:
        self.predicate = select if callable(select) else None
        names = [select] if isinstance(select, str) else select
        if self.predicate is not None or names is None:
            names = []
        if not isinstance(names, Iterable):
            raise InputError(f"select= takes a predicate or names, got {select!r}")
        self.patterns = list(names)
        for pattern in self.patterns:
            if not isinstance(pattern, str):
                raise InputError(f"select= takes a predicate or names, got {pattern!r}")
        self.unused = set(self.patterns)
        self.seen: list[str] = []

    def __call__(self, info: LayerInfo) -> bool:
        if self.predicate is not None:
            return bool(self.predicate(info))
        self.seen.append(info.name)
        keep_digital = False
        for pattern in self.patterns:
            bare = info.name.partition("@")[0]
            if any(fnmatch.fnmatchcase(name, pattern) for name in (info.name, bare, info.module)):
                self.unused.discard(pattern)
                keep_digital = True
        return not keep_digital

    def check(self) -> None:
        """Raise if a pattern never matched: it is likely misspelt."""
        if self.unused:
            raise InputError(
                f"select=: no layer matches {', '.join(sorted(self.unused))}",
                fix=f"layers: {', '.join(self.seen) or 'none'}",
            )


def _fixed_ranges(nodes: Iterable[Any], target: Target) -> Iterator[RangeUse]:
    adc = target.adc
    if adc is None or adc.range in ("calibrated", "dynamic"):
        return
    for node in nodes:
        mapping = node.meta.get(META)
        if isinstance(mapping, TileMapping):
            bounds = mapping.row_bounds
            rows = max(b - a for a, b in zip(bounds, bounds[1:], strict=False))
            value = float(rows) if adc.range == "full" else float(adc.range)
            yield RangeUse(mapping.layer, adc.bits, rows, value)
