"""Take layers apart into tiles and converters: one ``analog.program`` for each tile.

    linear   for each row block dac; for each of its column blocks program, mvm, adc;
             for each column block accumulate; the column blocks side by side
    conv     the same for each group. If every row block is whole channels, a block is a
             convolution (conv_mvm) of that slice of channels. If not, or if each patch has a range
             of its own (a dynamic DAC), the patches are built first (im2col) and multiplied (mvm).

Cutting, padding, patches and joining are digital: tensor and linalg operations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch_mlir import ir

from ....runtime.mapping import TileMapping
from ....runtime.spec import LayerSpec
from .. import arithmetic, build
from ..attributes import from_json, i64, mapping_of, spec_of, to_json
from ..build import Value
from ..dialect import (
    AccumulateOp,
    AdcOp,
    ConvMvmOp,
    ConvOp,
    DacOp,
    LinearOp,
    MvmOp,
    PeakOp,
    ProgramOp,
    ScaleOp,
    TileType,
)
from ..window import Window
from .base import MlirPass, operands, operations, replaced, unsupported


@dataclass(frozen=True, slots=True)
class SplitToTiles(MlirPass):
    """Layers to tiles, as their mapping says."""

    name: ClassVar[str] = "split-to-tiles"

    def __call__(self, module: Any) -> None:
        """Split all layers of ``module``."""
        split_to_tiles(module)


def split_to_tiles(module: Any) -> None:
    """Split all layers of ``module``, in place.

    Raises:
        UnsupportedError: one does more than convert, multiply, convert, once for each tile; the
            module is as it was.
    """
    found = operations(module, LinearOp, ConvOp)
    for op in found:
        _check(op)
    for op in found:
        with build.before(op):
            value = _linear(op) if isinstance(op, LinearOp) else _conv(op)
            value = arithmetic.cast(value, build.element(op.x))
        replaced(op, value)


def _check(op: Any) -> None:
    spec = spec_of(op)
    if spec.slicing is not None:
        raise unsupported(op, "slicing, several conversions of one column,", "tiles")
    if spec.managed:
        raise unsupported(op, "adc: bound_management, which multiplies again,", "tiles")


Multiply = Callable[[Value, Value], Value]


@dataclass(slots=True)
class _Layer:
    """A layer's operands in the float type of the simulation, its weight as a matrix ``[N, K]``."""

    op: Any
    spec: LayerSpec
    mapping: TileMapping
    operands: dict[str, Any]
    matrix: Value
    scale: Value
    written: bool

    @classmethod
    def of(cls, op: Any) -> _Layer:
        spec = spec_of(op)
        kind = arithmetic.compute_type(op.weight)
        held = operands(op, kind)
        weight, scale = held["weight"], held["scale"]
        written = scale is not None
        if scale is None and spec.is_ideal:
            # Ideal tiles hold the weight itself.
            scale, written = build.filled([build.dim(weight, 0)], kind, 1.0), True
        elif scale is None:
            shape = build.tensor_type([build.dim(weight, 0)], kind)
            scale = ScaleOp(weight, op.weight_scale, shape).scale
        matrix = build.flattened(weight, 1, build.rank(weight) - 1)
        return cls(op, spec, mapping_of(op), held, matrix, scale, written)

    @property
    def x(self) -> Value:
        """The layer's input."""
        return self.operands["x"]

    @property
    def kind(self) -> Any:
        """Float type of the simulation."""
        return build.element(self.matrix)

    def run(self, group: int, part: Callable[[int], Value], multiply: Multiply, axis: int) -> Value:
        """All tiles of one group: outputs with the columns along ``axis``.

        Args:
            group: number of the group.
            part: what a row block is driven with.
            multiply: codes and tile to partial sums.
            axis: dim of the columns in partial sums.
        """
        mapping, spec = self.mapping, self.spec
        columns = list(itertools.pairwise(mapping.col_bounds))
        sums: list[list[Value]] = [[] for _ in columns]
        units: list[Value] = []
        for r, rows in enumerate(spec.blocks):
            codes = part(r)
            if spec.dac is not None:
                full = self._input_range(codes, r)
                units.append(full)
                codes = DacOp(codes, full, self.op.dac, codes.type).codes
            for c, cols in enumerate(columns):
                found = multiply(codes, self._tile(group, r, c, rows, cols))
                sums[c].append(self._converted(found, r, self._columns(group, cols), axis))
        bias = self.operands["bias"]
        outputs = []
        for parts, cols in zip(sums, columns, strict=True):
            span = {0: self._columns(group, cols)}
            outputs.append(
                AccumulateOp(
                    parts,
                    units,
                    build.cut(self.scale, span),
                    i64(axis),
                    parts[0].type,
                    bias=None if bias is None else build.cut(bias, span),
                ).y
            )
        return build.joined(outputs, axis)

    def _columns(self, group: int, cols: tuple[int, int]) -> tuple[int, int]:
        start = group * self.mapping.out_features
        return start + cols[0], start + cols[1]

    def _input_range(self, part: Value, block: int) -> Value:
        if self.spec.dynamic:
            shape = build.tensor_type([*_shape(part)[:-1], 1], self.kind)
            return PeakOp(part, shape).peak
        return build.cut(self.operands["input_range"], {0: (block, block + 1)}, drop=[0])

    def _converted(self, sums: Value, block: int, cols: tuple[int, int], axis: int) -> Value:
        if self.spec.adc is None:
            return sums
        limit = self.operands["adc_range"]
        each = {1: cols} if build.rank(limit) == 2 else {}
        full = build.cut(limit, {0: (block, block + 1), **each}, drop=[0])
        return AdcOp(sums, full, self.op.adc, i64(axis), sums.type).levels

    def _tile(
        self, group: int, r: int, c: int, rows: tuple[int, int], cols: tuple[int, int]
    ) -> Value:
        mapping = self.mapping
        high, wide = mapping.grid
        span = self._columns(group, cols)
        return ProgramOp(
            build.cut(self.matrix, {0: span, 1: rows}),
            build.cut(self.scale, {0: span}),
            from_json(mapping.array),
            i64(mapping.first_tile + (group * high + r) * wide + c),
            from_json([mapping.tile_rows, mapping.tile_cols]),
            i64(mapping.columns_per_weight),
            self.op.device,
            # The bindings take a false BoolAttr for a missing one.
            ir.IntegerAttr.get(ir.IntegerType.get_signless(1), int(self.written)),
            TileType.get(i64(rows[1] - rows[0]), i64(cols[1] - cols[0])),
        ).tile

    def product(self, codes: Value, tile: Value) -> Value:
        """Partial sums of vectors."""
        columns = to_json(tile.type.cols)
        shape = build.tensor_type([*_shape(codes)[:-1], columns], self.kind)
        return MvmOp(codes, tile, self.op.settings, shape).sums


