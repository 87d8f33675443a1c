"""Builders of linalg, tensor and arith operations at the current insertion point and location.

A size is an int, or an index value where it is dynamic. The dims of an index map are numbers of
loops, ``ZERO``, or affine expressions of the loops.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch_mlir import ir
from torch_mlir.dialects import arith, linalg, tensor

Value = Any
Size = Any
Map = Sequence[Any]
ZERO = -1
"""In an index map: the one index of a dim of size 1."""


@contextlib.contextmanager
def before(op: Any) -> Iterator[None]:
    """Build before ``op``, with its location."""
    with op.operation.context, op.location, ir.InsertionPoint(op):
        yield


def loop(number: int) -> Any:
    """Loop ``number`` as an affine expression."""
    return ir.AffineExpr.get_dim(number)


def element(value: Value) -> Any:
    """Element type of a tensor."""
    return value.type.element_type


def rank(value: Value) -> int:
    """Number of dims of a tensor."""
    found: int = value.type.rank
    return found


def dim(value: Value, number: int) -> Size:
    """Size of one dim."""
    kind = value.type
    if not kind.is_dynamic_dim(number):
        return kind.get_dim_size(number)
    return tensor.DimOp(value, index(number)).result


def sizes(value: Value) -> list[Size]:
    """Sizes of all dims."""
    return [dim(value, number) for number in range(rank(value))]


def index(value: int) -> Value:
    """Constant of type index."""
    return arith.ConstantOp(ir.IndexType.get(), value).result


def number(value: float, kind: Any) -> Value:
    """Constant of a float type."""
    return arith.ConstantOp(kind, float(value)).result


def tensor_type(extents: Sequence[Size], kind: Any) -> Any:
    """Type of a tensor of these sizes."""
    dynamic = ir.ShapedType.get_dynamic_size()
    return ir.RankedTensorType.get([n if isinstance(n, int) else dynamic for n in extents], kind)


def _split(extents: Sequence[Size]) -> tuple[list[Value], list[int]]:
    dynamic = ir.ShapedType.get_dynamic_size()
    values = [n for n in extents if not isinstance(n, int)]
    return values, [n if isinstance(n, int) else dynamic for n in extents]


# -- loops ----------------------------------------------------------------------------------------


def _affine(loops: int, dims: Map) -> Any:
    def expression(each: Any) -> Any:
        if not isinstance(each, int):
            return each
        return ir.AffineExpr.get_constant(0) if each == ZERO else loop(each)

    return ir.AffineMapAttr.get(ir.AffineMap.get(loops, 0, [expression(d) for d in dims]))


def generic(
    inputs: Sequence[Value],
    maps: Sequence[Map],
    out: Value,
    out_map: Map,
    loops: int,
    body: Callable[..., Value],
) -> Value:
    """``linalg.generic``; loops that ``out_map`` lacks are reductions.

    Args:
        inputs: tensors that are read.
        maps: for each its index map.
        out: what the result starts from.
        out_map: index map of the result.
        loops: number of loops.
        body: scalars of the inputs and of the result so far to the scalar of the result.
    """
    kinds = ["parallel" if n in out_map else "reduction" for n in range(loops)]
    op = linalg.GenericOp(
        [out.type],
        list(inputs),
        [out],
        ir.ArrayAttr.get([_affine(loops, each) for each in (*maps, out_map)]),
        ir.ArrayAttr.get([ir.Attribute.parse(f"#linalg.iterator_type<{kind}>") for kind in kinds]),
    )
    scalars = [element(value) for value in (*inputs, out)]
    block = op.regions[0].blocks.append(*scalars, arg_locs=[ir.Location.current] * len(scalars))
    with ir.InsertionPoint(block):
        linalg.YieldOp([body(*block.arguments)])
    return op.results[0]


def pointwise(
    inputs: Sequence[Value],
    maps: Sequence[Map],
    extents: Sequence[Size],
    kind: Any,
    body: Callable[..., Value],
) -> Value:
    """Tensor of these sizes whose every element is ``body`` of the inputs' elements there."""
    out = tensor.EmptyOp(list(extents), kind).result
    every = range(len(extents))
    return generic(
        inputs, maps, out, list(every), len(extents), lambda *scalars: body(*scalars[:-1])
    )


def filled(extents: Sequence[Size], kind: Any, value: float) -> Value:
    """Tensor that holds ``value`` everywhere."""
    out = tensor.EmptyOp(list(extents), kind).result
    return linalg.fill(number(value, kind), outs=[out])


def contract(
    left: Value, left_map: Map, right: Value, right_map: Map, extents: Sequence[Size], out_map: Map,
    loops: int,
) -> Value:  # fmt: skip
    """Sum of products over the loops that ``out_map`` lacks, in their order, from zero."""
    kind = element(left)
    return generic(
        [left, right],
        [left_map, right_map],
        filled(extents, kind, 0.0),
        out_map,
        loops,
        lambda a, b, total: arith.AddFOp(total, arith.MulFOp(a, b).result).result,
    )


