"""The gradient of a layer whose weight is packed: torch's products, native passes between them.

``kernels.backward`` defines what is computed. Here the weight scale is folded into the weight and
the DAC's unit into its codes, so that each product has nothing around it but the masks.

One product serves all row blocks: it takes the outputs that clipped in none of them. What clipped
in some blocks only, one output in thousands, is added by itself (``mixed.cpp``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spec import LayerSpec
from . import conv_backward
from .gradients import (
    add_mixed,
    clip_gradient,
    drive,
    mask_blocks,
    mask_gradient,
    parts_of,
    prepare,
)
from .layer import Packed, ready, sizes
from .tensors import new

Found = tuple[Tensor | None, Tensor | None]

_UNPACKED = 1 << 19
"""Weights that a thread unpacks at a time: what it multiplies stays in a second-level cache."""


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
    full = None if input_range is None else ready(input_range, len(packed.rows) - 1)
    if packed.taps:
        return conv_backward.backward(
            grad, x, packed, alpha, mask, full, spec, geometry, need_input, need_weight
        )
    n, k = packed.shape
    flat, out = x.reshape(-1, k).contiguous(), grad.reshape(-1, n).contiguous()
    levels = spec.dac.levels if spec.dac else 0
    if len(packed.rows) == 2 and n * k <= _UNPACKED:
        grad_x, grad_w = _small(
            out, flat, packed, alpha, mask, full, levels, need_input, need_weight
        )
        return None if grad_x is None else grad_x.view(x.shape), grad_w
    masks = None if mask is None else mask.reshape(len(mask), *out.shape).contiguous()
    grad_x = grad_w = None
    if need_input:
        grad_x = _of_input(out, flat, packed, alpha, masks, full, spec).view(x.shape)
    if need_weight:
        driven = drive(flat, full, levels, parts_of(packed.rows)[0]) if levels else flat
        grad_w = _of_weight(out, flat, driven, packed, masks, full, spec)
    return grad_x, grad_w


def _small(
    grad: Tensor,
    x: Tensor,
    packed: Packed,
    alpha: Tensor,
    mask: Tensor | None,
    input_range: Tensor | None,
    levels: int,
    need_input: bool,
    need_weight: bool,
) -> Found:
    """Two GEMMs, and before them one call for all that they take.

    After a GEMM, each small step finds the caches cold and takes up to 30 us.
    """
    if mask is not None:
        mask = mask.contiguous()
    passed, driven, rows = prepare(
        grad, x, packed, alpha, mask, input_range, levels, need_input, need_weight
    )
    turned = passed.mT
    grad_x = None if rows is None else torch.mm(passed, rows.mT)
    grad_w = torch.mm(turned, driven) if need_weight else None
    if grad_x is not None and input_range is not None:
        clip_gradient(grad_x, x, input_range, grad_x)
    return grad_x, grad_w


def _of_input(
    grad: Tensor,
    x: Tensor,
    packed: Packed,
    alpha: Tensor,
    masks: Tensor | None,
    input_range: Tensor | None,
    spec: LayerSpec,
) -> Tensor:
    """A GEMM for each few rows of the weight: each is of one row block and its mask."""
    memory = new(_rows_at_once(packed), packed.shape[0])
    passed = grad if masks is None else torch.empty_like(grad)
    grad_x = torch.empty_like(x)
    for r, (a, b) in enumerate(spec.blocks):
        if masks is not None:
            mask_gradient(grad, masks[r], passed)
        for first in range(a, b, len(memory)):
            rows = packed.rows_scaled(alpha, r, first - a, memory)
            torch.mm(passed, rows.mT, out=grad_x[:, first : first + len(rows)])
    if input_range is not None:
        clip_gradient(grad_x, x, input_range, grad_x, parts_of(packed.rows)[1])
    return grad_x


def _rows_at_once(packed: Packed) -> int:
    # Rows of the weight are unpacked into the same memory again and again: what they are
    # multiplied from stays in cache, and fresh pages would cost more than it.
    most = max(b - a for a, b in zip(packed.rows, packed.rows[1:], strict=False))
    fit = max(_UNPACKED * torch.get_num_threads() // packed.shape[0], 64) // 2 * 2
    return min(most, fit)


def _of_weight(
    grad: Tensor,
    x: Tensor,
    driven: Tensor,
    packed: Packed,
    masks: Tensor | None,
    input_range: Tensor | None,
    spec: LayerSpec,
) -> Tensor:
    found = new(*packed.shape)
    joined = None if masks is None else mask_blocks(grad, masks)
    if masks is None or joined is not None:
        torch.mm((grad if joined is None else joined[0]).mT, driven, out=found)
        if joined is not None and masks is not None and joined[1].numel():
            add_mixed(
                sizes(packed, spec, x, False, ((), (), ())), x, input_range, masks, grad, joined[1],
                None, None, found,
            )  # fmt: skip
        return found
    passed = torch.empty_like(grad)
    for r, (a, b) in enumerate(spec.blocks):
        mask_gradient(grad, masks[r], passed)
        torch.mm(passed.mT, driven[:, a:b], out=found[:, a:b])
    return found
