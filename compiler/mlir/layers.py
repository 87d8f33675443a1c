"""Analog operations of the layers of a graph."""

from __future__ import annotations

from typing import Any

from torch_mlir import ir

from ...runtime.mapping import TileMapping
from .attributes import mapping_attribute, spec_attributes
from .dialect import ConvOp, LinearOp


def build_layer(mapping: TileMapping, operands: tuple[Any, ...], scale: Any, result: Any) -> Any:
    """``analog.linear`` or ``analog.conv`` of a layer, at the current insertion point.

    Args:
        mapping: of its weight onto tiles; says which operation it is.
        operands: of the analogc operator, tensors as values of builtin type.
        scale: if the weight among them is what the tiles hold: its scale, a value; or None.
        result: type of the result.
    """
    x, weight, bias, input_range, adc_range, *geometry, spec, _ = operands
    settings = {
        **spec_attributes(spec),
        "mapping": mapping_attribute(mapping),
        "scale": scale,
        "bias": bias,
        "input_range": input_range,
        "adc_range": adc_range,
    }
    if mapping.op == "linear":
        return LinearOp(x=x, weight=weight, y=result, **settings).y
    stride, padding, dilation, groups = geometry
    lists = {"stride": stride, "padding": padding, "dilation": dilation}
    arrays = {name: ir.DenseI64ArrayAttr.get(list(value)) for name, value in lists.items()}
    number = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), groups)
    return ConvOp(x=x, weight=weight, y=result, groups=number, **arrays, **settings).y
