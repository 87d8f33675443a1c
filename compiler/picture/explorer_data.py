"""What the interactive page knows of a compiled model, as plain values for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import fx

from ...passes.select_analog import Analog
from ...passes.verify import OPS
from ...runtime.mapping import Digital, TileMapping
from ...runtime.spec import parse
from ..coverage import source_text
from ..inspected import Inspected
from ..listing import Line, Listing
from ..target_text import device_text, parts
from .grouping import grouped
from .histogram import histogram, ranges

FIELDS = (
    "name", "kind", "op", "type", "text", "inputs", "module", "source",
    "array", "layer", "rule", "why", "macs",
)  # fmt: skip
"""Fields of a row of ``lines``."""
PLUMBING = frozenset({"weight", "size", "region"})
"""Kinds of lines that carry no activation."""


def model_data(model: Inspected) -> dict[str, Any]:
    """Everything on the page but its tables: graphs at each stage, tile arrays, distributions."""
    names = {mapping.array: i for i, mapping in enumerate(model.tiles)}
    lines, groups = _Lines(names), _Table()
    graphs = []
    for position, module in enumerate(model.graphs):
        assert isinstance(module, Inspected), "a graph of a compiled model"
        graphs.append(
            {
                "label": str(getattr(module, "label", "")) or f"{position}",
                "stages": _stages(module, lines, groups),
                "layers": dict(layers(module)),
            }
        )
    return {
        "fields": FIELDS,
        "lines": lines.rows,
        "groups": [dataclasses.astuple(group) for group in groups.rows],
        "graphs": graphs,
        "arrays": _arrays(model),
    }


class _Table:
    """Values, each once, by their position."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._known: dict[Any, int] = {}

    def add(self, key: Any, value: Any) -> int:
        """Position of ``value``."""
        if key not in self._known:
            self._known[key] = len(self.rows)
            self.rows.append(value)
        return self._known[key]


class _Lines:
    """Rows of FIELDS. Stages share the lines that a pass left alone."""

    def __init__(self, arrays: dict[str, int]) -> None:
        self.rows: list[list[Any]] = []
        self._known: dict[int, tuple[int, Line]] = {}
        self._arrays = arrays

    def add(self, line: Line) -> int:
        if id(line) not in self._known:
            self._known[id(line)] = len(self.rows), line
            self.rows.append(self._row(line))
        return self._known[id(line)][0]

    def _row(self, line: Line) -> list[Any]:
        record = line.record
        row: list[Any] = [
            line.name, line.kind, line.op, line.type, line.right, line.inputs, line.module,
            source_text(line.source),
        ]  # fmt: skip
        if isinstance(record, TileMapping):
            row += [self._arrays.get(record.array, -1), record.layer, "", "", record.macs]
        elif isinstance(record, Digital):
            row += [-1, "", record.rule, record.reason, record.macs]
        elif isinstance(record, Analog):
            row += [-1, record.info.name, "selected"]
        return row


def _stages(module: Inspected, lines: _Lines, groups: _Table) -> list[dict[str, Any]]:
    """The captured graph, the graph after each pass, and the current one if it is another."""
    history = module.history
    moments: list[tuple[str, Listing]] = [("captured", history[0].old)] if history else []
    moments += [(step.name, step.new) for step in history]
    current = Listing.of(module.graph, moments[-1][1] if moments else None)
    if not moments or moments[-1][1] != current:
        moments.append(("current graph", current))
    found: list[dict[str, Any]] = []
    before: Listing | None = None
    for name, listing in moments:
        if listing is before:
            found.append({"pass": name, "same": True})
            continue
        before = listing
        grouping = grouped(listing, PLUMBING)
        numbers = [-1]
        for group in grouping.groups:
            placed = dataclasses.replace(group, parent=numbers[group.parent + 1])
            numbers.append(groups.add(placed, placed))
        found.append(
            {
                "pass": name,
                "lines": [lines.add(line) for line in listing],
                "home": [numbers[home + 1] for home in grouping.home],
            }
        )
    return found


def layers(module: Inspected) -> Iterator[tuple[str, dict[str, Any]]]:
    """Converters and device of each analog node, by name."""
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in OPS:
            continue
        spec = parse(str(node.args[-2]))
        facts: dict[str, Any] = {
            "device": device_text(spec.device),
            "noise": spec.output_noise,
            "scale": spec.weight_scale,
            "parts": {name: text for name, text in parts(spec).items() if name != "device"},
        }
        for name, converter, at in (("dac", spec.dac, 3), ("adc", spec.adc, 4)):
            if converter is not None:
                value = node.args[at]
                tensor = module._value(value) if isinstance(value, fx.Node) else None
                facts[name] = ranges(converter, tensor, spec.slicing)
        yield node.name, facts


def _arrays(model: Inspected) -> list[dict[str, Any]]:
    uses: dict[str, list[tuple[int, str]]] = {}
    found: dict[str, dict[str, Any]] = {}
    for position, module in enumerate(model.graphs):
        assert isinstance(module, Inspected), "a graph of a compiled model"
        for node, mapping in module._analog_nodes():
            uses.setdefault(mapping.array, []).append((position, node.name))
            if mapping.array not in found:
                found[mapping.array] = {
                    "name": mapping.array,
                    "op": mapping.op,
                    "shape": mapping.weight_shape,
                    "groups": mapping.groups,
                    "row_bounds": mapping.row_bounds,
                    "col_bounds": mapping.col_bounds,
                    "first": mapping.first_tile,
                    "tile_rows": mapping.tile_rows,
                    "tile_cols": mapping.tile_cols,
                    "columns_per_weight": mapping.columns_per_weight,
                    "used": round(mapping.utilisation, 6),
                    "uses": uses[mapping.array],
                    "weights": _weights(model, module, node),
                    "seconds": _seconds(module, mapping.array),
                }
    return [found[mapping.array] for mapping in model.tiles]


def _seconds(module: Inspected, name: str) -> float | None:
    """Time since programming of devices that drift."""
    array = module._ctx.arrays.get(name)
    if array is None or array.programmed is None or not array.spec.device.drifts:
        return None
    return array.programmed.seconds


def _weights(model: Inspected, module: Inspected, node: fx.Node) -> dict[str, Any]:
    if model.weight_access == "sealed":
        return {"hidden": "The weights are sealed: their values are not shown."}
    value = module._value(node.args[1])
    if value.is_meta:
        return {"hidden": "The weights are on the meta device: they have no values yet."}
    return histogram(value)
