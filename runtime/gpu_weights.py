"""Programmed weights in the form that the GEMMs of the CUDA path take, chosen by faithfulness.

A tensor core multiplies short numbers and adds them up in 32 bits. So a weight goes as two short
terms, high and low, as two columns of one GEMM:

    int8      linear layers, DAC of at most 8 bits: the two halves of a 16-bit integer. Sums are
              exact integers.
    integer   convolutions of the same: the halves as float32 numbers, for TF32, which has 11 bits.
              Codes and halves have 8, so products are exact, and so are sums below 2^24: all of
              them in blocks of at most 1032 rows.
    tf32      DACs of 9 to 12 bits: the weight's upper 11 bits and the next 11, whose products with
              codes float32 holds exactly: as near as float32 itself.
    float32   inputs without a DAC or with more bits, weights that are not finite: one term, no
              TF32.

The integers are those of ``native/pack.cpp``, so sums of the first two are the CPU's. bf16 is not
used: two terms of 8 bits are as coarse as one 16-bit integer, and torch's convolutions return
bf16, which moves more than one output in ten by an ADC step.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .native.layer import MOST_INT16_ROWS, weight_limit
from .spec import LayerSpec
from .tiles import Programmed

GemmFormat = Literal["int8", "integer", "tf32", "float32"]

TF32_LEVELS = 2**11
"""Largest integer below which TF32 holds all."""
_ROWS_ALIGNED = 16
"""``torch._int_mm`` wants sizes that are multiples of 8; 16 also aligns addresses."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Weights of a layer as the GEMMs take them."""

    format: GemmFormat
    weights: tuple[Tensor, ...]
    """Of each row block. ``int8``: ``[padded K_r, 2 padded N]``, first the high halves of all
    columns, then the low. ``integer`` and ``tf32``: as programmed, but in each group first the high
    terms of all columns, then the low. ``float32``: as programmed."""
    high: float
    """What 1 of a high sum counts in low ones; 0 if there is one term only."""
    step: Tensor | None
    """Weight of one integer step of each column, ``[N]``; None if weights are no integers."""
    rows: Tensor
    """Row block boundaries in K, int32 ``[R + 1]``."""
    starts: tuple[int, ...]
    """The same as the codes are stored: of ``int8`` with every block padded."""
    starts_tensor: Tensor


_PREPARED: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By the first block of a ``Programmed``, which is made anew whenever the weight is programmed."""


def prepared(tiles: Programmed, spec: LayerSpec, groups: int = 1) -> Prepared:
    """The weights of ``tiles``, prepared on the first call."""
    found: Prepared | None = _PREPARED.get(tiles.blocks[0])
    if found is None:
        found = _PREPARED[tiles.blocks[0]] = _prepare(tiles, spec, groups)
    return found


def format_of(tiles: Programmed, spec: LayerSpec) -> GemmFormat:
    """The most faithful of the fast formats that serve a layer."""
    blocks = tiles.blocks
    levels = spec.dac.levels if spec.dac is not None else TF32_LEVELS
    if levels >= TF32_LEVELS or not all(bool(w.isfinite().all()) for w in blocks):
        return "float32"
    if levels > 127 or max(b - a for a, b in spec.blocks) > MOST_INT16_ROWS:
        return "tf32"
    return "int8" if blocks[0].dim() == 2 else "integer"


def _prepare(tiles: Programmed, spec: LayerSpec, groups: int) -> Prepared:
    device = tiles.scale.device
    rows = torch.tensor(spec.rows, dtype=torch.int32, device=device)
    kind = format_of(tiles, spec)
    if kind == "float32":
        return Prepared(kind, tiles.blocks, 0, None, rows, spec.rows, rows)
    if kind == "tf32":
        weights = tuple(_side_by_side(*tf32_terms(w), groups) for w in tiles.blocks)
        return Prepared(kind, weights, 1, None, rows, spec.rows, rows)
    limit = weight_limit(spec.rows)
    step = column_steps(tiles.blocks, limit)
    integers = [_integers(w, step, limit) for w in tiles.blocks]
    if kind == "integer":
        weights = tuple(
            _side_by_side(high.float(), low.float(), groups) for high, low in map(_halves, integers)
        )
        return Prepared(kind, weights, 256, step, rows, spec.rows, rows)
    halves = tuple(map(int8_halves, integers))
    starts = (0, *itertools.accumulate(w.shape[0] for w in halves))
    starts_tensor = torch.tensor(starts, dtype=torch.int32, device=device)
    return Prepared(kind, halves, 256, step, rows, starts, starts_tensor)


def column_steps(blocks: tuple[Tensor, ...], limit: int) -> Tensor:
    """Weight of one integer step of each column, ``[N]``, bit for bit as ``column_step`` in C++."""
    peak = torch.stack([w.flatten(1).abs().amax(1) for w in blocks]).amax(0)
    # A tensor: CUDA multiplies by the reciprocal of a number.
    most = peak.new_full((), limit)
    step = peak / most
    for _ in range(4):  # an ulp or two at most
        step = step * most / most
    tiny = torch.finfo(torch.float32).tiny
    return torch.where(peak > tiny / 2, step.clamp(min=tiny), torch.ones_like(step))


def _integers(weight: Tensor, step: Tensor, limit: int) -> Tensor:
    inverse = (1 / step).view(-1, *[1] * (weight.dim() - 1))
    return (weight * inverse).round_().clamp_(-limit, limit).to(torch.int32)


def _halves(whole: Tensor) -> tuple[Tensor, Tensor]:
    """``(high, low)`` of integers ``256 * high + low``, both 8-bit."""
    low = ((whole + 128) & 255) - 128
    return (whole - low) >> 8, low


def int8_halves(whole: Tensor) -> Tensor:
    """Integers ``[N, K_r]`` as the int8 halves ``[padded K_r, 2 padded N]``.

    In memory a column's weights are neighbours, which is what integer tensor cores read.
    """
    columns, rows = whole.shape
    half = aligned(columns, 8)
    packed = whole.new_zeros((2 * half, aligned(rows, _ROWS_ALIGNED)), dtype=torch.int8)
    packed[:columns, :rows], packed[half : half + columns, :rows] = _halves(whole)
    return packed.mT


def tf32_terms(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Finite float32 numbers as sums of two that TF32 holds, to 22 bits."""
    high = _to_tf32(weight)
    return high, _to_tf32(weight - high)


def _to_tf32(value: Tensor) -> Tensor:
    # Nearest number of 11 bits: half of the last one's place is added, the rest is cut off.
    bits = value.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def _side_by_side(high: Tensor, low: Tensor, groups: int) -> Tensor:
    parts = [term.unflatten(0, (groups, -1)) for term in (high, low)]
    return torch.cat(parts, 1).flatten(0, 1)


def aligned(size: int, to: int) -> int:
    """``size`` rounded up to a multiple of ``to``."""
    return -(-size // to) * to
