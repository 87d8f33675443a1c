"""The gradient of a layer whose weight is packed: torch's products, native passes between them.

``kernels.backward`` defines what is computed. Here the weight scale is folded into the weight and
the DAC's unit into its codes, so that each product has nothing around it but the masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spec import LayerSpec
from .layer import Packed
from .tensors import clip_gradient_, drive, mask_gradient, new

Found = tuple[Tensor | None, Tensor | None]


def serves(packed: Packed, spec: LayerSpec) -> bool:
    """Whether the gradient is computed here: not for a range per patch, nor for split groups."""
    return not packed.taps or not (spec.dynamic or (packed.groups > 1 and len(spec.blocks) > 1))


def backward(
    grad: Tensor,
    x: Tensor,
    packed: Packed,
    alpha: Tensor,
    mask: Tensor | None,
    input_range: Tensor | None,
    spec: LayerSpec,
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
    need_input: bool,
    need_weight: bool,
) -> Found:
    """Gradients of input and weight.

    Args:
        grad: of the output, ``[..., N]`` or ``[B, N, *out]``, float32.
        x: input, ``[..., K]`` or ``[B, C, *size]``, float32.
        packed: the programmed weight.
        alpha: weight scale of each column, ``[N]``.
        mask: ``[R, *output]`` where the ADCs did not clip; None without an ADC.
        input_range: ``[R]``; None if dynamic or without a DAC.
        spec: settings.
        geometry: stride, padding and dilation of a convolution.
        need_input: want the gradient of the input.
        need_weight: want the gradient of the weight, ``[N, K]`` or ``[N, C / groups, *kernel]``.
    """
    layer = _Layer(packed, alpha, mask, input_range, spec, need_input, need_weight)
    return layer.conv(grad, x, geometry) if packed.taps else layer.linear(grad, x)


class _Layer:
    """What all row blocks of one gradient share."""

    def __init__(
        self,
        packed: Packed,
        alpha: Tensor,
        mask: Tensor | None,
        input_range: Tensor | None,
        spec: LayerSpec,
        need_input: bool,
        need_weight: bool,
    ) -> None:
        self.packed, self.alpha, self.mask = packed, alpha, mask
        self.levels = spec.dac.levels if spec.dac else 0
        self.range = None if input_range is None else input_range.float().contiguous()
        self.spec, self.need_input, self.need_weight = spec, need_input, need_weight

    def linear(self, grad: Tensor, x: Tensor) -> Found:
        """GEMMs over all vectors."""
        n, k = self.packed.shape
        flat, out = x.reshape(-1, k).contiguous(), grad.reshape(-1, n).contiguous()
        masks = None if self.mask is None else self.mask.view(-1, *out.shape)
        # One row block of the weight at a time, in the same memory: fresh pages cost more than it.
        most = max(b - a for a, b in self.spec.blocks)
        memory = new(most, n) if self.need_input else None
        grad_x = torch.empty_like(flat) if self.need_input else None
        grad_w = new(n, k) if self.need_weight else None
        for r, (a, b) in enumerate(self.spec.blocks):
            passed = out if masks is None else mask_gradient(out, masks[r])
            if grad_x is not None and memory is not None:
                rows = self.packed.rows_scaled(self.alpha, r, memory)
                torch.mm(passed, rows.mT, out=grad_x[:, a:b])
                if self.range is not None:
                    clip_gradient_(grad_x[:, a:b], flat[:, a:b], self.range[r])
            if grad_w is not None:
                torch.mm(passed.mT, self._drive(flat[:, a:b], r), out=grad_w[:, a:b])
        return None if grad_x is None else grad_x.view(x.shape), grad_w

    def _drive(self, part: Tensor, block: int) -> Tensor:
        if self.levels == 0:
            return part
        return drive(part, None if self.range is None else self.range[block], self.levels)

    def conv(
        self, grad: Tensor, x: Tensor, geometry: tuple[Sequence[int], Sequence[int], Sequence[int]]
    ) -> Found:
        """One convolution's gradient for each row block, over the channels that it touches."""
        n, k = self.packed.shape
        taps = self.packed.taps
        volume = torch.Size(taps).numel()
        weight = self.packed.unpack_scaled(self.alpha).view(n, k // volume, *taps)
        x, grad = _dense(x), _dense(grad)
        single = len(self.spec.blocks) == 1
        grad_x = torch.empty_like(x) if self.need_input and not single else None
        done = 0  # channels that have a gradient: blocks may share one
        grad_w = torch.zeros_like(weight) if self.need_weight and not single else None
        for r, (start, stop) in enumerate(self.spec.blocks):
            first, last = start // volume, -(-stop // volume)
            part = x if single else x[:, first:last]
            block = weight[:, first:last]
            if not single:
                block = block.clone()
                rows = block.view(n, -1)
                rows[:, : start - first * volume] = 0
                rows[:, stop - first * volume :] = 0
            passed = grad if self.mask is None else _masked(grad, self.mask[r])
            found = torch.ops.aten.convolution_backward(
                passed, self._drive_map(part, r), block, None, *geometry, False,
                [0] * len(taps), self.packed.groups, [self.need_input, self.need_weight, False],
            )  # fmt: skip
            if self.need_input and self.range is not None:
                self._clip_map_(found[0], part, r)
            if single:
                return found[0] if self.need_input else None, (
                    found[1] if self.need_weight else None
                )
            if grad_x is not None:
                if first < done:
                    grad_x[:, first:done] += found[0][:, : done - first]
                grad_x[:, done:last] = found[0][:, done - first :]
                done = last
            if grad_w is not None:
                skip = first * volume
                flat = found[1].reshape(n, -1)
                grad_w.view(n, -1)[:, start:stop] += flat[:, start - skip : stop - skip]
        return grad_x, grad_w

    def _drive_map(self, part: Tensor, block: int) -> Tensor:
        if self.levels == 0 or not self.need_weight:
            return part
        driven = self._drive(_rows(part), block)
        return _unrows(driven, part)

    def _clip_map_(self, grad: Tensor, part: Tensor, block: int) -> None:
        assert self.range is not None, "a static input range"
        if grad.stride() == part.stride() or part.shape[0] <= 1:
            clip_gradient_(_rows(grad), _rows(part), self.range[block])
        else:
            grad.mul_(part.abs() <= self.range[block])


def _is_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.shape[1] > 1 and x.stride(1) == 1


def _dense(x: Tensor) -> Tensor:
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _rows(part: Tensor) -> Tensor:
    """A slice of channels of a dense map as a matrix of dense rows."""
    if _is_last(part):
        batch, channels, height, width = part.shape
        return part.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    return part.flatten(1)


def _unrows(rows: Tensor, part: Tensor) -> Tensor:
    if _is_last(part):
        batch, channels, height, width = part.shape
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return rows.view(part.shape)


def _masked(grad: Tensor, mask: Tensor) -> Tensor:
    if grad.stride() == mask.stride():
        return mask_gradient(grad, mask)
    return grad * mask
