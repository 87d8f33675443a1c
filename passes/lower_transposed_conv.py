"""Turn transposed convolutions into one product for each input pixel, and a fold.

    y[o, s p + d t - padding] += sum_c W[c, o, t] x[c, p]     (stride s, dilation d, tap t)

The crossbar holds [C_in, C_out * taps]: every input pixel's channels are one MVM, whose results are
added up where they overlap (``col2im``). The other way, a convolution of the input with zeros
between its pixels and the flipped kernel, would need C_in * taps rows, one MVM for each output
pixel, and would drive most of its rows with zeros: for stride s a share of 1 - 1 / s^dims. Here no
row is driven in vain, and the multiply-accumulates are those of the operator itself.

The product is a convolution with a kernel of one pixel, which leaves the layout as ``col2im`` wants
it and knows groups. ``col2im`` has two spatial dims: one dim is folded as an image of one row,
three in two steps, since the fold is separable.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from .base import STORED, Pass, PassContext, PassResult, finish
from .canonicalize import CONV_OF_DIMS, as_list
from .emit import Emitter
from .select_analog import kept_for
from .stationary import live_nodes, stationary_nodes

aten = torch.ops.aten
_TRANSPOSED = (
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
)  # fmt: skip
Size = int | fx.Node


@dataclass(frozen=True, slots=True)
class LowerTransposedConv(Pass):
    """Rewrite ``conv_transpose{1,2,3}d`` with a stored weight into ``convNd`` and ``col2im``."""

    name: ClassVar[str] = "lower-transposed-conv"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        nodes = [n for n in module.graph.nodes if is_transposed(n)]
        if not nodes:
            return PassResult(module, False)
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        modified = False
        for node in nodes:
            if node in live and node.args[1] in fixed:
                modified |= _lower(node)
        return finish(module, modified)


def is_transposed(node: fx.Node) -> bool:
    """Whether ``node`` is a transposed convolution, of any form."""
    if node.target is aten.convolution.default:
        return bool(node.args[6])
    return node.target in _TRANSPOSED


@dataclass(frozen=True, slots=True)
class Axis:
    """Geometry of one spatial dim."""

    kernel: int
    stride: int
    padding: int
    output_padding: int
    dilation: int

    @property
    def offset(self) -> int:
        """Size of the folded image, less ``stride`` times the input's."""
        size = self.dilation * (self.kernel - 1) + 1 - self.stride
        return size if self.is_cropped else size + self.output_padding - 2 * self.padding

    @property
    def is_cropped(self) -> bool:
        """Whether padding is taken off after the fold: one stride more would be one input more."""
        return self.output_padding >= self.stride


def transposed_groups(node: fx.Node) -> int:
    """Groups of a transposed convolution."""
    return _arguments(node)[3]


def _lower(node: fx.Node) -> bool:
    x, weight, bias, groups, axes = _arguments(node)
    if kept_for(node, weight):
        return False
    emit = Emitter(node, LowerTransposedConv.name)
    dims = len(axes)
    single = x.meta["val"].dim() == dims + 1
    if single:
        x = emit.call(aten.unsqueeze.default, x, 0)
    sizes = [_size(emit, x, 2 + i) for i in range(dims)]
    y = emit.call(CONV_OF_DIMS[dims], x, _pointwise(emit, weight, groups, dims), None,
                  [1] * dims, [0] * dims, [1] * dims, groups)  # fmt: skip
    y = (_fold1d, _fold2d, _fold3d)[dims - 1](emit, y, sizes, axes)
    if bias is not None:
        computed = bias.op != "get_attr"
        for _ in range(dims):
            bias = emit.call(aten.unsqueeze.default, bias, -1)
        y = emit.call(aten.add.Tensor, y, bias)
        if computed:
            y.meta[STORED] = 1
    if single:
        y = emit.call(aten.squeeze.dim, y, 0)
    emit.replace(y)
    return True


def _arguments(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None, int, list[Axis]]:
    if node.target is aten.convolution.default:
        x, weight, bias, stride, padding, dilation, _, output_padding, groups = node.args
    else:
        given = [*node.args, *[None, 1, 0, 0, 1, 1][len(node.args) - 2 :]]
        x, weight, bias, stride, padding, output_padding, groups, dilation = given
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node), "a convolution of tensors"
    assert bias is None or isinstance(bias, fx.Node), "a bias is a tensor"
    assert isinstance(groups, int), "groups is a number"
    kernel = [int(size) for size in weight.meta["val"].shape[2:]]
    lists = (as_list(v, len(kernel)) for v in (stride, padding, output_padding, dilation))
    return x, weight, bias, groups, [Axis(*v) for v in zip(kernel, *lists, strict=True)]


