"""Rules of the ``analog`` operations. A broken one is a diagnostic at the operation's location."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

from torch_mlir import ir
from torch_mlir.dialects import ext

from ...runtime.errors import AnalogcError
from ...runtime.spec import LayerSpec
from ...runtime.target import converter_from_dict, device_from_dict
from .attributes import converter_values, device_values, mapping_of, spec_of, to_json
from .kinds import Bool, I64Array


class Broken(Exception):
    """A rule that an operation breaks."""


def checked(rules: Callable[[Any], None]) -> Any:
    """``verify_invariants`` that reports what ``rules`` raise."""

    def verify(op: Any) -> bool:
        try:
            _structure(op)
            rules(op)
        except (Broken, AnalogcError, ValueError, TypeError) as err:
            message = getattr(err, "message", None) or str(err)
            op.location.emit_error(f"'{op.OPERATION_NAME}' op {message}")
            return False
        return True

    return staticmethod(verify)


def require(condition: bool, message: str) -> None:
    """Broken with ``message`` unless ``condition``."""
    if not condition:
        raise Broken(message)


def _structure(op: Any) -> None:
    """What IRDL checks, too, but only after the rules: what is there, and of which kind."""
    fields = {kind: [f for f in op._fields if isinstance(f, kind)] for kind in _FIELDS}
    for field in fields[ext.AttributeDef]:
        require(field.name in op.attributes, f"requires attribute '{field.name}'")
        _check_kind(field, op.attributes[field.name])
    if op._ODS_OPERAND_SEGMENTS:
        _check_segments(op)
    for field in [*fields[ext.OperandDef], *fields[ext.ResultDef]]:
        found = getattr(op, field.name)
        single = field.variadicity.name != "variadic"
        for value in [found] if single else found:
            if value is not None:
                _check_kind(field, value.type)


_FIELDS = (ext.AttributeDef, ext.OperandDef, ext.ResultDef)


def _check_kind(field: Any, found: Any) -> None:
    kinds = get_args(field.constraint) or (field.constraint,)
    # Constraints of our own stand for the class that they derive from.
    known = tuple(kind.__base__ if kind in (Bool, I64Array) else kind for kind in kinds)
    # Texts of types take longer than all checks.
    if not isinstance(found, known):
        raise Broken(f"has {field.name} of a wrong kind: {found}")


def _check_segments(op: Any) -> None:
    sizes = op.attributes["operandSegmentSizes"] if "operandSegmentSizes" in op.attributes else ()
    most = {-1: math.inf, 0: 1, 1: 1}
    limits = op._ODS_OPERAND_SEGMENTS
    good = (
        isinstance(sizes, ir.DenseI32ArrayAttr)
        and len(sizes) == len(limits)
        and sum(sizes) == len(op.operands)
        and all((kind == 1) <= n <= most[kind] for n, kind in zip(sizes, limits, strict=True))
    )
    require(good, f"has {len(op.operands)} operands and operandSegmentSizes {sizes or 'missing'}")


# -- shapes ---------------------------------------------------------------------------------------


def shape_of(value: Any) -> list[int | None]:
    """Sizes of a ranked tensor, None where dynamic."""
    kind = value.type
    return [None if kind.is_dynamic_dim(d) else kind.get_dim_size(d) for d in range(kind.rank)]


def _text(shape: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"


def fits(found: Sequence[int | None], wanted: Sequence[int | None]) -> bool:
    """True if the two shapes can be the same."""
    return len(found) == len(wanted) and all(
        a is None or b is None or a == b for a, b in zip(found, wanted, strict=True)
    )


def _shape(what: str, value: Any, *wanted: Sequence[int | None]) -> None:
    found = shape_of(value)
    expected = " or ".join(map(_text, wanted))
    require(
        any(fits(found, shape) for shape in wanted),
        f"expects {what} of shape {expected}, got {_text(found)}",
    )


def _floats(**values: Any) -> None:
    for name, value in values.items():
        if value is not None:
            kind = value.type.element_type
            if not isinstance(kind, ir.FloatType):
                raise Broken(f"expects {name} of floats, got {kind}")


def _same_element(a: Any, b: Any, what: str) -> None:
    first, second = a.type.element_type, b.type.element_type
    if first != second:
        raise Broken(f"expects {what} of one element type, got {first} and {second}")


def window(size: int | None, taps: int, stride: int, padding: int, dilation: int) -> int | None:
    """Output size of a convolution along one dim."""
    if size is None:
        return None
    return (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1


def _windows(op: Any, size: Sequence[int | None], kernel: Sequence[int]) -> list[int | None]:
    lists = {name: to_json(getattr(op, name)) for name in ("stride", "padding", "dilation")}
    for name, values in lists.items():
        least = 0 if name == "padding" else 1
        good = len(values) == len(kernel) and min(values) >= least
        require(good, f"expects {name} to be {len(kernel)} integers >= {least}, got {values}")
    out = [window(*each) for each in zip(size, kernel, *lists.values(), strict=True)]
    require(
        all(n is None or n >= 0 for n in out),
        f"expects an input of at least the kernel's size, got {_text(size)} for {_text(kernel)}",
    )
    return out


# -- layers ---------------------------------------------------------------------------------------


def _layer(op: Any, inputs: int, outputs: int, groups: int) -> None:
    """Rules that linear layers and convolutions share: K and N of one group."""
    spec, mapping = spec_of(op), mapping_of(op)
    columns = outputs * groups
    _floats(
        x=op.x, weight=op.weight, y=op.y, scale=op.scale, bias=op.bias,
        input_range=op.input_range, adc_range=op.adc_range,
    )  # fmt: skip
    _same_element(op.x, op.y, "x and y")
    require(
        spec.rows[-1] == inputs,
        f"expects row blocks up to the weight's {inputs} rows, got {list(spec.rows)}",
    )
    for name in ("scale", "bias"):
        value = getattr(op, name)
        if value is not None:
            _shape(name, value, [columns])
    blocks = len(spec.blocks)
    static = spec.dac is not None and not spec.dynamic
    for name, wanted, shapes in (
        ("input_range", static, ([blocks],)),
        ("adc_range", spec.adc is not None, _adc_shapes(spec, columns)),
    ):
        value = getattr(op, name)
        reason = {"input_range": "a DAC with a static range", "adc_range": "an ADC"}[name]
        require(
            (value is not None) == wanted,
            f"expects {name} if and only if it has {reason}",
        )
        if value is not None:
            _shape(name, value, *shapes)
    _tiles(mapping.row_bounds, mapping.col_bounds, outputs, mapping)


def _adc_shapes(spec: LayerSpec, columns: int) -> tuple[tuple[int, ...], ...]:
    """Ranges by slice have one shape; others may be given by row block, or by column, too."""
    shape = spec.adc_shape(columns)
    blocks = len(spec.blocks)
    return (shape,) if len(shape) > 2 else ((blocks,), (blocks, columns))


def _tiles(rows: Sequence[int], cols: Sequence[int], outputs: int, mapping: Any) -> None:
    rising = all(a < b for a, b in zip(cols, cols[1:], strict=False))
    require(
        len(cols) >= 2 and cols[0] == 0 and rising and cols[-1] == max(outputs, 1),
        f"expects col_bounds that rise from 0 to {outputs}, got {list(cols)}",
    )
    last = mapping.first_tile + mapping.tiles
    require(
        mapping.first_tile >= 0 and last < 1 << 63,
        f"expects first_tile >= 0 and tile ids of 64 bits, got {mapping.first_tile}",
    )
    for a, b in zip(rows, rows[1:], strict=False):
        _overflow(b - a, 1, mapping.tile_rows, f"row block {a}..{b}", "rows")
    for a, b in zip(cols, cols[1:], strict=False):
        wide = mapping.columns_per_weight
        _overflow(b - a, wide, mapping.tile_cols, f"column block {a}..{b}", "columns")


def _overflow(count: int, width: int, most: int, block: str, unit: str) -> None:
    each = f", {width} each" if width != 1 else ""
    require(
        width >= 1 and count * width <= most,
        f"{block} overflows a tile of {most} {unit}{each}",
    )


@checked
def linear(op: Any) -> None:
    """``x [..., K]``, ``weight [N, K]``, ``y [..., N]``."""
    weight = shape_of(op.weight)
    require(len(weight) == 2, f"expects weight of shape [N, K], got {_text(weight)}")
    outputs, inputs = static_sizes(weight)
    _layer(op, inputs, outputs, 1)
    size = shape_of(op.x)
    require(len(size) >= 1, "expects x of shape [..., K], got a scalar")
    _shape("x", op.x, [*size[:-1], inputs])
    _shape("y", op.y, [*size[:-1], outputs])


@checked
def conv(op: Any) -> None:
    """``x [B, C, *size]``, ``weight [N, C / groups, *kernel]``, ``y [B, N, *out]``."""
    weight = shape_of(op.weight)
    require(3 <= len(weight) <= 5, f"expects a weight [N, C, *kernel], got {_text(weight)}")
    columns, channels, *kernel = static_sizes(weight)
    groups = to_json(op.groups)
    require(
        groups >= 1 and columns % groups == 0,
        f"expects groups that divide the {columns} outputs, got {groups}",
    )
    taps = math.prod(kernel)
    _layer(op, channels * taps, columns // groups, groups)
    size = shape_of(op.x)
    require(len(size) == len(weight), f"expects x of {len(weight)} dims, got {_text(size)}")
    _shape("x", op.x, [size[0], channels * groups, *size[2:]])
    _shape("y", op.y, [size[0], columns, *_windows(op, size[2:], kernel)])


def static_sizes(shape: Sequence[int | None]) -> list[int]:
    """The sizes of a shape that may not be dynamic."""
    sizes = [size for size in shape if size is not None]
    require(len(sizes) == len(shape), f"expects a weight of static shape, got {_text(shape)}")
    return sizes


# -- tiles and converters -------------------------------------------------------------------------


def tile_size(kind: Any) -> tuple[int, int]:
    """Rows and columns of a ``!analog.tile``."""
    return to_json(kind.rows), to_json(kind.cols)


def _converter(op: Any) -> None:
    converter_from_dict(converter_values(op.converter), "converter")


@checked
def scale(op: Any) -> None:
    """``weight [N, ...]``, ``scale [N]``."""
    _floats(weight=op.weight, scale=op.scale)
    kind = to_json(op.weight_scale)
    require(kind in ("column", "tensor"), f"expects weight_scale column or tensor, got {kind!r}")
    weight = static_sizes(shape_of(op.weight))
    require(len(weight) >= 2, "expects weight of shape [N, ...]")
    _shape("scale", op.scale, [weight[0]])
    _same_element(op.weight, op.scale, "weight and scale")


@checked
def program(op: Any) -> None:
    """``weight [N, K]``, ``scale [N]``, a tile of K rows and N columns that is big enough."""
    _floats(weight=op.weight, scale=op.scale)
    weight = static_sizes(shape_of(op.weight))
    require(len(weight) == 2, f"expects weight of shape [N, K], got {_text(weight)}")
    _shape("scale", op.scale, [weight[0]])
    _same_element(op.weight, op.scale, "weight and scale")
    rows, cols = tile_size(op.tile.type)
    require(
        [cols, rows] == weight,
        f"expects a tile of {weight[1]} rows and {weight[0]} columns, got {rows} and {cols}",
    )
    size = to_json(op.size)
    require(isinstance(size, list) and len(size) == 2, f"expects size = rows, cols, got {size}")
    _overflow(rows, 1, size[0], f"a block of {rows} rows", "rows")
    wide = to_json(op.columns_per_weight)
    _overflow(cols, wide, size[1], f"a block of {cols} columns", "columns")
    require(to_json(op.tile_id) >= 0, f"expects tile_id >= 0, got {to_json(op.tile_id)}")
    device_from_dict(device_values(op.device))


@checked
def peak(op: Any) -> None:
    """``x [..., K]``, ``peak [..., 1]``."""
    _floats(x=op.x, peak=op.peak)
    size = shape_of(op.x)
    require(len(size) >= 1, "expects x of shape [..., K], got a scalar")
    _shape("peak", op.peak, [*size[:-1], 1])
    _same_element(op.x, op.peak, "x and peak")


@checked
def dac(op: Any) -> None:
    """``x``, ``range`` a scalar or ``[..., 1]``, ``codes`` like x."""
    _converter(op)
    _floats(x=op.x, range=op.range, codes=op.codes)
    size = shape_of(op.x)
    _shape("range", op.range, [], *([[*size[:-1], 1]] if size else []))
    _shape("codes", op.codes, size)
    _same_element(op.x, op.range, "x and range")
    _same_element(op.x, op.codes, "x and codes")


@checked
def mvm(op: Any) -> None:
    """``codes [..., K]``, a tile of K rows and N columns, ``sums [..., N]``."""
    to_json(op.settings)
    _floats(codes=op.codes, sums=op.sums)
    rows, cols = tile_size(op.tile.type)
    size = shape_of(op.codes)
    require(len(size) >= 1, "expects codes of shape [..., K], got a scalar")
    _shape("codes", op.codes, [*size[:-1], rows])
    _shape("sums", op.sums, [*size[:-1], cols])
    _same_element(op.codes, op.sums, "codes and sums")


@checked
def conv_mvm(op: Any) -> None:
    """``codes [B, C, *size]``, a tile of C · taps rows and N columns, ``sums [B, N, *out]``."""
    to_json(op.settings)
    _floats(codes=op.codes, sums=op.sums)
    kernel = to_json(op.kernel)
    require(
        isinstance(kernel, list) and 1 <= len(kernel) <= 3 and min(kernel) >= 1,
        f"expects kernel to be 1 to 3 integers >= 1, got {kernel}",
    )
    rows, cols = tile_size(op.tile.type)
    taps = math.prod(kernel)
    require(rows % taps == 0, f"expects whole channels of {taps} taps, got a tile of {rows} rows")
    size = shape_of(op.codes)
    require(len(size) == len(kernel) + 2, f"expects codes [B, C, *size], got {_text(size)}")
    _shape("codes", op.codes, [size[0], rows // taps, *size[2:]])
    _shape("sums", op.sums, [size[0], cols, *_windows(op, size[2:], kernel)])
    _same_element(op.codes, op.sums, "codes and sums")


def _axis(op: Any, value: Any) -> int | None:
    """Size of the dim of the columns."""
    size = shape_of(value)
    axis: int = to_json(op.axis)
    require(0 <= axis < len(size), f"expects axis to be a dim of {_text(size)}, got {axis}")
    return size[axis]


@checked
def adc(op: Any) -> None:
    """``sums``, ``range`` a scalar or ``[N]`` along ``axis``, ``levels`` like sums."""
    _converter(op)
    _floats(sums=op.sums, range=op.range, levels=op.levels)
    _shape("range", op.range, [], [_axis(op, op.sums)])
    _shape("levels", op.levels, shape_of(op.sums))
    _same_element(op.sums, op.range, "sums and range")
    _same_element(op.sums, op.levels, "sums and levels")


@checked
def accumulate(op: Any) -> None:
    """``parts`` and ``y`` of one shape, ``units`` none or one for each part, ``scale [N]``."""
    parts, units = list(op.parts), list(op.units)
    require(len(parts) > 0, "expects at least one part")
    require(len(units) in (0, len(parts)), f"expects {len(parts)} units or none, got {len(units)}")
    _floats(y=op.y, scale=op.scale, bias=op.bias)
    size = shape_of(op.y)
    for part in parts:
        _floats(part=part)
        _shape("parts", part, size)
        _same_element(part, op.y, "parts and y")
    for unit in units:
        _floats(unit=unit)
        _shape("units", unit, [], *([[*size[:-1], 1]] if size else []))
        _same_element(unit, op.y, "units and y")
    columns = _axis(op, op.y)
    for name in ("scale", "bias"):
        value = getattr(op, name)
        if value is not None:
            _shape(name, value, [columns])
            _same_element(value, op.y, f"{name} and y")
