"""The simulation of a layer with more than plain converters, in torch operations on any device.

Bit slices of weights and inputs, read noise, periphery, and converters with other codes, random
rounding or errors. One computation over all weight slices s and pulses k of a row block:

    p_sk = d_k W_s^T                 one GEMM (convolution): the pulses are more inputs, the slices
                                     more columns
    v_sk = periphery(p_sk + noise)
    y    = s_r alpha sum_k sum_s e_k c_s adc(v_sk)

Digits stay integers through the GEMM, and every scale is folded into one factor for each sum. Read
noise is exact for devices whose current fluctuates as a Gaussian, independently of each other: then
a column's does, with the variance ``sum_j d_j^2 V_j``, one more GEMM. ``reference_physical`` has
the same in loops.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .adc import find_codes
from .converters import quantise
from .kernels import Ranges
from .mvm import DenseMVM, Geometry
from .noise import NoiseKey, sub_key
from .slicing import pulses_of
from .spec import LayerSpec
from .stage import WHOLE, Stage, stage_of
from .tiles import Programmed

_CHUNK = 1 << 20
"""Sums that are made at a time: few enough for a cache, enough for the GEMM."""
_HALVINGS = 4
"""How often bound management halves an input at most."""


@dataclass(frozen=True, slots=True)
class _Drive:
    """Pulses of a row block."""

    pulses: Tensor
    """``[pulses * B, ...]`` in units of their lowest bit."""
    square: Tensor | None
    """What multiplies the variance of the devices; None without read noise."""
    full: tuple[float, ...]
    """Full scale of each pulse, in those units."""
    significance: tuple[float, ...]
    """What a full-scale pulse adds to a full-scale input."""
    codes: Tensor
    """The code that the pulses make up."""
    steps: float
    """Full scale of the code."""


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
    """As ``kernels.forward``. The mask is true where none of an output's conversions clipped."""
    dtype = tiles.scale.dtype
    wide = x.to(dtype)
    lead = wide.shape[:-1]
    if isinstance(mvm, DenseMVM):
        wide = wide.reshape(-1, wide.shape[-1])
    stage = stage_of(tiles, spec, mvm.groups)
    alpha = mvm.columns(tiles.scale)
    y: Tensor | None = None
    masks: list[Tensor] = []
    for r in range(len(spec.blocks)):
        block = _Block(mvm, stage, ranges, key, r, want_mask and spec.adc is not None)
        sums, unit, inside = block.run(mvm.take(wide, r))
        sums.mul_(unit)
        y = sums if y is None else y.add_(sums)
        if inside is not None:
            masks.append(mvm.finish(inside))
    assert y is not None, "a layer has at least one row block"
    y.mul_(alpha)
    if bias is not None:
        y.add_(mvm.columns(bias.to(dtype)))
    y = mvm.finish(y).to(x.dtype)
    mask = torch.stack(masks) if masks else None
    if isinstance(mvm, DenseMVM):
        y = y.view(*lead, len(tiles.scale))
        mask = None if mask is None else mask.view(len(masks), *y.shape)
    return y, mask


def sums(
    mvm: Geometry, part: Tensor, stage: Stage, input_range: Tensor | None, block: int
) -> Tensor:
    """What the ADC of a row block converts, without noise and periphery: for calibration.

    Args:
        mvm: how inputs meet weights.
        part: what the block takes of the input.
        stage: of the programmed tiles.
        input_range: ``[R]``; None if dynamic or without a DAC.
        block: row block.

    Returns:
        ``[S, pulses, N, vectors]`` in units of a full-scale product.
    """
    one = _Block(mvm, stage, Ranges(input_range, None), None, block, False)
    drive = one.drive(part, one.range(part), None)
    p = mvm.multiply(drive.pulses, stage.weights[block], block)
    p = p.unflatten(0, (len(drive.full), -1))
    p.div_(p.new_tensor(drive.full).view(-1, *[1] * (p.dim() - 1)))
    first = mvm.columns_first(p)
    flat = first.reshape(stage.columns, len(p), -1)
    split: Tensor = flat.unflatten(0, (stage.groups, stage.slices, -1))
    return split.permute(1, 3, 0, 2, 4).flatten(2, 3)


