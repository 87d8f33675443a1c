"""One captured graph, taken through the passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from torch import fx

from ..passes import pipeline
from ..passes.base import META, Pass, PassContext
from ..passes.emit import forget_real_tensors
from ..passes.select_analog import Analog
from ..runtime.errors import UnsupportedError
from ..runtime.regions import plain_precision
from .capture import Source, capture
from .coverage import CoverageReport
from .holder import Holder
from .printing import counted, format_graph
from .signature import Signature


@dataclass(frozen=True, slots=True)
class Step:
    """IR before and after one pass."""

    name: str
    modified: bool
    before: str
    after: str


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
    middle = perf_counter()
    steps: list[Step] = []
    text = format_graph(captured.module.graph)

    def record(step: Pass, module: fx.GraphModule, modified: bool) -> None:
        nonlocal text
        after = format_graph(module.graph)
        steps.append(Step(step.name, modified, text, after))
        text = after

    module = pipeline.run(passes, captured.module, ctx, record, check)
    if ctx.strict:
        _refuse_unsupported(module.graph)
    _drop_unmapped(module.graph)
    forget_real_tensors(module.graph)
    return Program(
        module.graph,
        captured.signature,
        tuple(steps),
        middle - start,
        perf_counter() - middle,
    )


def _refuse_unsupported(graph: fx.Graph) -> None:
    rows = CoverageReport.of(graph).unsupported
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
