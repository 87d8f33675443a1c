"""What of a compiled model must run one after the other, and what can run at the same time.

Computed on ``compiled.to_networkx()``, at the example shape, from the graph alone: no clock, no
power. Every tile array is a machine of its own, so two layers that do not wait for each other may
run at the same time, unless they share an array: then they take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..runtime.errors import InputError
from .coverage import count_text
from .printing import counted

if TYPE_CHECKING:
    import networkx as nx

Cost = str | Callable[[Mapping[str, Any]], float]
"""Cost of a node: a name of ``COSTS``, or a function of its attributes."""

COSTS: dict[str, str] = {
    "mvms": "input vectors through the tiles, one by one",
    "layers": "analog layers",
    "macs": "multiply-accumulates, analog and digital",
}
"""Costs by name, and what each counts."""
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """The most costly way from an input to an output."""

    nodes: tuple[str, ...]
    """Its nodes that cost something, in order."""
    length: float
    """Sum of their costs."""
    total: float
    """Sum of the costs of all nodes: ``total / length`` is the gain of running all that can at the
    same time."""
    cost: str
    """Name of the cost."""


@dataclass(frozen=True, slots=True)
class Level:
    """Analog layers that have equally many before them, so none of them waits for another."""

    nodes: tuple[str, ...]
    arrays: tuple[str, ...]
    """Their tile arrays, each once: fewer than nodes if some take turns."""


@dataclass(frozen=True, slots=True)
class SharedWeight:
    """A tile array that several layers use."""

    array: str
    nodes: tuple[str, ...]
    mvms: int
    """Input vectors of all uses together, which go through the same tiles one after the other."""


class Dataflow:
    """Critical path, parallel layers and shared weights of one compiled model.

    Args:
        graph: of ``to_networkx``.
    """

    def __init__(self, graph: nx.DiGraph) -> None:
        self.graph = graph

    @property
    def analog(self) -> tuple[str, ...]:
        """Names of the analog nodes, in order."""
        return tuple(n for n, facts in self.graph.nodes.items() if facts["kind"] == "analog")

    def critical_path(self, cost: Cost = "mvms") -> CriticalPath:
        """The most costly path through the graph; of several models' graphs the longest one's.

        Args:
            cost: ``"mvms"``: input vectors through the tiles, which a layer takes one after the
                other (a convolution: its output pixels); ``"layers"``: analog layers; ``"macs"``:
                multiply-accumulates of all nodes; or a function of a node's attributes.

        Raises:
            InputError: no such cost.
        """
        import networkx as nx

        weigh = _cost(cost)
        costs = {node: weigh(facts) for node, facts in self.graph.nodes.items()}
        best: dict[str, float] = {}
        before: dict[str, str | None] = {}
        for node in nx.topological_sort(self.graph):
            found = max(self.graph.predecessors(node), key=best.__getitem__, default=None)
            before[node] = found
            best[node] = costs[node] + (0 if found is None else best[found])
        at = max(best, key=best.__getitem__, default=None)
        length = 0 if at is None else best[at]
        path: list[str] = []
        while at is not None:
            if costs[at]:
                path.append(at)
            at = before[at]
        name = cost if isinstance(cost, str) else getattr(cost, "__name__", "cost")
        return CriticalPath(tuple(reversed(path)), length, sum(costs.values()), name)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Analog layers by the number of analog layers before them on the longest way.

        Layers of one level do not depend on each other (an antichain). Several graphs have levels
        of their own, since they run one after the other.
        """
        import networkx as nx

        depth: dict[str, int] = {}
        found: dict[tuple[str, int], list[str]] = {}
        nodes = self.graph.nodes
        for node in nx.topological_sort(self.graph):
            deepest = max((depth[p] for p in self.graph.predecessors(node)), default=0)
            depth[node] = deepest + (nodes[node]["kind"] == "analog")
        for node in self.analog:
            found.setdefault((nodes[node]["graph"], depth[node]), []).append(node)
        graphs = list(dict.fromkeys(graph for graph, _ in found))
        ordered = sorted(found, key=lambda key: (graphs.index(key[0]), key[1]))
        return tuple(self._level(found[key]) for key in ordered)

    def _level(self, members: list[str]) -> Level:
        arrays = dict.fromkeys(self.graph.nodes[node]["array"] for node in members)
        return Level(tuple(members), tuple(arrays))

    @property
    def parallel(self) -> tuple[Level, ...]:
        """Levels in which several tile arrays can work at the same time."""
        return tuple(level for level in self.levels if len(level.arrays) > 1)

    @cached_property
    def shared(self) -> tuple[SharedWeight, ...]:
        """Tile arrays that more than one node uses, in order of first use."""
        uses: dict[str, list[str]] = {}
        for node in self.analog:
            uses.setdefault(self.graph.nodes[node]["array"], []).append(node)
        return tuple(
            SharedWeight(array, tuple(found), sum(self.graph.nodes[n]["mvms"] for n in found))
            for array, found in uses.items()
            if len(found) > 1
        )

    @property
    def bound(self) -> int:
        """Fewest MVM times that a call can take: the critical path's, or the busiest array's.

        One MVM time is that of one input vector through one tile array.
        """
        busiest = max((shared.mvms for shared in self.shared), default=0)
        return max(int(self.critical_path("mvms").length), busiest)

    def summary(self) -> str:
        """One line."""
        path = self.critical_path("layers")
        mvms = self.critical_path("mvms")
        widest = max((len(level.arrays) for level in self.levels), default=0)
        several = len({self.graph.nodes[node]["graph"] for node in self.analog}) > 1
        where = " of the longest graph" if several else ""
        return (
            f"critical path{where}: {path.length} of {counted(len(self.analog), 'analog layer')}, "
            f"{count_text(int(mvms.length))} of {count_text(int(mvms.total))} MVMs; "
            f"up to {counted(widest, 'tile array')} at a time"
        )

    def lines(self) -> list[tuple[str, str]]:
        """What there is to tell below the summary: pairs of a title and the layers concerned."""
        path = self.critical_path("mvms")
        nodes = self.graph.nodes
        layers = [n for n in path.nodes if nodes[n]["kind"] == "analog"]
        found = [("path", " → ".join(_some([nodes[n]["layer"] for n in layers])))] if layers else []
        for level, times in _repeated(self.parallel, self.graph):
            again = f"  ({times} times)" if times > 1 else ""
            found.append(("parallel", " ‖ ".join(_some(list(level.arrays))) + again))
        for shared in self.shared:
            uses = f"{len(shared.nodes)} uses, {count_text(shared.mvms)} MVMs"
            found.append(("shared", f"{shared.array}: {uses}"))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        paths = {cost: self.critical_path(cost) for cost in COSTS}
        return {
            "critical_path": {
                cost: {"nodes": list(path.nodes), "length": path.length, "total": path.total}
                for cost, path in paths.items()
            },
            "levels": [list(level.nodes) for level in self.levels],
            "shared_weights": [
                {"array": s.array, "nodes": list(s.nodes), "mvms": s.mvms} for s in self.shared
            ],
            "bound_mvms": self.bound,
        }

    def __str__(self) -> str:
        return "\n".join([self.summary(), *(f"  {what:<8}  {who}" for what, who in self.lines())])

    __repr__ = __str__

    def __rich__(self) -> Any:
        """Table for rich."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(self.summary()), title_justify="left", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column()
        for what, who in self.lines():
            table.add_row(what, escape(who))
        return table


def _cost(cost: Cost) -> Callable[[Mapping[str, Any]], float]:
    if callable(cost):
        return cost
    if cost == "mvms":
        return lambda facts: int(facts.get("mvms", 0))
    if cost == "layers":
        return lambda facts: int(facts["kind"] == "analog")
    if cost == "macs":
        return lambda facts: int(facts["macs"])
    raise InputError(f"no cost named {cost!r}", fix=f"one of {', '.join(COSTS)}, or a function")


def _some(names: list[str]) -> list[str]:
    if len(names) <= _SHOWN:
        return names
    half = _SHOWN // 2
    return [*names[:half], f"... {len(names) - 2 * half} more ...", *names[-half:]]


def _repeated(levels: tuple[Level, ...], graph: nx.DiGraph) -> list[tuple[Level, int]]:
    """Levels, those of the same arrays (the steps of a loop) as one, with their number."""
    found: dict[tuple[str, tuple[str, ...]], list[Level]] = {}
    for level in levels:
        label = graph.nodes[level.nodes[0]]["graph"]
        found.setdefault((label, tuple(sorted(level.arrays))), []).append(level)
    return [(same[0], len(same)) for same in found.values()]
