"""The simulation of one analog layer on a CUDA device: torch's GEMMs between two kernels of ours.

    DAC -> GEMM of each row block -> noise, ADC and accumulation of all row blocks at once

The numbers are those of the CPU: the same noise, bit for bit, and the same arithmetic after the
GEMM, whose sums are the CPU's own where both have integer weights. ``gpu_weights`` tells in which
form the GEMMs take a weight, and why.

A call captured in a CUDA graph repeats its noise in every replay: the number of the call is part of
what was captured.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from . import cuda_kernels, kernels, philox
from .cuda_kernels import Argument, Kernels
from .gpu_weights import Prepared, aligned, prepared
from .kernels import Ranges
from .mvm import ConvMVM, DenseMVM, Geometry, PatchMVM
from .noise import NoiseKey
from .spec import LayerSpec
from .tiles import Programmed

_SUMS = 64 * 2**20
"""Bytes of partial sums made at a time: little more than an H100's second-level cache."""
_MIN_VECTORS = 32
"""``torch._int_mm`` wants more than 16."""


def forward(
    mvm: Geometry,
    x: Tensor,
    tiles: Programmed,
    bias: Tensor | None,
    ranges: Ranges,
    spec: LayerSpec,
    key: NoiseKey | None,
    want_mask: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As ``kernels.forward``, which it falls back to where CuPy or a driver is missing.

    Also for layers in float64, and for empty inputs.
    """
    found = None
    if tiles.scale.dtype == torch.float32 and x.numel() and tiles.scale.numel():
        found = cuda_kernels.kernels_for(x.device)
    if found is None:
        return kernels.forward(mvm, x, tiles, bias, ranges, spec, key, want_mask)
    layer = _Layer(found, tiles, bias, ranges, spec, key, want_mask and spec.adc is not None)
    wide = x.float()
    if isinstance(mvm, DenseMVM):
        y, mask = layer.dense(wide)
    else:
        assert isinstance(mvm, ConvMVM), "a linear layer or a convolution"
        y, mask = layer.conv(mvm, wide)
    return y.to(x.dtype), mask


@contextmanager
def precision(name: Literal["ieee", "tf32"]) -> Iterator[None]:
    """What torch multiplies float32 numbers in."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = name
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


@dataclass(frozen=True, slots=True)
class _Strides:
    """Where element (vector, column) lies: see ``Strides`` in kernels.cu."""

    image: int
    pixel: int
    group: int
    column: int

    def args(self) -> list[Argument]:
        return [np.int64(s) for s in (self.image, self.pixel, self.group, self.column)]


@dataclass(frozen=True, slots=True)
class _Places:
    """How vectors and columns meet memory."""

    vectors: int
    pixels: int
    """Output pixels of an image; 1 of a linear layer."""
    columns: int
    """Columns that lie ``column`` apart: of one group, or all."""
    sums: _Strides
    y: _Strides
    low: int = 0
    """Elements from a high sum to its low one; 0 if there is one term only."""
    high: float = 0.0
    """What 1 of a high sum counts in low ones."""


def _like(first: Tensor, shape: Sequence[int]) -> Tensor:
    """New memory for ``shape``, channels last if ``first`` is."""
    last = first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last)
    last = last and not first.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=layout)


_EXACT: dict[tuple[object, ...], bool] = {}
"""Whether TF32 served a convolution of these sizes: see ``_convolve``."""
_NEAR = 2.0**-20
"""Error of a sum, of the largest one, that float32 has itself."""


def _convolve(mvm: ConvMVM, codes: Tensor, weight: Tensor, block: int, short: bool) -> Tensor:
    """Partial sums of a row block, by TF32 if its numbers are short enough for that.

    cuDNN may choose an algorithm that multiplies sums of weights or codes, which are longer. So
    the first convolution of its sizes is computed both ways, and TF32 stays only if it was as near
    as float32.
    """
    sizes = (codes.device, codes.shape, codes.stride(), weight.shape, block, *mvm.sizes)
    known = _EXACT.get(sizes) if short else False
    with precision("tf32" if known else "ieee"):
        sums = mvm.multiply(codes, weight, block)
    capturing = codes.is_cuda and torch.cuda.is_current_stream_capturing()
    if known is None and not capturing:  # a graph that is being captured cannot wait for an answer
        with precision("tf32"):
            worst = (mvm.multiply(codes, weight, block) - sums).abs().max()
        if bool(worst.isfinite()):  # inputs that are not tell nothing
            _EXACT[sizes] = bool(worst <= _NEAR * sums.abs().max())
    return sums


