"""Settings as MLIR attributes and back, without loss.

What a lowering reads has typed parameters; every other field of a LayerSpec, a converter, a device
or a TileMapping travels in a dictionary, so a field that is added there needs no change here.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from torch_mlir import ir

from ...runtime.mapping import TileMapping
from ...runtime.spec import LayerSpec, parse
from .kinds import ConverterAttr, DeviceAttr, IdealAttr, MappingAttr

_TYPED_SPEC = ("rows", "dac", "adc", "weight_scale", "device")
# What the operation itself says: its layer and array names, row blocks, operands and name.
_DERIVED_MAPPING = (
    "layer", "array", "op", "row_bounds", "weight_shape", "out_features", "in_features", "groups",
)  # fmt: skip


def i64(value: int) -> Any:
    """``value : i64``."""
    return ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value)


def from_json(value: Any) -> Any:
    """Attribute of a JSON value: numbers as i64 and f64, null as ``unit``."""
    if value is None:
        return ir.UnitAttr.get()
    if isinstance(value, bool):
        return ir.BoolAttr.get(value)
    if isinstance(value, int):
        return i64(value)
    if isinstance(value, float):
        return ir.FloatAttr.get(ir.F64Type.get(), value)
    if isinstance(value, str):
        return ir.StringAttr.get(value)
    if isinstance(value, dict):
        return ir.DictAttr.get({key: from_json(item) for key, item in value.items()})
    items = list(value)
    if items and all(type(item) is int for item in items):
        return ir.DenseI64ArrayAttr.get(items)
    return ir.ArrayAttr.get([from_json(item) for item in items])


def to_json(attr: Any) -> Any:
    """JSON value of an attribute of ``from_json``.

    Raises:
        ValueError: it is of another kind.
    """
    # Parameters come without their class.
    known = attr.maybe_downcast()
    for kind, read in _READ:
        if isinstance(known, kind):
            return read(known)
    raise ValueError(f"no plain value: {attr}")


_READ: tuple[tuple[Any, Any], ...] = (
    (ir.UnitAttr, lambda a: None),
    (ir.BoolAttr, lambda a: bool(a.value)),
    (ir.IntegerAttr, lambda a: a.value),
    (ir.FloatAttr, lambda a: a.value),
    (ir.StringAttr, lambda a: a.value),
    (ir.DictAttr, lambda a: {item.name: to_json(item.attr) for item in a}),
    (ir.DenseI64ArrayAttr, list),
    (ir.ArrayAttr, lambda a: [to_json(item) for item in a]),
)


def _without(data: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in names}


# -- converters and devices -----------------------------------------------------------------------


def converter(data: dict[str, Any] | None) -> Any:
    """``#analog.converter`` of a converter's plain values, ``#analog.ideal`` of None."""
    if data is None:
        return IdealAttr.get()
    limit = data["range"]
    limit = from_json(limit if isinstance(limit, str) else float(limit))
    settings = from_json(_without(data, "bits", "range"))
    return ConverterAttr.get(i64(data["bits"]), limit, settings)


def converter_values(attr: Any) -> dict[str, Any] | None:
    """Plain values of a converter attribute; None if it is ideal."""
    if isinstance(attr, IdealAttr):
        return None
    return {
        "bits": to_json(attr.bits),
        "range": to_json(attr.range),
        **to_json(attr.settings),
    }


def device(data: dict[str, Any]) -> Any:
    """``#analog.device`` of a device's plain values."""
    return DeviceAttr.get(from_json(data["kind"]), from_json(_without(data, "kind")))


def device_values(attr: Any) -> dict[str, Any]:
    """Plain values of a device attribute."""
    return {"kind": to_json(attr.kind), **to_json(attr.settings)}


# -- layers ---------------------------------------------------------------------------------------


def spec_attributes(text: str) -> dict[str, Any]:
    """Attributes of a layer operation that hold the LayerSpec of this text."""
    data = json.loads(text)
    return {
        "rows": ir.DenseI64ArrayAttr.get(data["rows"]),
        "dac": converter(data["dac"]),
        "adc": converter(data["adc"]),
        "weight_scale": from_json(data["weight_scale"]),
        "device": device(data["device"]),
        "settings": from_json(_without(data, *_TYPED_SPEC)),
    }


def spec_text(op: Any) -> str:
    """Text of the LayerSpec that a layer operation holds."""
    data = {
        "rows": to_json(op.rows),
        "dac": converter_values(op.dac),
        "adc": converter_values(op.adc),
        "weight_scale": to_json(op.weight_scale),
        "device": device_values(op.device),
        **to_json(op.settings),
    }
    return json.dumps(data, separators=(",", ":"))


def spec_of(op: Any) -> LayerSpec:
    """LayerSpec that a layer operation holds; FormatError if it holds none."""
    return parse(spec_text(op))


@functools.cache
def default_settings() -> dict[str, Any]:
    """Settings of a layer, besides the typed ones, that change nothing."""
    data: dict[str, Any] = json.loads(LayerSpec((0, 1)).to_text())
    return _without(data, *_TYPED_SPEC)


def mapping_attribute(mapping: TileMapping) -> Any:
    """``#analog.mapping`` of a layer's mapping."""
    return MappingAttr.get(
        from_json(mapping.layer),
        from_json(mapping.array),
        from_json(_without(mapping.to_dict(), *_DERIVED_MAPPING)),
    )


def mapping_of(op: Any) -> TileMapping:
    """TileMapping of a layer operation; FormatError if it holds none."""
    shape = [int(size) for size in op.weight.type.shape]
    kind = op.OPERATION_NAME.partition(".")[2]
    groups = to_json(op.groups) if kind == "conv" else 1
    held = {"macs": 0, "columns_per_weight": 1, **to_json(op.mapping.settings)}
    return TileMapping.from_dict(
        {
            **held,
            "layer": to_json(op.mapping.layer),
            "array": to_json(op.mapping.array),
            "op": kind if kind == "linear" else f"conv{len(shape) - 2}d",
            "row_bounds": to_json(op.rows),
            "weight_shape": shape,
            "out_features": shape[0] // groups,
            "in_features": to_json(op.rows)[-1],
            "groups": groups,
        }
    )
