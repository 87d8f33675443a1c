"""The mean abs-max of the input vectors of a layer, which is where a running average settles."""

from __future__ import annotations

import torch
from torch import Tensor

from .mvm import Geometry


class MeanPeaks:
    """Adds up the abs-max of each input vector of each row block; those not finite are left out.

    Args:
        mvm: geometry whose parts have one vector a row: of a convolution, patches.
        blocks: row blocks R.
        device: of the sums.
    """

    def __init__(self, mvm: Geometry, blocks: int, device: torch.device) -> None:
        self._mvm = mvm
        self._total = torch.zeros(blocks, dtype=torch.float64, device=device)
        self._count = torch.zeros(blocks, dtype=torch.float64, device=device)
        self.finite = True

    def add(self, x: Tensor) -> None:
        """Count one batch of inputs of the layer."""
        for r in range(len(self._total)):
            part = self._mvm.take(x, r)
            if not part.numel():
                continue
            peaks = part.abs().amax(-1).double()
            good = peaks.isfinite()
            self.finite &= bool(good.all())
            self._total[r] += peaks[good].sum()
            self._count[r] += good.sum()

    def mean(self) -> Tensor:
        """``[R]``; 0 without a vector."""
        return self._total / self._count.clamp(min=1)
