"""What the physical simulation reads of programmed tiles: made once, when it first runs.

Weights of all slices as the columns of one array, the errors of its converters and periphery, and
what the digital side subtracts. The chip's key makes the draws, so they stay when the weight is
written again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .adc import code_count, ramp_thresholds, sar_thresholds
from .converters import Converter
from .noise import NoiseKey, sub_key
from .slicing import Slicing, flips
from .spec import LayerSpec
from .tiles import Programmed, cut

WHOLE = Slicing()


@dataclass(frozen=True, slots=True)
class Stage:
    """Tuples have an item for each row block. C = S N columns in the order group, slice, output."""

    spec: LayerSpec
    groups: int
    slices: int
    columns: int
    """C."""
    weights: tuple[Tensor, ...]
    """As blocks of a layer of C outputs, with gain errors of the DAC and flips in them."""
    variance: tuple[Tensor, ...] | None
    """Of the read noise, for squared inputs."""
    significance: tuple[Tensor, ...]
    """``[C]``: what a full-scale sum of the column adds to a full-scale product."""
    ones: tuple[Tensor, ...] | None
    """Offset coding: one column of ones for each group."""
    common: tuple[Tensor, ...] | None
    """Offset coding: how often the inputs' sum is subtracted from each output, ``[N]``."""
    dac_offset: tuple[Tensor, ...] | None
    """Sums ``[C]`` of the offset errors of full-scale inputs."""
    gain: tuple[Tensor, ...] | None
    """``[C]``: of the ADC, 1 without error."""
    offset: tuple[Tensor, ...] | None
    """``[C]``: of the ADC, as a fraction of its range."""
    thresholds: tuple[Tensor, ...] | None
    """Of a SAR or ramp ADC."""
    droop: tuple[Tensor, ...] | None
    """``[C]``: what the voltage offset leaves of a sum."""
    bend: tuple[Tensor, ...] | None
    """``[C]``: n of the output nonlinearity."""

    def stack(self, values: Tensor) -> Tensor:
        """``[..., S, N]`` values of slices and outputs as ``[..., C]``."""
        return stacked(values, self.groups)


def stage_of(tiles: Programmed, spec: LayerSpec, groups: int) -> Stage:
    """Stage of ``tiles``, kept with them."""
    kept = tiles.prepared
    if (
        isinstance(kept, Stage)
        and kept.groups == groups
        and (kept.spec is spec or kept.spec == spec)
    ):
        return kept
    with torch.no_grad():
        tiles.prepared = made = _make(tiles, spec, groups)
        if tiles.slices is not None and groups == 1 and _are_slices(spec):
            # The same memory: slices are runs of columns.
            runs = [block.unflatten(0, (made.slices, -1)) for block in made.weights]
            tiles.slices = tuple(tuple(run[s] for run in runs) for s in range(made.slices))
    return made


def _are_slices(spec: LayerSpec) -> bool:
    """Whether the columns of a stage are the slices as they were programmed."""
    balanced = (spec.slicing or WHOLE).coding == "balanced"
    return balanced and (spec.dac is None or spec.dac.gain_error == 0)


def stacked(values: Tensor, groups: int) -> Tensor:
    """``[..., S, N]`` as ``[..., C]`` in the order group, slice, output."""
    if values.shape[-2] == 1:
        return values.flatten(-2)
    split: Tensor = values.unflatten(-1, (groups, -1))
    return split.transpose(-3, -2).flatten(-3)


def _stack_blocks(slices: list[Tensor], groups: int) -> Tensor:
    if len(slices) == 1:
        return slices[0]
    if groups == 1:
        return torch.cat(slices)
    return torch.stack([one.unflatten(0, (groups, -1)) for one in slices], 1).flatten(0, 2)


