"""Types and attributes of the ``analog`` dialect. Docstrings are what docs/dialect.md prints.

No ``from __future__ import annotations`` here: the bindings read the annotations as objects.
"""

from typing import Any

from torch_mlir import ir
from torch_mlir.dialects.ext import Dialect


class Analog(Dialect, name="analog"):
    """Layers that run on analog crossbar tiles, whole or taken apart into tiles and converters."""


# Names that mypy takes as base classes.
_Type: Any = Analog.Type
_Attribute: Any = Analog.Attribute


class I64Array(ir.DenseI64ArrayAttr):
    """Constraint ``array<i64: ...>``, which the bindings have no name for."""

    attr_name = "builtin.dense_array"


class Bool(ir.BoolAttr):
    """Constraint ``true`` or ``false``."""

    attr_name = "builtin.integer"


class TileType(_Type, name="tile"):
    """What one tile, or part of a tile, holds: ``rows`` inputs times ``cols`` outputs (weights)."""

    rows: ir.IntegerAttr
    cols: ir.IntegerAttr


class ConverterAttr(_Attribute, name="converter"):
    """A DAC or ADC: bits, sign included (2..16); where it clips; further settings.

    The range is ``"calibrated"``, ``"average"`` and ``"dynamic"`` (DAC), ``"full"`` (ADC) or a
    number.
    """

    bits: ir.IntegerAttr
    range: ir.StringAttr | ir.FloatAttr
    settings: ir.DictAttr


class IdealAttr(_Attribute, name="ideal"):
    """In place of a converter: none."""

    __annotations__ = {}


class DeviceAttr(_Attribute, name="device"):
    """The devices that a weight is written into: kind and settings, as in a target's JSON."""

    kind: ir.StringAttr
    settings: ir.DictAttr


class MappingAttr(_Attribute, name="mapping"):
    """Where a layer's weight lies: layer (one use of it), tile array, and further settings.

    Needed settings: ``col_bounds`` (boundaries of the column blocks over a group's outputs),
    ``first_tile``, ``tile_rows``, ``tile_cols``. ``columns_per_weight`` is 1 if not given.
    """

    layer: ir.StringAttr
    array: ir.StringAttr
    settings: ir.DictAttr
