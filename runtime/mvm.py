"""The matrix-vector multiplication of one row block, for each kind of layer.

A geometry says which inputs a row block takes and how they meet its weights; the simulation around
it (``kernels``) is the same for all. None of them builds im2col, except where each patch has an
input range of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .converters import absmax
from .spec import LayerSpec
from .tiles import channel_span

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Geometry(Protocol):
    """What the simulation asks of a kind of layer."""

    groups: int
    """Arrays side by side: groups of a convolution."""

    def take(self, x: Tensor, block: int) -> Tensor:
        """Part of the input that row block ``block`` is driven with."""
        ...

    def peak(self, part: Tensor) -> Tensor:
        """Abs-max of each input vector, to broadcast against the part and its partial sums."""
        ...

    def multiply(self, part: Tensor, weight: Tensor, block: int) -> Tensor:
        """Partial sums of a row block, in a new tensor."""
        ...

    def columns(self, values: Tensor) -> Tensor:
        """``[N]`` values, shaped to broadcast against partial sums."""
        ...

    def spread(self, matrix: Tensor, sums: torch.Size) -> Tensor:
        """``[rows, N]`` values of all vectors (pixels in NHWC order), as partial sums ``sums``."""
        ...

    def finish(self, y: Tensor) -> Tensor:
        """Accumulated sums in the layout of the layer's output."""
        ...

    def start(self, grad: Tensor) -> Tensor:
        """Gradient of the output in the layout of partial sums: the inverse of ``finish``."""
        ...

    def grad_input(self, grad: Tensor, weight: Tensor, x: Tensor, block: int) -> Tensor:
        """Gradient of ``multiply`` for the part that the block takes of the input ``x``."""
        ...

    def grad_weight(self, grad: Tensor, part: Tensor, like: Tensor, block: int) -> Tensor:
        """Gradient of ``multiply`` for its weight, which has the form of ``like``."""
        ...

    def add_input(self, total: Tensor, part: Tensor, block: int) -> None:
        """Add a block's input gradient to that of the whole input."""
        ...

    def add_weight(self, total: Tensor, part: Tensor, block: int) -> None:
        """Add a block's weight gradient to that of the whole weight."""
        ...

    def vectors(self, part: Tensor) -> int:
        """About how many input vectors there are in a part."""
        ...

    def columns_first(self, sums: Tensor) -> Tensor:
        """View of partial sums, with any dims before theirs, whose first dims are the columns."""
        ...

    def merge(self, sums: Tensor, slices: int) -> Tensor:
        """Sum over the weight slices of partial sums whose columns are (group, slice, output)."""
        ...

    def repeat(self, totals: Tensor, factors: Tensor) -> Tensor:
        """Partial sums of one column for each group, times ``[N]`` factors of that group's."""
        ...


class DenseMVM:
    """Linear layer: x ``[..., K]``, weight ``[N, K]``, partial sums ``[..., N]``."""

    groups = 1

    def __init__(self, spec: LayerSpec) -> None:
        self.blocks = spec.blocks

    def take(self, x: Tensor, block: int) -> Tensor:
        """Slice of the inputs."""
        start, stop = self.blocks[block]
        return x if len(self.blocks) == 1 else x[..., start:stop]

    def peak(self, part: Tensor) -> Tensor:
        """``[..., 1]``."""
        return absmax(part)

    def multiply(self, part: Tensor, weight: Tensor, block: int) -> Tensor:
        """One GEMM over all columns."""
        return F.linear(part, weight)

    def columns(self, values: Tensor) -> Tensor:
        """As they are: columns are the last dim."""
        return values

    def spread(self, matrix: Tensor, sums: torch.Size) -> Tensor:
        """``[..., N]``."""
        return matrix.view(sums)

    def finish(self, y: Tensor) -> Tensor:
        """As it is."""
        return y

    def start(self, grad: Tensor) -> Tensor:
        """As it is."""
        return grad

    def grad_input(self, grad: Tensor, weight: Tensor, x: Tensor, block: int) -> Tensor:
        """``grad @ weight``."""
        return grad @ weight

    def grad_weight(self, grad: Tensor, part: Tensor, like: Tensor, block: int) -> Tensor:
        """``grad^T @ part`` over all vectors."""
        return grad.reshape(-1, grad.shape[-1]).mT @ part.reshape(-1, part.shape[-1])

    def add_input(self, total: Tensor, part: Tensor, block: int) -> None:
        """Blocks do not overlap."""
        start, stop = self.blocks[block]
        total[..., start:stop] += part

    def add_weight(self, total: Tensor, part: Tensor, block: int) -> None:
        """Blocks do not overlap."""
        start, stop = self.blocks[block]
        total[:, start:stop] += part

    def vectors(self, part: Tensor) -> int:
        """All dims but the last."""
        return part.shape[:-1].numel()

    def columns_first(self, sums: Tensor) -> Tensor:
        """``[N, ...]``."""
        return sums.movedim(-1, 0)

    def merge(self, sums: Tensor, slices: int) -> Tensor:
        """``[..., N]``."""
        return sums if slices == 1 else sums.unflatten(-1, (slices, -1)).sum(-2)

    def repeat(self, totals: Tensor, factors: Tensor) -> Tensor:
        """``[..., N]``."""
        return totals * factors


