"""Compiled graphs for Google's Model Explorer (ai-edge-model-explorer 0.1).

The file is one graph collection: ``{label, graphs: [{id, nodes}]}``, nodes with ``id``, ``label``,
``namespace``, ``incomingEdges``, ``attrs`` and ``outputsMetadata``.
"""

from __future__ import annotations

import json
from typing import Any

from ...passes.select_analog import Analog
from ...runtime.mapping import Digital, TileMapping
from ..coverage import source_text
from ..inspected import Inspected
from ..listing import Line, Listing
from .explorer_data import layers
from .graph import shade
from .grouping import Grouping, grouped


def to_json(model: Inspected) -> str:
    """JSON text; the same model gives the same text."""
    graphs = []
    for position, module in enumerate(model.graphs):
        assert isinstance(module, Inspected), "a graph of a compiled model"
        label = str(getattr(module, "label", "")) or "graph"
        graphs.append(_graph(module, label if len(model.graphs) > 1 else "graph", position))
    return json.dumps({"label": f"analogc: {model.target.name}", "graphs": graphs}, indent=1)


def _graph(module: Inspected, label: str, position: int) -> dict[str, Any]:
    listing = Listing.of(module.graph)
    grouping = grouped(listing)
    spaces = _namespaces(grouping)
    settings = dict(layers(module))
    known = {line.name for line in listing}
    nodes = [
        {
            "id": line.name,
            "label": line.record.layer if isinstance(line.record, TileMapping) else line.op,
            "namespace": spaces[home + 1],
            "attrs": _attrs(line, settings.get(line.name, {})),
            "incomingEdges": [
                {"sourceNodeId": name, "sourceNodeOutputId": "0", "targetNodeInputId": str(i)}
                for i, name in enumerate(line.inputs)
                if name in known
            ],
            "outputsMetadata": [
                {"id": "0", "attrs": _pairs({"tensor_shape": line.type, "name": line.name})}
            ]
            if line.type
            else [],
            **_style(line),
        }
        for line, home in zip(listing, grouping.home, strict=True)
    ]
    found: dict[str, Any] = {"id": label if position == 0 else f"{label} #{position}"}
    return {**found, "nodes": nodes}


def _namespaces(grouping: Grouping) -> list[str]:
    """Path of each group, after that of no group. Parts are divided by slashes."""
    found = [""]
    for group in grouping.groups:
        name = group.label.replace("/", "\N{FRACTION SLASH}")
        name += f" (call {group.call})" if group.call > 1 else ""
        found.append(f"{found[group.parent + 1]}/{name}".lstrip("/"))
    return found


def _attrs(line: Line, settings: dict[str, Any]) -> list[dict[str, str]]:
    record = line.record
    found = {"op": line.op, "module": line.module, "source": source_text(line.source)}
    if isinstance(record, TileMapping):
        ids = record.tile_ids
        found |= {
            "placement": "analog",
            "tile array": record.array,
            "tiles": f"{record.groups}x{record.grid[0]}x{record.grid[1]}",
            "tile size": f"{record.tile_rows}x{record.tile_cols}",
            "tile ids": f"{ids.start}..{ids.stop - 1}",
            "utilisation": f"{record.utilisation:.4f}",
            "weight": "x".join(map(str, record.weight_shape)),
            "macs": str(record.macs),
        }
        for name in ("dac", "adc"):
            if name in settings:
                converter = settings[name]
                said = [f"{converter['bits']} bits", f"{converter['range']} range"]
                found[name] = ", ".join(said + converter["notes"])
        found |= settings.get("parts", {})
        found["device"] = settings.get("device", "")
    elif isinstance(record, Digital):
        found |= {"placement": f"digital ({record.rule})", "why digital": record.reason}
        found |= {"macs": str(record.macs)} if record.macs else {}
    else:
        assert not isinstance(record, Analog), "a finished graph has mappings"
    return _pairs(found)


def _pairs(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items() if value]


def _style(line: Line) -> dict[str, Any]:
    if not isinstance(line.record, TileMapping):
        return {}
    fill = shade(line.record.utilisation)
    return {
        "style": {
            "backgroundColor": fill, "borderColor": "#0b665e", "hoveredBorderColor": "#1a62b8",
        }
    }  # fmt: skip