def _make(tiles: Programmed, spec: LayerSpec, groups: int) -> Stage:
    slicing = spec.slicing or WHOLE
    blocks = [list(one) for one in zip(*(tiles.slices or (tiles.blocks,)), strict=True)]
    noise = None
    if tiles.read_variance is not None:
        noise = [list(one) for one in zip(*tiles.read_variance, strict=True)]
    like = blocks[0][0]
    outputs, count = like.shape[0], len(blocks)
    kernel = like.shape[2:]
    inputs = spec.rows[-1]
    shape = torch.Size(
        [outputs, inputs // kernel.numel(), *kernel] if kernel else [outputs, inputs]
    )
    per_group = max(outputs // groups, 1)
    draw = _Draws(tiles.chip, spec, outputs, like)
    scale = like.new_tensor(slicing.significances)[:, None].expand(slicing.slices, outputs)

    def lines(values: Tensor) -> tuple[Tensor, ...]:
        """``[groups, K]`` values of input lines in the form of the blocks."""
        return cut(values.repeat_interleave(per_group, 0), shape, spec.rows)

    offset_coding = slicing.coding == "offset"
    significance, ones, common = [scale * (2 if offset_coding else 1)] * count, None, None
    if offset_coding:
        inside = lines(like.new_ones(groups, inputs))
        ones = tuple(one[::per_group] for one in inside)
        signs = [torch.ones_like(scale)] * count
        if slicing.flip:
            signs = [torch.stack([flips(w.flatten(1)) for w in block]) for block in blocks]
        blocks = [
            [_columns(sign, w) * w for sign, w in zip(signs[r], block, strict=True)]
            for r, block in enumerate(blocks)
        ]
        blocks = [[(w + inside[r]) / 2 for w in block] for r, block in enumerate(blocks)]
        if noise is not None:
            noise = [[v / 4 for v in block] for block in noise]
        significance = [s * sign for s, sign in zip(significance, signs, strict=True)]
        common = tuple((scale * sign).sum(0) for sign in signs)
    dac_offset = None
    dac = spec.dac
    if dac is not None and dac.offset_error > 0:
        offsets = lines(draw.rows("dac-offset", groups, inputs) * dac.offset_error)
        dac_offset = tuple(
            stacked(torch.stack([(w * o).flatten(1).sum(1) for w in block]), groups)
            for block, o in zip(blocks, offsets, strict=True)
        )
    if dac is not None and dac.gain_error > 0:
        gains = lines(1 + draw.rows("dac-gain", groups, inputs) * dac.gain_error)
        blocks = [[w * g for w in block] for block, g in zip(blocks, gains, strict=True)]
        if noise is not None:
            noise = [[v * g**2 for v in block] for block, g in zip(noise, gains, strict=True)]
    adc, periphery = spec.adc, spec.periphery
    gain = offset = droop = bend = None
    if adc is not None and adc.gain_error > 0:
        gain = draw.converters("adc-gain", groups, lambda z: 1 + adc.gain_error * z)
    if adc is not None and adc.offset_error > 0:
        offset = draw.converters("adc-offset", groups, lambda z: adc.offset_error * z)
    if periphery is not None and periphery.voltage_offset > 0:
        std = periphery.voltage_offset
        droop = draw.columns("voltage-offset", groups, lambda z: 1 - (std * z).clamp(min=0))
    if periphery is not None and periphery.nonlinearity > 0:
        n, spread = periphery.nonlinearity, periphery.nonlinearity_spread
        bend = draw.columns("nonlinearity", groups, lambda z: (n * (1 + spread * z)).abs())
    return Stage(
        spec=spec,
        groups=groups,
        slices=slicing.slices,
        columns=slicing.slices * outputs,
        weights=tuple(_stack_blocks(block, groups) for block in blocks),
        variance=None if noise is None else tuple(_stack_blocks(v, groups) for v in noise),
        significance=tuple(stacked(s, groups) for s in significance),
        ones=ones,
        common=common,
        dac_offset=dac_offset,
        gain=gain,
        offset=offset,
        thresholds=None if adc is None else draw.thresholds(adc, groups),
        droop=droop,
        bend=bend,
    )


def _columns(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True, slots=True)
class _Draws:
    """Fixed random numbers of the circuits around one layer's tiles."""

    chip: NoiseKey
    spec: LayerSpec
    outputs: int
    like: Tensor

    def _normal(self, purpose: str, block: int, rows: int, columns: int) -> Tensor:
        key = sub_key(self.chip, purpose)
        return key.matrix(block, rows, columns, self.like.dtype, self.like.device)

    def rows(self, purpose: str, groups: int, inputs: int) -> Tensor:
        """``[groups, K]``."""
        return self._normal(purpose, 0, groups, inputs)

    def columns(
        self, purpose: str, groups: int, of: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        """``[C]`` for each row block."""
        slices = (self.spec.slicing or WHOLE).slices
        return tuple(
            stacked(of(self._normal(purpose, r, slices, self.outputs)), groups)
            for r in range(len(self.spec.blocks))
        )

    def converters(
        self, purpose: str, groups: int, of: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        """``[C]`` for each row block, alike where columns share a converter."""
        owner = self._owners()
        return tuple(
            stacked(of(self._normal(purpose, r, 1, self._count())[0])[owner], groups)
            for r in range(len(self.spec.blocks))
        )

    def _count(self) -> int:
        """Converters of a row block."""
        assert self.spec.adc is not None, "an ADC is shared"
        slices = (self.spec.slicing or WHOLE).slices
        return -(-self.outputs * slices // self.spec.adc.shared_by)

    def _owners(self) -> Tensor:
        """Converter of each column, ``[S, N]``; the slices of one weight are adjacent."""
        assert self.spec.adc is not None, "an ADC is shared"
        slices = (self.spec.slicing or WHOLE).slices
        place = torch.arange(self.outputs * slices, device=self.like.device)
        return (place // self.spec.adc.shared_by).view(self.outputs, slices).mT

    def thresholds(self, adc: Converter, groups: int) -> tuple[Tensor, ...] | None:
        """``[n - 1]`` for each row block (ramp), or ``[C, n - 1]`` (SAR)."""
        if adc.kind == "ideal":
            return None
        blocks = range(len(self.spec.blocks))
        if adc.kind == "ramp":
            steps = code_count(adc) - 1
            return tuple(ramp_thresholds(adc, self._normal("ramp", r, 1, steps)[0]) for r in blocks)
        owner = self._owners()
        order = stacked(owner, groups)
        return tuple(
            sar_thresholds(adc, self._normal("sar", r, self._count(), adc.bits))[order]
            for r in blocks
        )
