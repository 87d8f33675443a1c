"""SONOS: charge-trapping transistors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..noise import NoiseKey
from .base import Units
from .curves import check_positive, check_scales, polynomial, wandered, weights_at


@dataclass(frozen=True, slots=True)
class SONOSDevice:
    """40 nm SONOS of Agrawal et al., IEDM (2022), 21.7: means and spreads of 128k devices.

    Coefficients as in CrossSim 3.2 (``SONOS``), for currents I = g · v_read up to 1800 nA, 0 to 5
    days after programming:

        drift    mean I moves by a polynomial of tenth order (Fig. 10b)
        spread   sigma = A (1 - exp(-I / B)) around that mean (Fig. 10a)
        read     sigma = 12.58037 (1 - exp(-I / 215.36557)) nA, at any time (Fig. 11b)

    Between whole days polynomial, A and B are linear in time; after five days all is constant (our
    choice). A device keeps its programming error, and what the spread grows by is independent of it
    (our choice).
    """

    v_read: float = 0.1
    """Drain-source voltage of a read [V], which a conductance is defined by; our choice, so that
    16 uS is 1600 nA."""
    programming: float = 1.0
    """Factor on the spread."""
    drift: float = 1.0
    """Factor on the drift of the mean."""
    read: float = 1.0
    """Factor on the read noise."""
    kind: ClassVar[str] = "sonos"
    units: ClassVar[Units] = "uS"

    def __post_init__(self) -> None:
        check_positive(self, "v_read")
        check_scales(self, "v_read", "programming", "drift", "read")

    @property
    def is_ideal(self) -> bool:
        """True if all three factors are 0."""
        return self.programming == self.drift == self.read == 0

    @property
    def drifts(self) -> bool:
        """True: mean and spread change."""
        return self.drift > 0 or self.programming > 0

    @property
    def reads_noisily(self) -> bool:
        """True unless read noise is switched off."""
        return self.read > 0

    @property
    def g_range(self) -> tuple[float, float]:
        """Up to 1800 nA [uS]."""
        return 0.0, 1800.0 / self._nanoamps

    @property
    def last_measured(self) -> float:
        """Five days [s]."""
        return 5 * 86400.0

    @property
    def _nanoamps(self) -> float:
        """Current [nA] of 1 uS."""
        return 1000 * self.v_read

    def state(self, target: Tensor, seconds: float, key: NoiseKey) -> Tensor:
        """Conductances [uS]."""
        unit = self._nanoamps
        current = target * unit
        fresh = _spread(current, *_SPREAD[0])
        mean, sigma = current, fresh
        if seconds > 0:
            mean, a, b = self._aged(current, seconds)
            sigma = _spread(mean, a, b)
        found = wandered(mean, sigma * self.programming, fresh * self.programming, key, seconds > 0)
        return found.div_(unit)

    def _aged(self, current: Tensor, seconds: float) -> tuple[Tensor, float, float]:
        # Terms up to I^10 cancel: float32 would lose them.
        wide, moved = current.double(), torch.zeros_like(current, dtype=torch.float64)
        a = b = 0.0
        for day, share in weights_at(seconds / 86400.0, tuple(range(len(_DRIFT)))):
            moved.add_(polynomial(_DRIFT[day], wide), alpha=share * self.drift)
            a, b = a + share * _SPREAD[day][0], b + share * _SPREAD[day][1]
        return (wide + moved).clamp_(min=0).to(current.dtype), a, b

    def read_sigma(self, state: Tensor, target: Tensor, seconds: float) -> Tensor:
        """Standard deviation of a read [uS]."""
        noise = _spread(state * self._nanoamps, 12.58037, 215.36557)
        return noise.mul_(self.read / self._nanoamps)


def _spread(current: Tensor, a: float, b: float) -> Tensor:
    return (current / -b).exp_().sub_(1).mul_(-a).clamp_(min=0)


_SPREAD = (
    (19.88665, 176.3115), (25.59102, 186.85544), (28.72753, 193.56834),
    (31.04318, 198.90332), (33.76214, 204.77023), (34.57909, 207.34309),
)  # fmt: skip
"""A [nA] and B [nA] after 0 to 5 days."""

_DRIFT = (
    (0.0,),
    (1.72684e-01, 5.72552e-02, -6.85715e-04, 3.50271e-06, -9.37682e-09, 1.40575e-11,
     -1.19803e-14, 5.41293e-18, -8.85448e-22, -1.66869e-25, 5.95180e-29),
    (2.50712e-01, 6.62195e-02, -6.83218e-04, 2.99442e-06, -6.78255e-09, 7.70482e-12,
     -3.04983e-15, -2.15919e-18, 2.94617e-21, -1.23359e-24, 1.85329e-28),
    (-1.75300e-02, 9.76883e-02, -9.63791e-04, 4.55551e-06, -1.22391e-08, 1.93786e-11,
     -1.85899e-14, 1.07659e-17, -3.58211e-21, 5.96785e-25, -3.30410e-29),
    (4.03338e-02, 1.03111e-01, -1.04740e-03, 4.83961e-06, -1.28132e-08, 1.99484e-11,
     -1.85139e-14, 1.00008e-17, -2.84944e-21, 3.01008e-25, 1.18747e-29),
    (3.19927e-01, 1.06596e-01, -1.04054e-03, 4.50290e-06, -1.10352e-08, 1.56477e-11,
     -1.27592e-14, 5.45513e-18, -7.26841e-22, -2.43893e-25, 7.14608e-29),
)  # fmt: skip
"""Drift [nA] after 0 to 5 days: polynomial in the programmed current [nA], lowest order first."""
