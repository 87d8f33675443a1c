"""Reading a weight the physical way: one input line after the other, through the converters."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from . import kernels
from .converters import Converter
from .kernels import Ranges
from .mvm import DenseMVM
from .noise import NoiseKey, sub_key
from .reference import flat_weight
from .spec import LayerSpec
from .tiles import Programmed, join


def read(tiles: Programmed, shape: torch.Size, spec: LayerSpec, key: NoiseKey | None) -> Tensor:
    """Weight of ``shape`` as seen by driving every input line alone at full scale.

    The DAC gives its last code, which is exact. The ADC, of the layer's resolution, has for each
    row block the range of a reader that tries its gains: the largest weight of the block, plus
    four sigma of the noise. So the error is at most half an ADC step, plus the noise.

    Args:
        tiles: what is programmed.
        shape: of the weight.
        spec: settings of the layer.
        key: of output noise and the devices' read noise; None leaves both out.
    """
    matrix = flat_weight(tiles, shape, spec)
    if key is not None and tiles.read_variance is not None:
        noisy = sub_key(key, "devices").normal(matrix.shape, matrix.dtype, matrix.device)
        matrix = noisy.mul_(_variance(tiles, shape, spec).sqrt_()).add_(matrix)
    noise = 0.0 if key is None else spec.output_noise
    columns = []
    for r, (start, stop) in enumerate(spec.blocks):
        block = matrix[:, start:stop].contiguous()
        rows = stop - start
        line = dataclasses.replace(
            spec,
            rows=(0, rows),
            dac=None if spec.dac is None else Converter(spec.dac.bits, 1.0),
            output_noise=noise,
        )
        peak = block.abs().max() + 4 * noise
        ranges = Ranges(torch.ones_like(peak)[None], torch.where(peak > 0, peak, 1.0)[None])
        drawn = sub_key(key, f"block{r}") if key else None
        drives = torch.eye(rows, dtype=block.dtype, device=block.device)
        held = Programmed((block,), tiles.scale)
        y, _ = kernels.forward(DenseMVM(line), drives, held, None, ranges, line, drawn)
        columns.append(y.mT)
    return torch.cat(columns, dim=1).view(shape)


def _variance(tiles: Programmed, shape: torch.Size, spec: LayerSpec) -> Tensor:
    """Variance of one read of the effective weight, ``[N, K]``: of all slices."""
    assert tiles.read_variance is not None, "the devices have read noise"
    parts = [
        join(part, shape, spec) * c**2
        for part, c in zip(tiles.read_variance, tiles.significances, strict=True)
    ]
    return torch.stack(parts).sum(0)
