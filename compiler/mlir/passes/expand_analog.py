"""Replace every ``analog`` operation by linalg, tensor, arith and math that compute the same.

Layers are expanded as they are: a linear layer is one product for each row block, a convolution
stays one for each row block, over the channels that it touches and with zeros at the taps of other
blocks. Only a convolution with a range for each patch (a dynamic DAC) builds im2col.

What one run of a deterministic module cannot say has no expansion: noise of reads and outputs,
slices, other converters; and what changes the content of tiles (devices, cells, wires, clipping,
compensation) where the layer does not bring that content (operand ``scale``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ....runtime.converters import Converter
from ....runtime.devices import Device
from ....runtime.spec import CONTENT, LayerSpec
from ....runtime.target import converter_from_dict, device_from_dict
from .. import arithmetic, build
from ..attributes import (
    converter_values,
    default_settings,
    device_values,
    spec_of,
    to_json,
)
from ..build import Map, Value
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
)
from ..verify import tile_size
from ..window import Window
from .base import MlirPass, operands, operations, replaced, unsupported


@dataclass(frozen=True, slots=True)
class ExpandAnalog(MlirPass):
    """Lower layers, tiles and converters."""

    name: ClassVar[str] = "expand-analog"

    def __call__(self, module: Any) -> None:
        """Expand all operations of ``module``."""
        expand_analog(module)


def expand_analog(module: Any) -> None:
    """Expand all analog operations of ``module``, in place.

    Raises:
        UnsupportedError: one has no expansion; the module is as it was.
    """
    found = operations(module, *_EXPANSIONS)
    for op in found:
        _check(op)
    programs = []
    for op in found:
        if isinstance(op, ProgramOp):
            programs.append(op)
            continue
        with build.before(op):
            value = _EXPANSIONS[type(op)](op)
        replaced(op, value)
    for op in programs:
        op.operation.erase()


# -- what cannot be expanded ----------------------------------------------------------------------


def _check(op: Any) -> None:
    for name in ("dac", "adc", "converter"):
        values = converter_values(getattr(op, name)) if hasattr(op, name) else None
        if values is not None:
            _check_converter(op, name, values)
    if isinstance(op, LinearOp | ConvOp):
        _check_settings(op, op.scale is not None)
        _check_device(op, spec_of(op).device, op.scale is not None)
    if isinstance(op, MvmOp | ConvMvmOp):
        tile = _maker(op.tile)
        if not isinstance(tile, ProgramOp):
            raise unsupported(op, "a tile that is not programmed in the same function")
        _check_settings(op, bool(to_json(tile.written)))
    if isinstance(op, ProgramOp):
        _check_device(op, device_from_dict(device_values(op.device)), bool(to_json(op.written)))
        for use in op.tile.uses:
            if not isinstance(use.owner.opview, MvmOp | ConvMvmOp):
                raise unsupported(op, "a tile that is given away")


def _check_settings(op: Any, written: bool) -> None:
    usual = default_settings()
    for key, value in to_json(op.settings).items():
        plain = key in usual and value == usual[key]
        if not plain and not (written and key in CONTENT):
            raise unsupported(op, f"{key} = {value}")


def _check_converter(op: Any, name: str, values: dict[str, Any]) -> None:
    converter = converter_from_dict(values, name)
    if converter is not None and not converter.is_plain:
        for key, value in values.items():
            if key not in _PLAIN and value != _USUAL[key]:
                raise unsupported(op, f"{name}: {key} = {value}")


_USUAL = dataclasses.asdict(Converter())
_PLAIN = ("bits", "range", "per_column", "learned", "shared_by")
"""Settings of a converter that need no other arithmetic."""


def _check_device(op: Any, device: Device, written: bool) -> None:
    if not written and not device.is_ideal:
        raise unsupported(op, f"writing a weight into {device.kind} devices")
    if device.reads_noisily:
        raise unsupported(op, f"the read noise of {device.kind} devices")


def _maker(value: Value) -> Any:
    owner = value.owner
    return getattr(owner, "opview", None)


# -- layers ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Layer:
    """Operands of a layer in the float type of the simulation."""

    spec: LayerSpec
    x: Value
    weight: Value
    """Normalised content of the devices, in the weight's shape."""
    scale: Value | None
    bias: Value | None
    input_range: Value | None
    adc_range: Value | None
    groups: int = 1

    @classmethod
    def of(cls, op: Any) -> _Layer:
        spec = spec_of(op)
        layer = cls(spec, **operands(op, arithmetic.compute_type(op.weight)))
        if layer.scale is None and not spec.is_ideal:
            layer.scale = arithmetic.scale(layer.weight, spec.weight_scale)
            layer.weight = arithmetic.normalised(layer.weight, layer.scale)
        return layer

    def columns(self, value: Value | None) -> Value | None:
        """``[N]``, or ``[G, N / G]`` with groups."""
        if value is None or self.groups == 1 or build.rank(value) == 0:
            return value
        return build.unflattened(value, 0, [self.groups, build.dim(value, 0) // self.groups])

    def run(self, part: Block, multiply: Multiply, columns: Map) -> Value:
        """All row blocks, accumulated.

        Args:
            part: what a row block is driven with.
            multiply: codes and number of the block to partial sums.
            columns: the partial sums' dims of the columns.
        """
        parts, units = [], []
        for r in range(len(self.spec.blocks)):
            codes, dac, adc = part(r), self.spec.dac, self.spec.adc
            if dac is not None:
                dynamic = self.spec.dynamic
                full = arithmetic.peak(codes) if dynamic else _entry(self.input_range, r)
                codes = arithmetic.dac(codes, full, dac.bits)
                units.append(full)
            sums = multiply(codes, r)
            if adc is not None:
                limit = self.columns(_entry(self.adc_range, r))
                sums = arithmetic.adc(sums, limit, adc.bits, columns)
            parts.append(sums)
        by, bias = self.columns(self.scale), self.columns(self.bias)
        return arithmetic.accumulate(parts, units, by, bias, columns)


Block = Callable[[int], Value]
Multiply = Callable[[Value, int], Value]


def _entry(ranges: Value, block: int) -> Value:
    """Range of one row block: a scalar, or ``[N]``."""
    return build.cut(ranges, {0: (block, block + 1)}, drop=[0])


def _linear(op: Any) -> Value:
    layer = _Layer.of(op)
    blocks = layer.spec.blocks
    x = layer.x
    last = build.rank(x) - 1
    y = layer.run(
        lambda r: build.cut(x, {last: blocks[r]}),
        lambda codes, r: arithmetic.product(codes, build.cut(layer.weight, {1: blocks[r]})),
        [last],
    )
    return arithmetic.cast(y, build.element(op.x))


def _conv(op: Any) -> Value:
    layer = _Layer.of(op)
    layer.groups = to_json(op.groups)
    outputs, channels, *kernel = build.sizes(layer.weight)
    window = Window.of(op, kernel)
    x = layer.x
    if layer.groups > 1:
        x = build.unflattened(x, 1, [layer.groups, channels])
    matrix = build.flattened(layer.weight, 1, 1 + window.dims)
    if layer.groups > 1:
        matrix = build.unflattened(matrix, 0, [layer.groups, outputs // layer.groups])
    y = (_patchwise if layer.spec.dynamic else _blockwise)(layer, window, x, matrix)
    if layer.groups > 1:
        y = build.flattened(y, 1, 2)
    return arithmetic.cast(y, build.element(op.x))


def _blockwise(layer: _Layer, window: Window, x: Value, matrix: Value) -> Value:
    """Each row block a convolution over the channels that it touches."""
    taps = math.prod(window.kernel)
    grouped = [1] if layer.groups > 1 else []
    channel = 1 + len(grouped)

    def span(r: int) -> tuple[int, int]:
        start, stop = layer.spec.blocks[r]
        return start // taps, -(-stop // taps)

    def multiply(codes: Value, r: int) -> Value:
        start, stop = layer.spec.blocks[r]
        first, last = span(r)
        rows = build.cut(matrix, {channel: (start, stop)})
        zeros = [0] * channel
        rows = build.padded(rows, [*zeros, start - first * taps], [*zeros, last * taps - stop])
        return window.convolve(
            codes, build.unflattened(rows, channel, [last - first, *window.kernel])
        )

    return layer.run(lambda r: build.cut(x, {channel: span(r)}), multiply, [*grouped, channel])


def _patchwise(layer: _Layer, window: Window, x: Value, matrix: Value) -> Value:
    """Patches, each with an input range of its own."""
    patches = window.patches(x)
    last = build.rank(patches) - 1
    grouped = [1] if layer.groups > 1 else []
    rows = 1 + len(grouped)

    def multiply(codes: Value, r: int) -> Value:
        part = build.cut(matrix, {rows: layer.spec.blocks[r]})
        extents = [*build.sizes(codes)[:-1], build.dim(part, rows - 1)]
        return build.contract(
            codes, [*range(last), last + 1], part, [*grouped, last, last + 1],
            extents, list(range(last + 1)), last + 2,
        )  # fmt: skip

    y = layer.run(
        lambda r: build.cut(patches, {last: layer.spec.blocks[r]}), multiply, [*grouped, last]
    )
    return build.transpose(y, [*range(rows), last, *range(rows, last)])


# -- tiles and converters -------------------------------------------------------------------------


def _content(tile: Value) -> Value:
    """What a tile holds, ``[N, K]``, built where it is programmed."""
    op = _maker(tile)
    if to_json(op.written):
        return op.weight
    with build.before(op):
        return arithmetic.normalised(op.weight, op.scale)


def _conv_mvm(op: Any) -> Value:
    kernel = to_json(op.kernel)
    rows, _ = tile_size(op.tile.type)
    content = build.unflattened(_content(op.tile), 1, [rows // math.prod(kernel), *kernel])
    return Window.of(op, kernel).convolve(op.codes, content)


def _bits(op: Any) -> int:
    bits: int = to_json(op.converter.bits)
    return bits


_EXPANSIONS: dict[Any, Callable[[Any], Value]] = {
    LinearOp: _linear,
    ConvOp: _conv,
    ScaleOp: lambda op: arithmetic.scale(op.weight, to_json(op.weight_scale)),
    # A tile has no value of its own: its content goes to where it is used.
    ProgramOp: lambda op: op.weight,
    PeakOp: lambda op: arithmetic.peak(op.x),
    DacOp: lambda op: arithmetic.dac(op.x, op.range, _bits(op)),
    MvmOp: lambda op: arithmetic.product(op.codes, _content(op.tile)),
    ConvMvmOp: _conv_mvm,
    AdcOp: lambda op: arithmetic.adc(op.sums, op.range, _bits(op), [to_json(op.axis)]),
    AccumulateOp: lambda op: arithmetic.accumulate(
        list(op.parts), list(op.units), op.scale, op.bias, [to_json(op.axis)]
    ),
}