class ConvMVM:
    """Convolution, each row block a convolution over the channels that it touches.

    x ``[B, C, *size]``, weight ``[N, C / groups, *kernel]``, partial sums ``[B, N, *out]``. A row
    block that starts or ends inside a channel has zeros at the taps of its neighbours, so no block
    boundary needs im2col.
    """

    def __init__(
        self,
        spec: LayerSpec,
        weight_shape: torch.Size,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        self.blocks = spec.blocks
        self.channels = weight_shape[1]
        self.taps = weight_shape[2:].numel()
        self.dims = len(weight_shape) - 2
        self.stride, self.padding, self.dilation = list(stride), list(padding), list(dilation)
        self.groups = groups

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Stride, padding, dilation and groups, as a key."""
        return tuple(self.stride), tuple(self.padding), tuple(self.dilation), (self.groups,)

    def _span(self, block: int) -> tuple[int, int]:
        return channel_span(*self.blocks[block], self.taps)

    def take(self, x: Tensor, block: int) -> Tensor:
        """Channels of the block, of every group."""
        first, last = self._span(block)
        if last - first == self.channels:
            return x
        if self.groups == 1:
            return x[:, first:last]
        grouped: Tensor = x.unflatten(1, (self.groups, self.channels))
        return grouped[:, :, first:last].flatten(1, 2)

    def peak(self, part: Tensor) -> Tensor:
        """Not for this geometry: patches overlap, so a range for each needs ``PatchMVM``."""
        raise AssertionError("a range for each patch needs PatchMVM")

    def multiply(self, part: Tensor, weight: Tensor, block: int) -> Tensor:
        """One convolution over all columns."""
        return _CONV[self.dims](
            part, weight, None, self.stride, self.padding, self.dilation, self.groups
        )

    def columns(self, values: Tensor) -> Tensor:
        """``[N, 1, ...]``."""
        return values.view(-1, *[1] * self.dims)

    def spread(self, matrix: Tensor, sums: torch.Size) -> Tensor:
        """``[B, N, *out]``."""
        batch, columns, *out = sums
        return matrix.view(batch, *out, columns).movedim(-1, 1)

    def finish(self, y: Tensor) -> Tensor:
        """As it is."""
        return y

    def start(self, grad: Tensor) -> Tensor:
        """As it is."""
        return grad

    def _backward(
        self, grad: Tensor, part: Tensor, weight: Tensor, mask: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            grad, part, weight, None, self.stride, self.padding, self.dilation,
            False, [0] * self.dims, self.groups, mask,
        )  # fmt: skip
        return found

    def grad_input(self, grad: Tensor, weight: Tensor, x: Tensor, block: int) -> Tensor:
        """Transposed convolution."""
        part = ConvMVM.take(self, x, block)
        return self._backward(grad, part, weight, [True, False, False])[0]

    def grad_weight(self, grad: Tensor, part: Tensor, like: Tensor, block: int) -> Tensor:
        """Correlation of input and gradient."""
        return self._backward(grad, part, like, [False, True, False])[1]

    def add_input(self, total: Tensor, part: Tensor, block: int) -> None:
        """Blocks may share a channel."""
        first, last = self._span(block)
        if self.groups == 1:
            total[:, first:last] += part
        else:
            grouped = total.unflatten(1, (self.groups, self.channels))
            grouped[:, :, first:last] += part.unflatten(1, (self.groups, last - first))

    def add_weight(self, total: Tensor, part: Tensor, block: int) -> None:
        """Taps of neighbouring blocks get nothing."""
        start, stop = self.blocks[block]
        skip = self._span(block)[0] * self.taps
        total.flatten(1)[:, start:stop] += part.flatten(1)[:, start - skip : stop - skip]

    def vectors(self, part: Tensor) -> int:
        """Pixels of the input."""
        return part.shape[0] * part.shape[2:].numel()

    def columns_first(self, sums: Tensor) -> Tensor:
        """``[N, ...]``."""
        return sums.movedim(-1 - self.dims, 0)

    def merge(self, sums: Tensor, slices: int) -> Tensor:
        """``[B, N, *out]``."""
        if slices == 1:
            return sums
        split: Tensor = sums.unflatten(1, (self.groups, slices, -1))
        return split.sum(2).flatten(1, 2)

    def repeat(self, totals: Tensor, factors: Tensor) -> Tensor:
        """``[B, N, *out]``."""
        return totals.repeat_interleave(len(factors) // self.groups, 1) * self.columns(factors)


class PatchMVM(ConvMVM):
    """Convolution whose every patch has an input range of its own: patches are built (im2col).

    A part is ``[B, groups, patches, K_r]``, partial sums ``[B, groups, patches, N / groups]``.
    """

    kernel: tuple[int, ...] = ()
    out: tuple[int, ...] = ()

    def take(self, x: Tensor, block: int) -> Tensor:
        """Patches of the block's channels, cut to its rows."""
        first, last = self._span(block)
        pad = [amount for side in reversed(self.padding) for amount in (side, side)]
        x = F.pad(x, pad).unflatten(1, (self.groups, self.channels))[:, :, first:last]
        self.out = tuple(
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(
                x.shape[3:], self.kernel, self.stride, self.dilation, strict=True
            )
        )
        batch, group, channel, *spatial = x.stride()
        steps = [a * s for a, s in zip(spatial, self.stride, strict=True)]
        taps = [a * d for a, d in zip(spatial, self.dilation, strict=True)]
        patches = x.as_strided(
            [x.shape[0], self.groups, *self.out, last - first, *self.kernel],
            [batch, group, *steps, channel, *taps],
            x.storage_offset(),
        )
        flat = patches.flatten(2 + self.dims).flatten(2, 1 + self.dims)
        return flat[..., self._rows(block)]

    def _rows(self, block: int) -> slice:
        start, stop = self.blocks[block]
        skip = self._span(block)[0] * self.taps
        return slice(start - skip, stop - skip)

    def peak(self, part: Tensor) -> Tensor:
        """``[B, groups, patches, 1]``."""
        return absmax(part)

    def multiply(self, part: Tensor, weight: Tensor, block: int) -> Tensor:
        """One batched GEMM over groups."""
        matrix: Tensor = weight.flatten(1)[:, self._rows(block)].unflatten(0, (self.groups, -1))
        return part @ matrix.mT

    def columns(self, values: Tensor) -> Tensor:
        """``[groups, 1, N / groups]``."""
        return values.view(self.groups, 1, -1)

    def spread(self, matrix: Tensor, sums: torch.Size) -> Tensor:
        """``[B, groups, patches, N / groups]``."""
        batch, groups, patches, columns = sums
        return matrix.view(batch, patches, groups, columns).transpose(1, 2)

    def finish(self, y: Tensor) -> Tensor:
        """``[B, N, *out]``."""
        out: Tensor = y.mT.flatten(1, 2).unflatten(2, self.out)
        return out

    def start(self, grad: Tensor) -> Tensor:
        """``[B, groups, patches, N / groups]``."""
        self.out = tuple(grad.shape[2:])
        grouped: Tensor = grad.flatten(2).unflatten(1, (self.groups, -1))
        return grouped.mT

    def grad_input(self, grad: Tensor, weight: Tensor, x: Tensor, block: int) -> Tensor:
        """Transposed convolution: the adjoint of building patches and multiplying them."""
        return super().grad_input(self.finish(grad), weight, x, block)

    def grad_weight(self, grad: Tensor, part: Tensor, like: Tensor, block: int) -> Tensor:
        """``grad^T @ part`` over all patches, zero at the taps of other blocks."""
        found = torch.zeros_like(like)
        rows = torch.einsum("bgpn,bgpk->gnk", grad, part).flatten(0, 1)
        found.flatten(1)[:, self._rows(block)] = rows
        return found

    def vectors(self, part: Tensor) -> int:
        """Patches."""
        return part.shape[0] * part.shape[2]

    def columns_first(self, sums: Tensor) -> Tensor:
        """``[groups, N / groups, ...]``."""
        return sums.movedim((-3, -1), (0, 1))

    def merge(self, sums: Tensor, slices: int) -> Tensor:
        """``[B, groups, patches, N / groups]``."""
        return sums if slices == 1 else sums.unflatten(-1, (slices, -1)).sum(-2)

    def repeat(self, totals: Tensor, factors: Tensor) -> Tensor:
        """``[B, groups, patches, N / groups]``."""
        return totals * self.columns(factors)


def geometry(
    spec: LayerSpec,
    weight_shape: torch.Size,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Geometry:
    """Geometry of a layer: a linear one if the weight has two dims, else a convolution.

    Patches are built where each has an input range of its own, dynamic or by bound management, and
    where padding is driven as a code that is not zero.
    """
    if len(weight_shape) == 2:
        return DenseMVM(spec)
    no_zero = spec.dac is not None and spec.dac.codes == "offset" and any(padding)
    if not spec.dynamic and not spec.managed and not no_zero:
        return ConvMVM(spec, weight_shape, stride, padding, dilation, groups)
    patches = PatchMVM(spec, weight_shape, stride, padding, dilation, groups)
    patches.kernel = tuple(weight_shape[2:])
    return patches