def transpose(x: Value, order: Sequence[int]) -> Value:
    """``x`` with dim ``order[i]`` as dim i."""
    found = sizes(x)
    place = [list(order).index(number) for number in range(len(order))]
    extents = [found[number] for number in order]
    return pointwise([x], [place], extents, element(x), lambda value: value)


# -- views ----------------------------------------------------------------------------------------


def cut(x: Value, dims: dict[int, tuple[int, int]], drop: Sequence[int] = ()) -> Value:
    """Slice: of each dim in ``dims`` its start and stop; a dim of size 1 in ``drop`` goes."""
    extents = sizes(x)
    whole = all(
        isinstance(extents[d], int) and (a, b) == (0, extents[d]) for d, (a, b) in dims.items()
    )
    if whole and not drop:
        return x
    starts = [dims[d][0] if d in dims else 0 for d in range(len(extents))]
    wanted = [dims[d][1] - dims[d][0] if d in dims else n for d, n in enumerate(extents)]
    values, static = _split(wanted)
    kept = [n for d, n in enumerate(wanted) if d not in drop]
    return tensor.ExtractSliceOp(
        tensor_type(kept, element(x)), x, [], values, [], starts, static, [1] * len(starts)
    ).result


def joined(parts: Sequence[Value], axis: int) -> Value:
    """``parts`` side by side along a dim that is static in all of them."""
    if len(parts) == 1:
        return parts[0]
    extents = sizes(parts[0])
    widths = [dim(part, axis) for part in parts]
    extents[axis] = sum(widths)
    total = tensor.EmptyOp(extents, element(parts[0])).result
    start = 0
    for part, width in zip(parts, widths, strict=True):
        starts = [start if d == axis else 0 for d in range(len(extents))]
        values, static = _split([width if d == axis else n for d, n in enumerate(extents)])
        total = tensor.InsertSliceOp(
            part, total, [], values, [], starts, static, [1] * len(starts)
        ).result
        start += width
    return total


def padded(x: Value, low: Sequence[int], high: Sequence[int]) -> Value:
    """``x`` with zeros around it."""
    if not any(low) and not any(high):
        return x
    kind = element(x)
    shape = [
        n + a + b if isinstance(n, int) else n
        for n, a, b in zip(_static(x), low, high, strict=True)
    ]
    zero = number(0.0, kind)
    op = tensor.PadOp(tensor_type(shape, kind), x, [], [], list(low), list(high))
    where = [ir.IndexType.get()] * len(shape)
    block = op.regions[0].blocks.append(*where, arg_locs=[ir.Location.current] * len(where))
    with ir.InsertionPoint(block):
        tensor.YieldOp(zero)
    return op.result


def _static(x: Value) -> list[int | None]:
    kind = x.type
    return [None if kind.is_dynamic_dim(d) else kind.get_dim_size(d) for d in range(kind.rank)]


def fixed(x: Value, shape: Sequence[int | None]) -> Value:
    """``x`` with the sizes that ``shape`` knows in its type."""
    known = [n if m is None else m for n, m in zip(_static(x), shape, strict=True)]
    kind = tensor_type(known, element(x))
    return x if x.type == kind else tensor.CastOp(kind, x).result


def unflattened(x: Value, axis: int, into: Sequence[int]) -> Value:
    """Dim ``axis`` cut into dims of the sizes ``into``."""
    if len(into) == 1:
        return x
    extents = sizes(x)
    shape = [*extents[:axis], *into, *extents[axis + 1 :]]
    values, static = _split(shape)
    groups = _groups(len(shape), axis, len(into))
    return tensor.ExpandShapeOp(tensor_type(shape, element(x)), x, groups, values, static).result


def flattened(x: Value, axis: int, count: int) -> Value:
    """``count`` dims from ``axis`` on as one; they are static."""
    if count == 1:
        return x
    shape = _static(x)
    size = 1
    for each in shape[axis : axis + count]:
        assert each is not None, "flattened dims are static"
        size *= each
    found = [*shape[:axis], size, *shape[axis + count :]]
    kind = tensor_type(found, element(x))
    return tensor.CollapseShapeOp(kind, x, _groups(len(shape), axis, count)).result


def _groups(dims: int, axis: int, count: int) -> Any:
    """Reassociation in which ``count`` dims from ``axis`` on belong together."""
    lists = [
        [d] if d < axis else list(range(axis, axis + count)) if d == axis else [d]
        for d in range(dims)
        if not axis < d < axis + count
    ]
    i64 = ir.IntegerType.get_signless(64)
    return ir.ArrayAttr.get(
        [ir.ArrayAttr.get([ir.IntegerAttr.get(i64, d) for d in each]) for each in lists]
    )