def _pointwise(emit: Emitter, weight: fx.Node, groups: int, dims: int) -> fx.Node:
    """[C_in, C_out / g, *kernel] as [C_out * taps, C_in / g, 1, ...]."""
    if groups == 1:
        weight = emit.call(aten.t.default, emit.call(aten.flatten.using_ints, weight, 1, -1))
    else:
        inputs = int(weight.meta["val"].shape[0]) // groups
        weight = emit.call(aten.flatten.using_ints, weight, 1, -1)
        weight = emit.call(aten.unflatten.int, weight, 0, [groups, inputs])
        weight = emit.call(aten.transpose.int, weight, 1, 2)
        weight = emit.call(aten.flatten.using_ints, weight, 0, 1)
    for _ in range(dims):
        weight = emit.call(aten.unsqueeze.default, weight, -1)
    return weight


# -- sizes that may be symbols --------------------------------------------------------------------


def _size(emit: Emitter, x: fx.Node, dim: int) -> Size:
    size = x.meta["val"].shape[dim]
    return size if isinstance(size, int) else emit.call(aten.sym_size.int, x, dim)


def _scaled(emit: Emitter, size: Size, factor: Size, offset: int = 0) -> Size:
    """``size * factor + offset``."""
    if isinstance(size, int) and isinstance(factor, int):
        return size * factor + offset
    if factor != 1:
        size = emit.call(operator.mul, size, factor)
    return emit.call(operator.add, size, offset) if offset else size


# -- folding --------------------------------------------------------------------------------------


def _fold(emit: Emitter, y: fx.Node, sizes: Sequence[Size], axes: Sequence[Axis]) -> fx.Node:
    """Add up [B, C * taps, H * W] to the image [B, C, H', W']."""
    pairs = zip(sizes, axes, strict=True)
    outputs = [_scaled(emit, n, a.stride, a.offset) for n, a in pairs]
    lists: list[list[Any]] = [
        [a.kernel for a in axes], [a.dilation for a in axes],
        [0 if a.is_cropped else a.padding for a in axes], [a.stride for a in axes],
    ]  # fmt: skip
    return emit.call(aten.col2im.default, y, outputs, *lists)


def _crop(emit: Emitter, y: fx.Node, axes: Sequence[Axis]) -> fx.Node:
    """Take the padding off where the fold could not, and put the output padding on."""
    more: list[int] = []
    for dim, axis in enumerate(axes, start=2):
        start, end = axis.padding, axis.output_padding - axis.padding
        if axis.is_cropped and (start > 0 or end < 0):
            y = emit.call(aten.slice.Tensor, y, dim, start, end if end < 0 else sys.maxsize)
        more = [0, max(end, 0) if axis.is_cropped else 0, *more]
    return emit.call(aten.constant_pad_nd.default, y, more) if any(more) else y


_POINT = Axis(1, 1, 0, 0, 1)


def _fold1d(emit: Emitter, y: fx.Node, sizes: Sequence[Size], axes: Sequence[Axis]) -> fx.Node:
    y = _fold(emit, y, [1, sizes[0]], [_POINT, axes[0]])
    return _crop(emit, emit.call(aten.squeeze.dim, y, 2), axes)


def _fold2d(emit: Emitter, y: fx.Node, sizes: Sequence[Size], axes: Sequence[Axis]) -> fx.Node:
    y = emit.call(aten.flatten.using_ints, y, 2, 3)
    return _crop(emit, _fold(emit, y, sizes, axes), axes)


def _fold3d(emit: Emitter, y: fx.Node, sizes: Sequence[Size], axes: Sequence[Axis]) -> fx.Node:
    """Height and width of each slice first, then depth, with the pixels of a slice in a row."""
    y = emit.call(aten.transpose.int, y, 1, 2)
    y = emit.call(aten.flatten.using_ints, y, 3, 4)
    slices = emit.call(aten.flatten.using_ints, y, 0, 1)
    slices = _fold(emit, slices, sizes[1:], axes[1:])
    height, width = _size(emit, slices, 2), _size(emit, slices, 3)
    y = emit.call(aten.flatten.using_ints, slices, 2, 3)
    y = emit.call(aten.unflatten.int, y, 0, [-1, sizes[0]])
    y = emit.call(aten.transpose.int, y, 1, 2)
    y = emit.call(aten.flatten.using_ints, y, 2, 3)
    y = _fold(emit, y, [sizes[0], _scaled(emit, height, width)], [axes[0], _POINT])
    y = emit.call(aten.unflatten.int, y, 3, [height, width])
    return _crop(emit, y, axes)
