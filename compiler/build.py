"""One captured graph, taken through the passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from torch import fx

from ..passes import pipeline
from ..passes.base import META, Pass, PassContext
from ..passes.emit import forget_real_tensors
from ..passes.select_analog import Analog
from ..runtime.errors import UnsupportedError
from ..runtime.mapping import TileMapping
from ..runtime.regions import plain_precision
from ..runtime.sqnr import RangeUse
from ..runtime.target import Target
from .capture import capture
from .coverage import CoverageReport
from .holder import Holder
from .listing import Listing
from .printing import counted
from .signature import Signature
from .source import Source


@dataclass(frozen=True, slots=True)
class Step:
    """The graph before and after one pass."""

    name: str
    modified: bool
    old: Listing
    new: Listing

    @property
    def before(self) -> str:
        """IR before the pass."""
        return self.old.text

    @property
    def after(self) -> str:
        """IR after the pass."""
        return self.new.text


@dataclass(slots=True)
class Program:
    """A compiled graph of one mode of the model."""

    graph: fx.Graph
    signature: Signature
    history: tuple[Step, ...] = ()
    capture_seconds: float = 0.0
    """Time that torch.export took."""
    passes_seconds: float = 0.0
    """Time that the passes took."""
    function: Callable[..., Any] | None = None
    """The graph as a function of the root holder and the flat inputs."""
    guards: str | None = None
    """What the graph relies on of the sizes of its inputs; see Captured."""


@plain_precision()
def build(
    source: Source,
    root: Holder,
    passes: Sequence[Pass],
    ctx: PassContext,
    check: bool,
) -> Program:
    """Capture ``source`` in the mode of ``root`` and run ``passes`` on it.

    Raises:
        UnsupportedError: the model cannot be captured, or ``ctx.strict`` and a weight-stationary
            operator has no analog form.
    """
    start = perf_counter()
    captured = capture(source, root)
    seconds = perf_counter() - start
    program = lower(captured.module, captured.signature, passes, ctx, check, seconds)
    forget_real_tensors(program.graph)
    program.guards = captured.guards
    return program


def lower(
    module: fx.GraphModule,
    signature: Signature,
    passes: Sequence[Pass],
    ctx: PassContext,
    check: bool,
    capture_seconds: float = 0.0,
) -> Program:
    """Run ``passes`` on a captured graph, whose ``get_attr`` nodes refer to ``ctx.root``."""
    start = perf_counter()
    steps: list[Step] = []
    listing, notes = Listing.of(module.graph), _notes(module.graph)

    def record(step: Pass, module: fx.GraphModule, modified: bool) -> None:
        nonlocal listing, notes
        before, found = listing, _notes(module.graph)
        if modified or found != notes:
            listing, notes = Listing.of(module.graph, before), found
        steps.append(Step(step.name, modified, before, listing))

    module = pipeline.run(passes, module, ctx, record, check)
    if ctx.strict:
        refuse_unsupported(CoverageReport.of(module.graph))
    _drop_unmapped(module.graph)
    passes_seconds = perf_counter() - start
    return Program(module.graph, signature, tuple(steps), capture_seconds, passes_seconds)


def _notes(graph: fx.Graph) -> list[int]:
    """Which records the nodes carry: a pass that only annotates changes the printed form, too."""
    return [id(node.meta.get(META)) for node in graph.nodes]


def refuse_unsupported(coverage: CoverageReport) -> None:
    """Raise UnsupportedError if an operator with stored weights would stay digital."""
    rows = coverage.unsupported
    if not rows:
        return
    lines = [
        f"  %{row.node} ({row.op})"
        + (f" in {row.module}" if row.module else "")
        + (f", {row.line}" if row.line else "")
        + f": {row.reason}"
        for row in rows
    ]
    what = f"{counted(len(rows), 'operator')} with stored weights would stay digital:"
    raise UnsupportedError(
        "\n".join([what, *lines]),
        where=rows[0].line or rows[0].module or None,
        fix="change the model as the reasons say, or compile without strict=True",
    )


def _drop_unmapped(graph: fx.Graph) -> None:
    # A pipeline without map-tiles leaves Analog records; a finished graph holds none.
    for node in graph.nodes:
        if isinstance(node.meta.get(META), Analog):
            del node.meta[META]


def fixed_ranges(graph: fx.Graph, target: Target) -> Iterator[RangeUse]:
    """The layers whose ADC has a range that was set, not calibrated, for sums of whole weights."""
    adc = target.adc
    if adc is None or adc.range in ("calibrated", "dynamic") or target.slicing is not None:
        return
    for node in graph.nodes:
        mapping = node.meta.get(META)
        if isinstance(mapping, TileMapping):
            bounds = mapping.row_bounds
            rows = max(b - a for a, b in zip(bounds, bounds[1:], strict=False))
            value = float(rows) if adc.range == "full" else float(adc.range)
            yield RangeUse(mapping.layer, adc.bits, rows, value)
