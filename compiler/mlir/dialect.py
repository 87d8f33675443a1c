"""Operations of the ``analog`` dialect. Docstrings are what docs/dialect.md prints.

Layers (`linear`, `conv`) are opaque: one operation, settings and mapping as attributes. Tiles and
converters (`scale`, `program`, `peak`, `dac`, `mvm`, `conv_mvm`, `adc`, `accumulate`) are what
`split-to-tiles` takes them apart into. The arithmetic is that of docs/design.md, section 3, and of
``runtime/reference.py``. All operations are pure.
"""

# No `from __future__ import annotations`: the bindings read the annotations as objects.

import sys
from collections.abc import Sequence
from typing import Any, Optional

from torch_mlir import ir
from torch_mlir.dialects.ext import Operand, Pure, Result

from . import verify
from .kinds import (
    Analog,
    Bool,
    ConverterAttr,
    DeviceAttr,
    I64Array,
    IdealAttr,
    MappingAttr,
    TileType,
)

__all__ = [
    "AccumulateOp",
    "AdcOp",
    "Analog",
    "ConvMvmOp",
    "ConvOp",
    "ConverterAttr",
    "DacOp",
    "DeviceAttr",
    "IdealAttr",
    "LAYERS",
    "LinearOp",
    "MappingAttr",
    "MvmOp",
    "PeakOp",
    "ProgramOp",
    "ScaleOp",
    "TileType",
    "irdl_text",
    "load",
]

# A name that mypy takes as a base class.
_Operation: Any = Analog.Operation
_Tensor = ir.RankedTensorType
_Converter = ConverterAttr | IdealAttr


class LinearOp(_Operation, name="linear", traits=[Pure]):
    """One analog linear layer: ``x [..., K]``, ``weight [N, K]``, ``y [..., N]``.

    ``rows``, ``dac``, ``adc``, ``weight_scale``, ``device`` and ``settings`` are the layer's
    LayerSpec. ``scale [N]``: the weight is what the devices hold already, in units of ``scale``;
    without it the weight is programmed. ``input_range [R]``: of a DAC with a static range, one for
    each row block. ``adc_range [R]`` or ``[R, N]``: of an ADC; by slice and pulse
    ``[R, S, pulses]``, and N at the end by column, too. ``bias [N]`` is added digitally.
    """

    x: Operand[_Tensor]
    weight: Operand[_Tensor]
    rows: I64Array
    dac: _Converter
    adc: _Converter
    weight_scale: ir.StringAttr
    device: DeviceAttr
    settings: ir.DictAttr
    mapping: MappingAttr
    y: Result[_Tensor]
    scale: Optional[Operand[_Tensor]] = None  # noqa: UP045 - the bindings know no `| None` here
    bias: Optional[Operand[_Tensor]] = None  # noqa: UP045
    input_range: Optional[Operand[_Tensor]] = None  # noqa: UP045
    adc_range: Optional[Operand[_Tensor]] = None  # noqa: UP045

    verify_invariants = verify.linear


class ConvOp(_Operation, name="conv", traits=[Pure]):
    """One analog convolution, 1-D to 3-D: ``x [B, C, *size]``, ``weight [N, C / groups, *kernel]``.

    The result is ``y [B, N, *out]``. ``stride``, ``padding`` and ``dilation`` have one number for
    each dim of the kernel. The rest is as in ``analog.linear``: K = C / groups · kernel volume.
    """

    x: Operand[_Tensor]
    weight: Operand[_Tensor]
    stride: I64Array
    padding: I64Array
    dilation: I64Array
    groups: ir.IntegerAttr
    rows: I64Array
    dac: _Converter
    adc: _Converter
    weight_scale: ir.StringAttr
    device: DeviceAttr
    settings: ir.DictAttr
    mapping: MappingAttr
    y: Result[_Tensor]
    scale: Optional[Operand[_Tensor]] = None  # noqa: UP045
    bias: Optional[Operand[_Tensor]] = None  # noqa: UP045
    input_range: Optional[Operand[_Tensor]] = None  # noqa: UP045
    adc_range: Optional[Operand[_Tensor]] = None  # noqa: UP045

    verify_invariants = verify.conv


class ScaleOp(_Operation, name="scale", traits=[Pure]):
    """Weight scale ``[N]`` of ``weight [N, ...]``: abs-max of each column, or of the whole tensor.

    1 where that is zero. ``weight_scale`` is ``"column"`` or ``"tensor"``.
    """

    weight: Operand[_Tensor]
    weight_scale: ir.StringAttr
    scale: Result[_Tensor]

    verify_invariants = verify.scale


