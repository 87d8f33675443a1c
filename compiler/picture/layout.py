"""Layered drawing of a directed acyclic graph: where each box and each edge goes.

The classic four steps: layers by longest path, order within a layer by barycentres, positions by
least squares under a minimum distance, edges as curves through the layers between. A drawing that
would become too long is broken into columns, read like those of a newspaper; breaks are placed
where few edges cross.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

GAP_X, GAP_Y = 22.0, 26.0
"""Space between boxes of a layer, and between layers."""
GUTTER = 46.0
"""Space between columns."""
PAGE = 1320.0
"""Width that columns fill before they make a page scroll sideways."""
ASPECT, TALL = 1.5, 7.0
"""Height over width that is aimed at within a page, and the most at all."""
LANE = 7.0
"""Distance of edges that run side by side in a gutter."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A placed node: centre ``x``, top ``y``."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes by node, edges as SVG path data in drawing order, and the size of it all."""

    boxes: dict[str, Box]
    edges: dict[tuple[str, str], str]
    width: float
    height: float


# A place in a layer: a node, or (with a layer number) the passage of a node's edges through it.
Slot = tuple[str, int]


def layered(
    sizes: dict[str, Point],
    edges: Sequence[tuple[str, str]],
    least: int = 7,
) -> Layout:
    """Place ``sizes`` (width and height of each node, in order of appearance) and ``edges``.

    Args:
        sizes: width and height by node.
        edges: pairs of nodes; no cycles.
        least: layers that a column should have before another one is begun.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(sizes)
    graph.add_edges_from(edges)
    rank = _ranks(graph)
    layers, links = _slots(graph, rank)
    _order(layers, links)
    width_of = {slot: sizes[slot[0]][0] if slot[1] < 0 else 4.0 for row in layers for slot in row}
    heights = [
        max((sizes[name][1] for name, passage in row if passage < 0), default=0.0) for row in layers
    ]
    columns = _columns(layers, links, width_of, heights, least)

    x: dict[Slot, float] = {}
    top = [0.0] * len(layers)
    column_of = [0] * len(layers)
    lefts, rights = [], []
    left = total = 0.0
    for c, (start, stop) in enumerate(columns):
        crossing = _lanes(_crossing(layers, links, start))
        y = GAP_Y / 2 + LANE * len(crossing) if c else 0.0
        left += LANE * len(crossing)
        places = _positions(layers[start:stop], links, width_of)
        low = min(places[s] - width_of[s] / 2 for s in places)
        high = max(places[s] + width_of[s] / 2 for s in places)
        for slot, value in places.items():
            x[slot] = left + value - low
        for r in range(start, stop):
            top[r], column_of[r] = y, c
            y += heights[r] + GAP_Y
        lefts.append(left)
        rights.append(left + high - low)
        left = rights[-1] + GUTTER
        below = _lanes(_crossing(layers, links, stop))
        total = max(total, y - GAP_Y + LANE * (len(below) + 1) * bool(below))

    boxes = {name: Box(x[name, -1], top[rank[name]], *sizes[name]) for name in sizes}
    router = _Router(layers, links, x, top, heights, column_of, lefts, boxes)
    paths = {(u, v): router.path(u, v, rank) for u, v in graph.edges}
    return Layout(boxes, paths, max(rights, default=0.0), total)


def _ranks(graph: nx.DiGraph) -> dict[str, int]:
    rank: dict[str, int] = {}
    for number, names in enumerate(nx.topological_generations(graph)):
        rank.update(dict.fromkeys(names, number))
    for name in graph:
        # An input stands right above its first use, not at the top of a long drawing.
        users = [rank[user] for user in graph.successors(name)]
        if graph.in_degree(name) == 0 and users:
            rank[name] = min(users) - 1
    used = sorted(set(rank.values()))
    packed = {old: new for new, old in enumerate(used)}
    return {name: packed[number] for name, number in rank.items()}


