"""Ranges of ADCs that see digits: from a sample of the inputs, when the input range is known."""

from __future__ import annotations

import torch
from torch import Tensor

from .histogram import Histogram
from .mvm import DenseMVM, Geometry
from .physical import sums
from .spec import LayerSpec
from .stage import WHOLE, stage_of
from .target import Calibration
from .tiles import Programmed

_KEPT = 1 << 19
"""Input values of a layer that are kept at most, but one image at least."""
_AT_ONCE = 1 << 22
"""Sums that are made at a time."""


class SampledSums:
    """An even sample of a layer's inputs, and the ADC ranges that suit their digits."""

    def __init__(self, spec: LayerSpec, mvm: Geometry, tiles: Programmed) -> None:
        self.spec, self.mvm = spec, mvm
        self.stage = stage_of(tiles, spec, mvm.groups)
        self.kept: list[Tensor] = []
        self.step = 1
        self.finite = True

    def add(self, x: Tensor) -> None:
        """Take every ``step``-th vector (image) of a batch; thin out what is too much."""
        if isinstance(self.mvm, DenseMVM):
            x = x.reshape(-1, x.shape[-1])
        if not x.numel():
            return
        self.kept.append(x[:: self.step].detach().clone())
        while sum(map(Tensor.numel, self.kept)) > _KEPT:
            whole = torch.cat(self.kept)
            if len(whole) == 1:
                break
            self.kept, self.step = [whole[::2].clone()], 2 * self.step

    def choose(self, how: Calibration, input_range: Tensor | None, shape: torch.Size) -> Tensor:
        """Ranges of ``shape`` (``LayerSpec.adc_shape``); 0 where there was no signal."""
        adc, kind = self.spec.adc, (self.spec.slicing or WHOLE).ranges
        assert adc is not None, "an ADC is calibrated"
        outputs = self.stage.columns // self.stage.slices
        series = shape[1:].numel()
        device = self.stage.significance[0].device
        blocks = len(self.spec.blocks)
        histograms = [
            Histogram(series, device, 256 if adc.per_column else 2048) for _ in range(blocks)
        ]
        for x in self.kept:
            most = max(1, _AT_ONCE // max(1, self._sums(x[:1])))
            for piece in x.split(most):
                for r, histogram in enumerate(histograms):
                    part = self.mvm.take(piece, r)
                    found = sums(self.mvm, part, self.stage, input_range, r)
                    matter = self._weights(found)
                    if kind == "shared":
                        found = found.permute(2, 0, 1, 3)[None]  # [1, N, S, pulses, V]
                        weights = matter.flatten()
                    elif kind == "per-slice":
                        found = found.permute(0, 2, 1, 3)  # [S, N, pulses, V]
                        weights = matter[0].flatten()
                    else:
                        found = found.flatten(0, 1)  # [S pulses, N, V]
                        weights = matter[0, 0]
                    keep = 2 if adc.per_column else 1
                    found = found.flatten(keep).flatten(0, keep - 1)
                    weights = weights.repeat(found.shape[1] // max(len(weights), 1))
                    histogram.add(found, weights / weights.mean())
        self.finite = all(histogram.finite for histogram in histograms)
        family = outputs if adc.per_column else 1
        chosen = [h.choose(how, adc.full_code, family) for h in histograms]
        return torch.stack(chosen).view(shape)

    def _weights(self, found: Tensor) -> Tensor:
        """``[S, pulses, V]``: what the squared error of a sum adds to that of the output."""
        slicing, dac = self.spec.slicing or WHOLE, self.spec.dac
        pulses = [1.0]
        if slicing.pulses > 1:
            assert dac is not None, "pulses are of a DAC"
            pulses = [digit.significance for digit in slicing.digits(dac)]
        matter = found.new_tensor(slicing.significances)[:, None] * found.new_tensor(pulses)
        return matter.square()[..., None].expand(*matter.shape, found.shape[-1])

    def _sums(self, x: Tensor) -> int:
        pulses = 1 if self.spec.slicing is None else self.spec.slicing.pulses
        return self.mvm.vectors(self.mvm.take(x, 0)) * self.stage.columns * pulses