def _shape(x: Value) -> list[int | None]:
    kind = x.type
    return [None if kind.is_dynamic_dim(d) else kind.get_dim_size(d) for d in range(kind.rank)]


def _linear(op: Any) -> Value:
    layer = _Layer.of(op)
    last = build.rank(op.x) - 1
    return layer.run(
        0, lambda r: build.cut(layer.x, {last: layer.spec.blocks[r]}), layer.product, last
    )


def _conv(op: Any) -> Value:
    layer = _Layer.of(op)
    _, channels, *kernel = build.sizes(op.weight)
    window = Window.of(op, kernel)
    taps = math.prod(kernel)
    aligned = all(bound % taps == 0 for bound in layer.spec.rows)
    run = _by_channels if aligned and not layer.spec.dynamic else _by_patches
    groups = [
        run(layer, window, build.cut(layer.x, {1: (g * channels, (g + 1) * channels)}), g)
        for g in range(layer.mapping.groups)
    ]
    return build.joined(groups, 1)


def _by_channels(layer: _Layer, window: Window, x: Value, group: int) -> Value:
    taps = math.prod(window.kernel)

    def part(r: int) -> Value:
        start, stop = layer.spec.blocks[r]
        return build.cut(x, {1: (start // taps, stop // taps)})

    def multiply(codes: Value, tile: Value) -> Value:
        batch, _, *size = _shape(layer.op.y)
        shape = build.tensor_type([batch, to_json(tile.type.cols), *size], layer.kind)
        op = layer.op
        return ConvMvmOp(
            codes,
            tile,
            from_json(list(window.kernel)),
            op.stride,
            op.padding,
            op.dilation,
            op.settings,
            shape,
        ).sums

    return layer.run(group, part, multiply, 1)


def _by_patches(layer: _Layer, window: Window, x: Value, group: int) -> Value:
    patches = window.patches(x)
    last = build.rank(patches) - 1
    y = layer.run(
        group,
        lambda r: build.cut(patches, {last: layer.spec.blocks[r]}),
        layer.product,
        last,
    )
    return build.transpose(y, [0, last, *range(1, last)])
