"""``backward`` of a convolution: torch's gradients of convolutions, native passes around them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..spec import LayerSpec
from .gradients import (
    Bounds,
    Parts,
    add_mixed,
    clip_gradient,
    clip_turned,
    drive,
    mask_blocks,
    mask_gradient,
    prepare,
    shared_channels,
)
from .layer import Packed, is_last, sizes

Found = tuple[Tensor | None, Tensor | None]
Geometry = tuple[Sequence[int], Sequence[int], Sequence[int]]

_LINE = 16
"""Channels that oneDNN keeps together: what has more of them, and no odd ones, gains nothing by
being channels last."""


def backward(
    grad: Tensor,
    x: Tensor,
    packed: Packed,
    alpha: Tensor,
    mask: Tensor | None,
    input_range: Tensor | None,
    spec: LayerSpec,
    geometry: Geometry,
    need_input: bool,
    need_weight: bool,
) -> Found:
    """Gradients of input and weight; operands as of ``native.backward``."""
    last = is_last(x)
    layer = _Layer(packed, alpha, input_range, spec, geometry, last, need_input, need_weight)
    x, grad = layer.laid(x), layer.laid(grad)
    mask = None if mask is None else layer.laid_masks(mask)
    if len(packed.rows) == 2:
        return layer.single(grad, x, mask)
    layer.weight = layer.shaped(packed.unpack_scaled(alpha))
    return layer.joined(grad, x, mask) or layer.by_block(grad, x, mask)


class _Layer:
    """What the parts of one gradient share; maps are dense, channels last or in planes."""

    weight: Tensor
    """``[N, C / groups, *kernel]``, times the weight scale."""

    def __init__(
        self,
        packed: Packed,
        alpha: Tensor,
        input_range: Tensor | None,
        spec: LayerSpec,
        geometry: Geometry,
        last: bool,
        need_input: bool,
        need_weight: bool,
    ) -> None:
        self.packed, self.spec, self.geometry, self.last = packed, spec, geometry, last
        self.levels = spec.dac.levels if spec.dac else 0
        self.range = input_range if self.levels else None
        self.need_input, self.need_weight = need_input, need_weight
        self.alpha, self.volume = alpha, math.prod(packed.taps)

    def shaped(self, weight: Tensor) -> Tensor:
        """``[N, K]`` as the weight of a convolution."""
        return weight.view(self.packed.shape[0], -1, *self.packed.taps)

    def laid(self, x: Tensor) -> Tensor:
        """The same maps in the layer's layout."""
        layout = torch.channels_last if self.last else torch.contiguous_format
        return x.contiguous(memory_format=layout)

    def laid_masks(self, masks: Tensor) -> Tensor:
        """Masks in the layer's layout, one after the other."""
        if not self.last:
            return masks.contiguous()
        return masks.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)

    def single(self, grad: Tensor, x: Tensor, mask: Tensor | None) -> Found:
        """Of a layer with one row block."""
        passed, driven, weight = prepare(
            grad, x, self.packed, self.alpha, mask, self.range, self.levels, self.need_input,
            self.need_weight, self._turns(x),
        )  # fmt: skip
        assert weight is not None, "a convolution takes it for its sizes at least"
        grad_x, grad_w = self._product(
            passed, driven, self.shaped(weight), self.need_input, self.need_weight
        )
        if grad_x is not None:
            grad_x = self._clipped(grad_x, x, self.range)
        return grad_x, grad_w

    def joined(self, grad: Tensor, x: Tensor, masks: Tensor | None) -> Found | None:
        """Of all row blocks in one.

        None if a channel has rows in three blocks, or too many outputs clipped in some only.
        """
        n, k = self.packed.shape
        cut = _cut(self.packed.rows, self.volume, 1 if self.last else math.prod(x.shape[2:]))
        if cut is None:
            return None
        found = (grad, None) if masks is None else mask_blocks(grad, masks)
        if found is None:
            return None
        passed, mixed = found
        driven = x
        if self.need_weight and self.range is not None:
            driven = self._maps(drive(self._rows(x), self.range, self.levels, cut.driven), x)
        grad_x, grad_w = self._product(
            passed, driven, self.weight, self.need_input, self.need_weight
        )
        if grad_x is not None:
            grad_x = self.laid(grad_x)
        if grad_w is not None:
            grad_w = grad_w.contiguous()
            if cut.shared and self.range is not None:
                self._drive_shared(passed, x, cut, grad_w.view(n, k))
        layer = sizes(self.packed, self.spec, x, self.last, self.geometry)
        if mixed is not None and masks is not None and mixed.numel():
            add_mixed(layer, x, self.range, masks, grad, mixed, self.weight, grad_x, grad_w)
        if grad_x is not None and self.range is not None:
            ranges = torch.minimum(self.range[cut.earlier], self.range[cut.later])
            grad_x = self._clipped(grad_x, x, ranges, cut.clipped)
            if cut.shared:
                shared_channels(layer, x, self.range, masks, grad, self.weight, grad_x)
        return grad_x, grad_w

    def _drive_shared(self, passed: Tensor, x: Tensor, cut: _Cut, grad_w: Tensor) -> None:
        """Rows that the later block has of a shared channel see other codes: their gradient."""
        assert self.range is not None, "without a DAC all blocks see the same"
        codes = drive(self._rows(x), self.range[1:], self.levels, cut.again)
        size = (self.packed.shape[0], len(cut.shared), *self.packed.taps)
        maps = self._maps(codes, x[:, : len(cut.shared)])
        found = self._product(passed, maps, self.weight.new_empty(size), False, True)[1]
        assert found is not None, "the gradient that was asked for"
        found = found.reshape(size[0], -1)
        for i, (channel, start, stop) in enumerate(cut.shared):
            from_ = (i - channel) * self.volume
            grad_w[:, start:stop] = found[:, start + from_ : stop + from_]

    def by_block(self, grad: Tensor, x: Tensor, masks: Tensor | None) -> Found:
        """A convolution's gradient for each row block, over the channels that it touches."""
        n, volume = self.packed.shape[0], self.volume
        grad_x = torch.zeros_like(x) if self.need_input else None
        grad_w = torch.empty_like(self.weight) if self.need_weight else None
        for r, (start, stop) in enumerate(self.spec.blocks):
            first, last = start // volume, -(-stop // volume)
            block = self.weight[:, first:last].contiguous()
            rows = block.view(n, -1)
            rows[:, : start - first * volume] = 0
            rows[:, stop - first * volume :] = 0
            passed = grad if masks is None else mask_gradient(grad, masks[r])
            part = self.laid(x[:, first:last])
            full = None if self.range is None else self.range[r : r + 1]
            driven = part
            if self.need_weight and full is not None:
                driven = self._maps(drive(self._rows(part), full, self.levels), part)
            found = self._product(passed, driven, block, self.need_input, self.need_weight)
            if grad_x is not None and found[0] is not None:
                grad_x[:, first:last] += self._clipped(found[0], part, full)
            if grad_w is not None and found[1] is not None:
                skip = first * volume
                flat = found[1].reshape(n, -1)
                grad_w.view(n, -1)[:, start:stop] = flat[:, start - skip : stop - skip]
        return grad_x, grad_w

    def _turns(self, x: Tensor) -> bool:
        # oneDNN's gradients of few or odd channels and of strides take 0.4 to 0.9 times as long
        # channels last, and the passes around them can turn the maps on their way.
        both = (x.shape[1], self.packed.shape[0])
        return (
            x.dim() == 4
            and not self.last
            and self.packed.groups == 1
            and (max(both) <= _LINE or any(n % _LINE for n in both) or max(self.geometry[0]) > 1)
        )

    def _product(
        self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        found = torch.ops.aten.convolution_backward(
            grad, x, weight, None, *self.geometry, False, [0] * len(self.packed.taps),
            self.packed.groups, [need_x, need_w, False],
        )  # fmt: skip
        return found[0] if need_x else None, found[1] if need_w else None

    def _clipped(
        self, grad: Tensor, x: Tensor, ranges: Tensor | None, bounds: Bounds | None = None
    ) -> Tensor:
        """In the layout of ``x``, zero where the DAC clipped; may be written over ``grad``."""
        if ranges is None:
            return self.laid(grad)
        if not self.last and grad.dim() == 4 and not grad.is_contiguous():
            grad = grad.contiguous(memory_format=torch.channels_last)
            return clip_turned(grad, x, ranges)
        grad = self.laid(grad)
        rows, of_x = self._rows(grad), self._rows(x)
        if bounds is None:  # one range: all that is next to another
            shape = (x.shape[0], math.prod(x.shape[1:]))
            rows, of_x = rows.view(shape), of_x.view(shape)
        clip_gradient(rows, of_x, ranges, rows, bounds)
        return grad

    def _rows(self, x: Tensor) -> Tensor:
        """Dense maps as a matrix of dense rows."""
        return x.permute(0, 2, 3, 1).flatten(0, 2) if self.last else x.flatten(1)

    def _maps(self, rows: Tensor, like: Tensor) -> Tensor:
        """The opposite, of the shape of ``like``."""
        if not self.last:
            return rows.view(like.shape)
        batch, channels, height, width = like.shape
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


class _Cut:
    """Where row blocks meet in the channels of a dense map, whose channels are ``per`` apart."""

    def __init__(self, rows: tuple[int, ...], volume: int, per: int) -> None:
        blocks = list(zip(rows, rows[1:], strict=False))
        spans = [(start // volume, -(-stop // volume)) for start, stop in blocks]
        self.shared = [
            (start // volume, start, min(stop, (start // volume + 1) * volume))
            for start, stop in blocks[1:]
            if start % volume
        ]
        """Channels with rows in two blocks, with the rows that the later one has."""
        owned: list[tuple[int, int, int]] = []
        again: list[tuple[int, int, int]] = []
        blocks_of: list[tuple[int, int]] = []  # first and last of each channel
        for r, (first, stop) in enumerate(spans):
            done = len(blocks_of)
            owned.append((done * per, done * per, (stop - done) * per))
            if r:
                shared = per if first < done else 0
                again.append((first * per, sum(length for *_, length in again), shared))
            blocks_of[first:] = [(earlier, r) for earlier, _ in blocks_of[first:]]
            blocks_of += [(r, r)] * (stop - done)
        self.driven, self.again = Parts(owned), Parts(again)
        """What each block drives first, and what the later of two blocks drives once more."""
        runs = [(pair, len(list(run))) for pair, run in itertools.groupby(blocks_of)]
        edges = itertools.accumulate((length * per for _, length in runs), initial=0)
        self.clipped = Bounds(tuple(edges))
        """Channels of the same blocks, ``earlier`` and ``later``."""
        self.earlier, self.later = (
            torch.tensor(found, device="cpu")
            for found in zip(*(pair for pair, _ in runs), strict=True)
        )


@functools.lru_cache(maxsize=1024)
def _cut(rows: tuple[int, ...], volume: int, per: int) -> _Cut | None:
    """None if a channel has rows in three blocks."""
    if any(b - a < volume for a, b in zip(rows[:-2], rows[1:-1], strict=False)):
        return None
    return _Cut(rows, volume, per)