@dataclass(frozen=True, slots=True)
class _Layer:
    """One call of a layer."""

    kernels: Kernels
    tiles: Programmed
    bias: Tensor | None
    ranges: Ranges
    spec: LayerSpec
    key: NoiseKey | None
    want_mask: bool

    @property
    def _columns(self) -> int:
        return self.tiles.scale.shape[0]

    @property
    def _blocks(self) -> int:
        return len(self.spec.blocks)

    def dense(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``[..., K]`` to ``[..., N]`` and the mask ``[R, ..., N]``."""
        held = prepared(self.tiles, self.spec)
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        vectors, n = len(flat), self._columns
        y = x.new_empty((vectors, n))
        mask = self._new_mask(y)
        constants = self._constants(held.step)
        integer = held.format == "int8"
        wide = held.weights[0].shape[1 if integer else 0]
        low = wide // 2 if held.high else 0
        # Chunks begin at whole groups of the noise matrix, which span up to 4 rows.
        chunk = max(_MIN_VECTORS, _SUMS // (4 * wide * self._blocks) // 32 * 32)
        kind = "int" if integer else "float"
        for first in range(0, vectors, chunk):
            part = flat[first : first + chunk]
            sums, unit = self._products(part, held, wide)
            where = _Places(
                len(part), 1, n, _Strides(0, wide, 0, 1), _Strides(0, n, 0, 1), low, held.high
            )
            part_mask = None if mask is None else mask[:, first:]
            self._epilogue(kind, sums, unit, constants, y[first:], part_mask, where, first)
        shape = [*x.shape[:-1], n]
        return y.view(shape), None if mask is None else mask.view([self._blocks, *shape])

    def _products(self, x: Tensor, held: Prepared, wide: int) -> tuple[Tensor, Tensor | None]:
        """Partial sums ``[R, at least vectors, wide]`` and units ``[R, vectors]``."""
        vectors, integer = len(x), held.format == "int8"
        padded = max(aligned(vectors, 8), _MIN_VECTORS) if integer else vectors
        kind = torch.int32 if integer else torch.float32
        sums = x.new_empty((self._blocks, padded, wide), dtype=kind)
        unit = None
        if self.spec.dac is None:
            parts = [x[:, a:b] for a, b in self.spec.blocks]
        else:
            codes = x.new_empty(
                padded * held.starts[-1], dtype=torch.int8 if integer else torch.float32
            )
            unit = x.new_empty((self._blocks, vectors))
            self.kernels.launch(
                "analogc_dac_int8" if integer else "analogc_dac_float",
                (-(-vectors // 4), self._blocks),
                (32, 4),
                [x, codes, unit, held.rows, held.starts_tensor, self._input_range(),
                 np.int32(vectors), np.int32(padded), np.float32(self.spec.dac.levels)],
            )  # fmt: skip
            parts = [
                codes[padded * a : padded * b].view(padded, b - a)
                for a, b in itertools.pairwise(held.starts)
            ]
        with precision("tf32" if held.high else "ieee"):
            for part, weight, out in zip(parts, held.weights, sums, strict=True):
                if integer:
                    torch._int_mm(part, weight, out=out)
                else:
                    torch.mm(part, weight.mT, out=out)
        return sums, unit

    def conv(self, mvm: ConvMVM, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``[B, C, *size]`` to ``[B, N, *out]`` and the mask ``[R, *output]``."""
        held = prepared(self.tiles, self.spec, mvm.groups)
        parts, units = [], []
        for r, weight in enumerate(held.weights):
            codes, unit, _ = kernels.drive(mvm, mvm.take(x, r), self.ranges, self.spec, r)
            parts.append(_convolve(mvm, codes, weight, r, bool(held.high)))
            if self.spec.dynamic:
                assert isinstance(unit, Tensor), "a range for each patch"
                units.append(unit.squeeze(-1).mT)
        first = parts[0]
        sums = first[None]
        if len(parts) > 1:
            sums = first.new_empty_strided(
                (len(parts), *first.shape), (first.numel(), *first.stride())
            )
            for part, place in zip(parts, sums, strict=True):
                place.copy_(part)
        terms = 2 if held.high else 1
        columns = self._columns // mvm.groups
        if isinstance(mvm, PatchMVM):
            y = first.new_empty((len(first), self._columns, *mvm.out))
            pixels = first.shape[2]
            batch, group, pixel, column = first.stride()
        else:
            batch, column, pixel = first.flatten(2).stride()
            group, pixels = terms * columns * column, first.shape[2:].numel()
            shape = (len(first), self._columns, *first.shape[2:])
            y = torch.empty_like(first) if terms == 1 else _like(first, shape)
        y_batch, y_column, y_pixel = y.flatten(2).stride()
        where = _Places(
            len(first) * pixels,
            pixels,
            columns,
            _Strides(batch, pixel, group, column),
            _Strides(y_batch, y_pixel, columns * y_column, y_column),
            columns * column if held.high else 0,
            held.high,
        )
        mask = self._new_mask(y)
        unit_of_each = torch.stack(units) if units else None
        constants = self._constants(held.step)
        self._epilogue("map", sums, unit_of_each, constants, y, mask, where)
        return y, mask

    def _new_mask(self, y: Tensor) -> Tensor | None:
        """``[R, *y.shape]``, each row block in the layout of ``y``."""
        if not self.want_mask:
            return None
        shape, strides = (self._blocks, *y.shape), (y.numel(), *y.stride())
        return y.new_empty_strided(shape, strides, dtype=torch.bool)

    def _input_range(self) -> Tensor | None:
        """``[R]``, static only."""
        if self.spec.dac is None or self.spec.dynamic:
            return None
        assert self.ranges.input is not None, "a static input range"
        return self.ranges.input.float().contiguous()

    def _constants(self, step: Tensor | None) -> Tensor:
        """``[3, R, N]``: ADC steps per unit of partial sum, of noise, and gain of an ADC step."""
        spec, ranges, n = self.spec, self.ranges, self._columns
        out = self.tiles.scale.new_empty((3, self._blocks, n))
        dac, adc = spec.dac, spec.adc
        adc_range = None if ranges.adc is None or adc is None else ranges.adc.float().contiguous()
        per_column = adc_range is not None and adc_range.dim() == 2
        self.kernels.launch(
            "analogc_constants",
            (-(-self._blocks * n // 128), 1),
            (128, 1),
            [*out, self.tiles.scale, step, self._input_range(), adc_range,
             np.int32(per_column), np.int32(self._blocks), np.int32(n),
             np.float32(1 if dac is None else dac.levels),
             np.float32(0 if adc is None else adc.levels), np.float32(spec.output_noise)],
        )  # fmt: skip
        return out

    def _epilogue(
        self,
        kind: str,
        sums: Tensor,
        unit: Tensor | None,
        constants: Tensor,
        y: Tensor,
        mask: Tensor | None,
        where: _Places,
        first: int = 0,
    ) -> None:
        """Fill ``y`` and ``mask`` for the vectors from ``first`` on."""
        width = philox.width(self._columns)
        shift = {16: 0, 32: 1}.get(width, 2)
        rows_of_group = 4 >> shift
        key = 0 if self.key is None else self.key.bits
        call = 0 if self.key is None else self.key.counter
        bias = None if self.bias is None else self.bias.float().contiguous()
        adc_levels = 0 if self.spec.adc is None else self.spec.adc.levels
        self.kernels.launch(
            f"analogc_epilogue_{kind}",
            (-(-where.vectors // (8 * rows_of_group)), -(-width // 64)),
            (16, 8),
            [sums, y, mask, *constants, bias, unit, np.int32(self._blocks),
             np.int32(where.vectors), np.int32(self._columns), np.int32(where.pixels),
             np.int32(where.columns), np.int32(shift), np.int32(where.low), np.float32(where.high),
             np.int64(sums.stride(0)), np.int64(0 if mask is None else mask.stride(0)),
             *where.sums.args(), *where.y.args(), np.int64(first // rows_of_group),
             np.float32(adc_levels), np.int32(self.key is not None),
             np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32), np.uint32(call & 0xFFFFFFFF)],
        )  # fmt: skip