def _slots(
    graph: nx.DiGraph, rank: dict[str, int]
) -> tuple[list[list[Slot]], list[tuple[Slot, Slot]]]:
    """Layers of slots, and links between slots of neighbouring layers.

    All edges of one node share their passage through a layer.
    """
    layers: list[list[Slot]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for name in graph:
        layers[rank[name]].append((name, -1))
    links: list[tuple[Slot, Slot]] = []
    for name in graph:
        users = sorted(graph.successors(name), key=rank.__getitem__)
        at: Slot = (name, -1)
        for r in range(rank[name] + 1, rank[users[-1]] if users else 0):
            links.extend((at, (user, -1)) for user in users if rank[user] == r)
            layers[r].append((name, r))
            links.append((at, (name, r)))
            at = (name, r)
        last = rank[users[-1]] if users else 0
        links.extend((at, (user, -1)) for user in users if rank[user] == last)
    return layers, links


def _neighbours(links: Sequence[tuple[Slot, Slot]]) -> tuple[dict[Slot, list[Slot]], ...]:
    above: dict[Slot, list[Slot]] = {}
    below: dict[Slot, list[Slot]] = {}
    for u, v in links:
        below.setdefault(u, []).append(v)
        above.setdefault(v, []).append(u)
    return above, below


def _order(layers: list[list[Slot]], links: Sequence[tuple[Slot, Slot]], sweeps: int = 6) -> None:
    """Order each layer in place, so that few edges cross."""
    above, below = _neighbours(links)
    best, fewest = [list(row) for row in layers], _crossings(layers, below)
    for sweep in range(sweeps):
        if not fewest:
            break
        down = sweep % 2 == 0
        around = above if down else below
        for r in range(1, len(layers)) if down else range(len(layers) - 2, -1, -1):
            place = {slot: i for i, slot in enumerate(layers[r - 1] if down else layers[r + 1])}
            means = []
            for i, slot in enumerate(layers[r]):
                seen = [place[other] for other in around.get(slot, ())]
                means.append(sum(seen) / len(seen) if seen else float(i))
            # Stable: slots of equal mean keep their order.
            layers[r] = [layers[r][i] for i in sorted(range(len(means)), key=means.__getitem__)]
        count = _crossings(layers, below)
        if count < fewest:
            best, fewest = [list(row) for row in layers], count
    layers[:] = best


def _crossings(layers: list[list[Slot]], below: dict[Slot, list[Slot]]) -> int:
    count = 0
    for upper, lower in zip(layers, layers[1:], strict=False):
        place = {slot: i for i, slot in enumerate(lower)}
        ends = [i for slot in upper for i in sorted(place[other] for other in below.get(slot, ()))]
        count += sum(a > b for i, a in enumerate(ends) for b in ends[i + 1 :])
    return count


def _crossing(
    layers: list[list[Slot]], links: Sequence[tuple[Slot, Slot]], start: int
) -> list[tuple[Slot, Slot]]:
    """Links from the layer before ``start`` to it, left to right."""
    if start <= 0 or start >= len(layers):
        return []
    upper = {slot: i for i, slot in enumerate(layers[start - 1])}
    lower = {slot: i for i, slot in enumerate(layers[start])}
    found = [(u, v) for u, v in links if u in upper and v in lower]
    return sorted(found, key=lambda link: (upper[link[0]], lower[link[1]]))


def _lanes(crossing: Sequence[tuple[Slot, Slot]]) -> dict[Slot, int]:
    """Number of each wire between two columns; the edges of one node share theirs."""
    sources = dict.fromkeys(u for u, _ in crossing)
    return {source: i for i, source in enumerate(sources)}


def _columns(
    layers: list[list[Slot]],
    links: Sequence[tuple[Slot, Slot]],
    width_of: dict[Slot, float],
    heights: list[float],
    least: int,
) -> list[tuple[int, int]]:
    """Ranges of layers that make a column each."""
    count = len(layers)
    if not count:
        return []
    width = max(sum(width_of[s] + GAP_X for s in row) for row in layers) + GUTTER
    height = sum(heights) + GAP_Y * count
    fitting = min(int(PAGE // width), math.ceil(math.sqrt(height / (ASPECT * width))))
    needed = math.ceil(math.sqrt(height / (TALL * width)))
    columns = max(1, min(count // least, max(fitting, needed)))
    cuts = [0]
    for c in range(1, columns):
        ideal = round(count * c / columns)
        reach = max(1, count // (4 * columns))
        near = range(max(cuts[-1] + 1, ideal - reach), min(count, ideal + reach + 1))
        costs = [(len(_lanes(_crossing(layers, links, r))), abs(r - ideal), r) for r in near]
        cuts.append(min(costs)[-1])
    return list(zip(cuts, [*cuts[1:], count], strict=True))


def _positions(
    rows: Sequence[list[Slot]],
    links: Sequence[tuple[Slot, Slot]],
    width_of: dict[Slot, float],
    rounds: int = 12,
) -> dict[Slot, float]:
    """Centres of the slots of one column: each as near to its neighbours' mean as order allows."""
    inside = {slot for row in rows for slot in row}
    above, below = _neighbours([(u, v) for u, v in links if u in inside and v in inside])
    x: dict[Slot, float] = {}
    for row in rows:
        at = -sum(width_of[s] + GAP_X for s in row) / 2
        for slot in row:
            x[slot] = at + (width_of[slot] + GAP_X) / 2
            at += width_of[slot] + GAP_X
    for turn in range(rounds):
        around = above if turn % 2 == 0 else below
        for row in rows if turn % 2 == 0 else reversed(rows):
            wanted = []
            for slot in row:
                # Boxes look at boxes, and passages make way: the main line of a model is straight.
                near = around.get(slot, ())
                seen = [x[other] for other in near if other[1] < 0] or [x[o] for o in near]
                wanted.append(sum(seen) / len(seen) if seen else x[slot])
            weights = [1e4 if slot[1] < 0 else 1.0 for slot in row]
            places = _spread(wanted, weights, [width_of[s] for s in row])
            x.update(zip(row, places, strict=True))
    _straighten(rows, x, width_of)
    return x


def _straighten(
    rows: Sequence[list[Slot]], x: dict[Slot, float], width_of: dict[Slot, float]
) -> None:
    """Let every passage through several layers run at one position, where there is room."""
    passages: dict[str, list[tuple[list[Slot], int]]] = {}
    for row in rows:
        for i, (name, layer) in enumerate(row):
            if layer >= 0:
                passages.setdefault(name, []).append((row, i))
    for _ in range(3):
        for places in passages.values():
            low, high = -math.inf, math.inf
            for row, i in places:
                if i > 0:
                    low = max(low, x[row[i - 1]] + width_of[row[i - 1]] / 2 + GAP_X)
                if i + 1 < len(row):
                    high = min(high, x[row[i + 1]] - width_of[row[i + 1]] / 2 - GAP_X)
            if low <= high:
                slots = [row[i] for row, i in places]
                mean = sum(x[slot] for slot in slots) / len(slots)
                x.update(dict.fromkeys(slots, min(max(mean, low), high)))


def _spread(wanted: list[float], weights: list[float], widths: list[float]) -> list[float]:
    """Positions nearest to ``wanted`` (weighted least squares) that keep the order and the gaps.

    With the gaps subtracted this is isotonic regression: neighbours in the wrong order are pooled.
    """
    offsets = [0.0]
    for a, b in zip(widths, widths[1:], strict=False):
        offsets.append(offsets[-1] + (a + b) / 2 + GAP_X)
    pools: list[tuple[float, float, int]] = []
    for value, offset, weight in zip(wanted, offsets, weights, strict=True):
        mean, size = value - offset, 1
        while pools and pools[-1][0] > mean:
            before, mass, count = pools.pop()
            mean = (before * mass + mean * weight) / (mass + weight)
            weight, size = weight + mass, size + count
        pools.append((mean, weight, size))
    flat = [mean for mean, _, size in pools for _ in range(size)]
    return [value + offset for value, offset in zip(flat, offsets, strict=True)]


class _Router:
    """SVG path data of edges, slot by slot."""

    def __init__(
        self,
        layers: list[list[Slot]],
        links: Sequence[tuple[Slot, Slot]],
        x: dict[Slot, float],
        top: list[float],
        heights: list[float],
        column_of: list[int],
        lefts: list[float],
        boxes: dict[str, Box],
    ) -> None:
        self.x, self.top, self.heights = x, top, heights
        self.column_of, self.lefts, self.boxes = column_of, lefts, boxes
        self.lane: dict[Slot, int] = {}
        for r in range(1, len(layers)):
            if column_of[r] != column_of[r - 1]:
                self.lane.update(_lanes(_crossing(layers, links, r)))

    def path(self, u: str, v: str, rank: dict[str, int]) -> str:
        """Path from the bottom of box ``u`` to the top of box ``v``."""
        first, last = rank[u], rank[v]
        slots: list[Slot] = [(u, -1), *((u, r) for r in range(first + 1, last)), (v, -1)]
        box = self.boxes[u]
        y = box.y + box.height
        data = [f"M{self.x[slots[0]]:.1f} {y:.1f}"]
        for r, (a, b) in enumerate(zip(slots, slots[1:], strict=False), first + 1):
            bottom = self.top[r - 1] + self.heights[r - 1]
            if y < bottom:
                data.append(f"V{bottom:.1f}")
            if self.column_of[r] == self.column_of[r - 1]:
                data.append(_curve(self.x[a], bottom, self.x[b], self.top[r]))
            else:
                data.append(self._around(self.lane[a], self.x[a], self.x[b], bottom, r))
            y = self.top[r]
        return "".join(data)

    def _around(self, lane: int, x1: float, x2: float, bottom: float, r: int) -> str:
        """Down, along the gutter to the top of the next column, and into it."""
        gutter = self.lefts[self.column_of[r]] - GUTTER / 2 - LANE * lane
        low = bottom + LANE * (lane + 1)
        high = self.top[r] - GAP_Y / 2 - LANE * lane
        points = [(x1, bottom), (x1, low), (gutter, low), (gutter, high), (x2, high)]
        return _rounded([*points, (x2, self.top[r])])


def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    if abs(x1 - x2) < 0.5:
        return f"L{x2:.1f} {y2:.1f}"
    middle = (y1 + y2) / 2
    return f"C{x1:.1f} {middle:.1f} {x2:.1f} {middle:.1f} {x2:.1f} {y2:.1f}"


def _rounded(points: Sequence[Point], radius: float = 5.0) -> str:
    """Straight lines through ``points`` with rounded corners."""
    data = []
    for (ax, ay), (bx, by), (cx, cy) in zip(points, points[1:], points[2:], strict=False):
        before, after = abs(ax - bx) + abs(ay - by), abs(cx - bx) + abs(cy - by)
        r = min(radius, before / 2, after / 2)
        if r < 0.1:
            continue
        px, py = bx + r * (ax - bx) / before, by + r * (ay - by) / before
        qx, qy = bx + r * (cx - bx) / after, by + r * (cy - by) / after
        data.append(f"L{px:.1f} {py:.1f}Q{bx:.1f} {by:.1f} {qx:.1f} {qy:.1f}")
    x, y = points[-1]
    return "".join(data) + f"L{x:.1f} {y:.1f}"