class _Block:
    """One row block of one call."""

    def __init__(
        self,
        mvm: Geometry,
        stage: Stage,
        ranges: Ranges,
        key: NoiseKey | None,
        block: int,
        want_mask: bool,
    ) -> None:
        self.mvm, self.stage, self.ranges, self.spec = mvm, stage, ranges, stage.spec
        self.key, self.r, self.want_mask = key, block, want_mask
        self.slicing = self.spec.slicing or WHOLE
        self.variance = None if stage.variance is None else stage.variance[block]
        self.looks = want_mask or self.spec.managed
        self.rows = self.spec.rows[block + 1] - self.spec.rows[block]

    def run(self, part: Tensor) -> tuple[Tensor, Tensor | float, Tensor | None]:
        """Sums in units of the input range, that range, and where nothing clipped."""
        unit = self.range(part)
        sums, inside = self._pass(part, unit, self.key)
        if not self.spec.managed:
            return sums, unit, inside
        assert inside is not None and self.spec.adc is not None, "managed ADCs look at clipping"
        halve = self.spec.adc.bound_management == "iterative"
        for again in range(1, _HALVINGS + 1 if halve else 2):
            clipped = ~inside.all(-1, keepdim=True)
            if clipped.is_meta or not bool(clipped.any()):
                break
            factor = 2.0**again if halve else self._worst()
            other, within = self._pass(part, unit * factor, _again(self.key, again))
            sums = torch.where(clipped, other.mul_(factor), sums)
            inside = torch.where(clipped, within, inside)  # type: ignore[arg-type]
        return sums, unit, inside if self.want_mask else None

    def _worst(self) -> float:
        """Factor at which the largest sum possible is within all ADC ranges."""
        assert self.ranges.adc is not None, "an ADC has a range"
        return max(1.0, self.rows / float(self.ranges.adc[self.r].min()))

    def range(self, part: Tensor) -> Tensor | float:
        if self.spec.dac is None:
            return 1.0
        if self.spec.dynamic:
            return self.mvm.peak(part)
        assert self.ranges.input is not None, "a static input range"
        return self.ranges.input[self.r].to(part)

    def _pass(
        self, part: Tensor, unit: Tensor | float, key: NoiseKey | None
    ) -> tuple[Tensor, Tensor | None]:
        """Convert the whole part, in chunks where nothing is drawn."""
        rows = part.shape[0]
        size = rows
        if key is None and rows > 1:
            count = self.mvm.vectors(part) * self.stage.columns * self.slicing.pulses
            size = max(1, _CHUNK * rows // max(count, 1))
        if size >= rows:
            return self._convert(part, unit, key)
        found = []
        for start in range(0, rows, size):
            piece = slice(start, start + size)
            scale = unit[piece] if isinstance(unit, Tensor) and unit.dim() else unit
            found.append(self._convert(part[piece], scale, key))
        insides = [inside for _, inside in found if inside is not None]
        return torch.cat([sums for sums, _ in found]), torch.cat(insides) if insides else None

    def _convert(
        self, part: Tensor, unit: Tensor | float, key: NoiseKey | None
    ) -> tuple[Tensor, Tensor | None]:
        mvm, stage, r = self.mvm, self.stage, self.r
        drive = self.drive(part, unit, key)
        full = part.new_tensor(drive.full)[:, None]
        p = mvm.multiply(drive.pulses, stage.weights[r], r).unflatten(0, (len(full), -1))
        if stage.dac_offset is not None:
            p.add_(self._shaped(stage.dac_offset[r] * full))
        if key is not None and (self.variance is not None or self.spec.output_noise > 0):
            self._add_noise(p, drive, full, key)
        span = self._span(part)
        inside = None
        if self.spec.adc is not None or self.spec.periphery is not None:
            steps = 1.0 if self.spec.adc is None else self.spec.adc.full_code
            self._read_out(p, steps / (span * full))
            if self.spec.adc is not None:
                inside = self._digitise(p, key)
            gains = span / steps
        else:
            gains = 1 / full
        gains = gains * stage.significance[r] * part.new_tensor(drive.significance)[:, None]
        y = p[0].mul_(mvm.columns(gains[0]))
        for sums, gain in zip(p[1:], gains[1:], strict=True):
            y.addcmul_(sums, mvm.columns(gain))
        y = mvm.merge(y, stage.slices)
        if stage.common is not None:
            assert stage.ones is not None, "the inputs' sum is subtracted"
            total = mvm.multiply(drive.codes, stage.ones[r], r)
            y.sub_(mvm.repeat(total, stage.common[r] / drive.steps))
        return y, inside

    def drive(self, part: Tensor, unit: Tensor | float, key: NoiseKey | None) -> _Drive:
        dac, slicing = self.spec.dac, self.slicing
        noisy = self.variance is not None
        if dac is None:
            codes = part if isinstance(unit, float) and unit == 1.0 else part / unit
            return _Drive(codes, codes.square() if noisy else None, (1.0,), (1.0,), codes, 1.0)
        uniform = None
        if dac.rounding == "stochastic" and key is not None:  # none while ranges are chosen
            uniform = _uniform(key, "dac", self.r, part)
        codes = quantise(part, torch.as_tensor(unit), dac, uniform)
        steps = dac.full_code
        single = slicing.pulses == 1
        if slicing.input_bits is None or (single and not noisy):
            square = codes.square() if noisy else None
            return _Drive(codes, square, (steps,), (1.0,), codes, steps)
        digits = slicing.digits(dac)
        pulses = pulses_of(codes, digits, dac)
        if single:
            # The charges of all pulses are added up, and so are their variances.
            places = codes.new_tensor([4.0**digit.shift for digit in digits])
            square = torch.tensordot(places, pulses.square_(), 1)
            return _Drive(codes, square, (steps,), (1.0,), codes, steps)
        flat = pulses.flatten(0, 1)
        return _Drive(
            flat,
            flat.square() if noisy else None,
            tuple(digit.full for digit in digits),
            tuple(digit.significance for digit in digits),
            codes,
            steps,
        )

    def _add_noise(self, p: Tensor, drive: _Drive, full: Tensor, key: NoiseKey) -> None:
        sums = torch.Size([p.shape[0] * p.shape[1], *p.shape[2:]])
        columns = self.stage.columns
        drawn = key.matrix(self.r, p.numel() // max(columns, 1), columns, p.dtype, p.device)
        noise = self.mvm.spread(drawn, sums).view_as(p)
        scale = (self.spec.output_noise * full).view(-1, *[1] * (p.dim() - 1))
        if self.variance is None:
            p.addcmul_(noise, scale)
            return
        assert drive.square is not None, "read noise has squared inputs"
        variance = self.mvm.multiply(drive.square, self.variance, self.r).view_as(p)
        # Fast convolutions leave rounding errors below zero.
        variance.add_(scale.square()).clamp_(min=0)
        p.addcmul_(variance.sqrt_(), noise)

    def _span(self, part: Tensor) -> Tensor:
        """ADC range ``[pulses, C]`` in units of a full-scale product; without an ADC, the rows."""
        pulses, stage = self.slicing.pulses, self.stage
        if self.ranges.adc is None:
            return part.new_full((pulses, stage.columns), float(self.rows))
        span = self.ranges.adc[self.r].to(part)
        outputs = stage.columns // stage.slices
        if self.slicing.ranges != "shared":
            span = span.movedim(1, 0)
            span = span if span.dim() == 3 else span[..., None]
        return stage.stack(span.expand(pulses, stage.slices, outputs))

    def _read_out(self, p: Tensor, factor: Tensor) -> None:
        """Sums to steps of the ADC, as the periphery hands them over."""
        stage, r = self.stage, self.r
        if stage.droop is not None:
            factor = factor * stage.droop[r]
        gain = None if stage.gain is None else stage.gain[r]
        if stage.bend is None:
            p.mul_(self._shaped(factor if gain is None else factor * gain))
        else:
            assert self.spec.periphery is not None, "periphery bends"
            steps = 1.0 if self.spec.adc is None else self.spec.adc.full_code
            at = self.spec.periphery.nonlinearity * self.spec.periphery.calibrated_at
            p.mul_(self._shaped(factor))
            p.div_(p.abs().mul_(self.mvm.columns(stage.bend[r] / steps)).add_(1))
            slope = (1 + at) ** 2
            if gain is not None or slope != 1:
                p.mul_(slope if gain is None else self.mvm.columns(gain * slope))
        if stage.offset is not None and self.spec.adc is not None:
            p.add_(self.mvm.columns(stage.offset[r] * self.spec.adc.full_code))

    def _digitise(self, p: Tensor, key: NoiseKey | None) -> Tensor | None:
        """Steps to codes, in place, and where no conversion of an output clipped if wanted."""
        adc, stage = self.spec.adc, self.stage
        assert adc is not None, "an ADC digitises"
        lowest, full = adc.lowest, adc.full_code
        inside = None
        if self.looks:
            over = ((p > full) | (p < lowest)).any(0)
            inside = self.mvm.merge(over.to(p.dtype), stage.slices) == 0
        if stage.thresholds is not None:
            table = stage.thresholds[self.r]
            p.sub_(lowest)
            find_codes(p if table.dim() == 1 else self.mvm.columns_first(p), table)
            p.add_(lowest)
            return inside
        half = 0.5 if adc.codes == "offset" else 0.0
        if half:
            p.sub_(half)
        if adc.rounding == "stochastic":
            assert key is not None, "random rounding has a key"
            p.add_(_uniform(key, "adc", self.r, p)).floor_()
        else:
            p.round_()
        if half:
            p.add_(half)
        p.clamp_(lowest, full)
        return inside

    def _shaped(self, values: Tensor) -> Tensor:
        """``[pulses, C]`` factors, to broadcast against sums ``[pulses, B, ...]``."""
        return torch.stack([self.mvm.columns(value) for value in values]).unsqueeze(1)


def _again(key: NoiseKey | None, times: int) -> NoiseKey | None:
    return None if key is None else sub_key(key, f"again{times}")


def _uniform(key: NoiseKey, purpose: str, block: int, like: Tensor) -> Tensor:
    """Numbers in [0, 1), one for each element of ``like``."""
    normal = sub_key(key, purpose).matrix(block, 1, like.numel(), like.dtype, like.device)
    share: Tensor = torch.special.ndtr(normal)
    return share.clamp_(max=1 - 2.0**-24).view(like.shape)