class ProgramOp(_Operation, name="program", traits=[Pure]):
    """Write a block ``weight [N, K]`` into tile ``tile_id`` of ``array``.

    The tile holds ``weight / scale``, or the weight as it is if ``written``. ``size`` is that of
    the physical tile, rows and columns, and a weight takes ``columns_per_weight`` of its columns.
    """

    weight: Operand[_Tensor]
    scale: Operand[_Tensor]
    array: ir.StringAttr
    tile_id: ir.IntegerAttr
    size: I64Array
    columns_per_weight: ir.IntegerAttr
    device: DeviceAttr
    written: Bool
    tile: Result[TileType]

    verify_invariants = verify.program


class PeakOp(_Operation, name="peak", traits=[Pure]):
    """Abs-max ``[..., 1]`` of each vector of ``x [..., K]``, 1 where that is zero."""

    x: Operand[_Tensor]
    peak: Result[_Tensor]

    verify_invariants = verify.peak


class DacOp(_Operation, name="dac", traits=[Pure]):
    """Convert ``x`` to codes in [-1, 1]: ``2^(bits-1) - 1`` steps a side, half to even.

    ``range``, a scalar or ``[..., 1]``, is the value that code 1 stands for; outside it clips.
    """

    x: Operand[_Tensor]
    range: Operand[_Tensor]
    converter: ConverterAttr
    codes: Result[_Tensor]

    verify_invariants = verify.dac


class MvmOp(_Operation, name="mvm", traits=[Pure]):
    """Partial sums ``[..., N]`` of ``codes [..., K]`` on a tile of K rows and N columns.

    ``settings`` are those of the layer: output noise and what else happens in the tile.
    """

    codes: Operand[_Tensor]
    tile: Operand[TileType]
    settings: ir.DictAttr
    sums: Result[_Tensor]

    verify_invariants = verify.mvm


class ConvMvmOp(_Operation, name="conv_mvm", traits=[Pure]):
    """Partial sums ``[B, N, *out]`` of a feature map ``codes [B, C, *size]`` on one tile.

    The tile's rows are the patches: C channels times the taps of ``kernel``, channel by channel.
    """

    codes: Operand[_Tensor]
    tile: Operand[TileType]
    kernel: I64Array
    stride: I64Array
    padding: I64Array
    dilation: I64Array
    settings: ir.DictAttr
    sums: Result[_Tensor]

    verify_invariants = verify.conv_mvm


class AdcOp(_Operation, name="adc", traits=[Pure]):
    """Convert partial sums to the nearest of ``2^(bits-1) - 1`` levels a side of ``range``.

    ``range`` is a scalar, or ``[N]`` along the dim ``axis``; half to even, outside it clips.
    """

    sums: Operand[_Tensor]
    range: Operand[_Tensor]
    converter: ConverterAttr
    axis: ir.IntegerAttr
    levels: Result[_Tensor]

    verify_invariants = verify.adc


class AccumulateOp(_Operation, name="accumulate", traits=[Pure]):
    """Digital sum ``sum_r parts_r · (units_r · scale) + bias`` over row blocks.

    ``units``: what a code of 1 stands for, a scalar or ``[..., 1]`` for each part; none: 1.
    ``scale [N]`` and ``bias [N]`` lie along the dim ``axis``.
    """

    parts: Sequence[Operand[_Tensor]]
    units: Sequence[Operand[_Tensor]]
    scale: Operand[_Tensor]
    axis: ir.IntegerAttr
    y: Result[_Tensor]
    bias: Optional[Operand[_Tensor]] = None  # noqa: UP045

    verify_invariants = verify.accumulate


LAYERS = ("analog.linear", "analog.conv")


def load(context: Any) -> None:
    """Load the dialect into ``context`` unless it is there."""
    # The bindings import this module for each operation that they meet, until they find it.
    sys.modules.setdefault("torch_mlir.dialects.analog", sys.modules[__name__])
    if not context.is_dialect_loaded(Analog.DIALECT_NAMESPACE):
        with context, ir.Location.unknown():
            Analog.load()


def irdl_text() -> str:
    """The definitions as IRDL, for ``torch-mlir-opt --irdl-file``: structure without verifiers."""
    with ir.Context() as context, ir.Location.unknown():
        load(context)
        return f"{Analog._mlir_module}".rstrip() + "\n"
