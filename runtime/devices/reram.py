"""Resistive RAM: filamentary oxide devices of Wan 2022, Milo 2021 and Falcone 2025."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from ..noise import NoiseKey, sub_key
from .base import Units
from .curves import check_positive, check_scales, polynomial, wandered, weights_at

DAY = 86400.0
Acceptance = Literal["0.2%", "2%"]


@dataclass(frozen=True, slots=True)
class ReRAMWanDevice:
    """TaOx/HfOx devices of NeuRRAM: Wan et al., Nature 608, 504 (2022), Extended Data Fig. 3.

    The spread around the target 1 s, 1 day and 2 days after write-verify, as a function of the
    target up to 40 uS: fourth-order polynomials of g / 40 uS, coefficients as in aihwkit 1.2.0
    (``ReRamWan2022NoiseModel``). The mean stays. Our choice: between these times sigma is linear in
    the logarithm of time, after two days constant; a device keeps the error that it had after 1 s,
    and what the spread grows by is independent of it. ``seconds = 0`` is the read after 1 s. The
    paper gives no 1/f noise.
    """

    scale: float = 1.0
    """Factor on sigma."""
    g_max: float | None = None
    """Largest conductance [uS] of a device that is like the characterised one in all but size;
    None: 40."""
    kind: ClassVar[str] = "reram-wan-2022"
    units: ClassVar[Units] = "uS"

    def __post_init__(self) -> None:
        check_scales(self, "scale")
        check_positive(self, "g_max")

    @property
    def is_ideal(self) -> bool:
        """True without any spread."""
        return self.scale == 0

    @property
    def drifts(self) -> bool:
        """True: the spread grows."""
        return self.scale > 0

    @property
    def reads_noisily(self) -> bool:
        """False: not published."""
        return False

    @property
    def g_range(self) -> tuple[float, float]:
        """From 0 to the largest conductance [uS]."""
        return 0.0, self.g_max or 40.0

    @property
    def last_measured(self) -> float:
        """Two days [s]."""
        return _WAN_TIMES[-1]

    def sigma(self, target: Tensor, seconds: float) -> Tensor:
        """Standard deviation around ``target``, both in uS."""
        full = self.g_max or 40.0
        relative = target / full
        total = torch.zeros_like(relative)
        logs = tuple(math.log(time) for time in _WAN_TIMES)
        for i, share in weights_at(math.log(seconds + 1.0), logs):
            total.add_(polynomial(_WAN[i], relative).clamp_(min=0), alpha=share)
        return total.mul_(self.scale * full / 40.0)

    def state(self, target: Tensor, seconds: float, key: NoiseKey) -> Tensor:
        """Conductances [uS]."""
        fresh, aged = self.sigma(target, 0.0), seconds > 0
        sigma = self.sigma(target, seconds) if aged else fresh
        return wandered(target, sigma, fresh, key, aged)

    def read_sigma(self, state: Tensor, target: Tensor, seconds: float) -> Tensor:
        """Zero."""
        return torch.zeros_like(state)


_WAN_TIMES = (1.0, DAY, 2 * DAY)
_WAN = (
    (0.348, 16.030, -43.853, 45.393, -16.815),
    (0.701, 22.086, -50.773, 47.095, -16.458),
    (0.782, 20.274, -43.507, 37.062, -11.934),
)


@dataclass(frozen=True, slots=True)
class ReRAMMiloDevice:
    """HfO2 devices of Milo et al., IRPS (2021), Fig. 4 (programming algorithm IGVVA-100).

    sigma = 4.782321 - 0.009107 g [uS], 50 to 225 uS: a linear fit, coefficients as in CrossSim 3.2
    (``RRAMMilo``). No drift and no read noise are modelled.
    """

    scale: float = 1.0
    """Factor on sigma."""
    kind: ClassVar[str] = "reram-milo-2021"
    units: ClassVar[Units] = "uS"

    def __post_init__(self) -> None:
        check_scales(self, "scale")

    @property
    def is_ideal(self) -> bool:
        """True without any spread."""
        return self.scale == 0

    @property
    def drifts(self) -> bool:
        """False: not modelled."""
        return False

    @property
    def reads_noisily(self) -> bool:
        """False: not modelled."""
        return False

    @property
    def g_range(self) -> tuple[float, float]:
        """50 to 225 uS."""
        return 50.0, 225.0

    @property
    def last_measured(self) -> float:
        """It does not change."""
        return math.inf

    def state(self, target: Tensor, seconds: float, key: NoiseKey) -> Tensor:
        """Conductances [uS]."""
        sigma = polynomial((4.782321, -0.009107), target).mul_(self.scale)
        drawn = key.normal(target.shape, target.dtype, target.device)
        return drawn.mul_(sigma).add_(target).clamp_(min=0)

    def read_sigma(self, state: Tensor, target: Tensor, seconds: float) -> Tensor:
        """Zero."""
        return torch.zeros_like(state)


@dataclass(frozen=True, slots=True)
class ReRAMCMODevice:
    """Analog filamentary CMO/HfOx devices of IBM Research Zurich, 9 to 88.2 uS.

    Falcone et al., arXiv:2502.04524 (2025). Coefficients as in aihwkit 1.2.0
    (``ReRamCMONoiseModel``), all in uS, t in seconds:

        programming   sigma = a + b g, by the acceptance range of write-verify
        relaxation    g + N(-0.08900206 ln t, 0.04201137 ln t + 0.41183342), whatever g
        read          sigma = 0.0277316483 log10(g) sqrt(ln((t + 1 us) / 2 us)); 0 below 1 uS

    Our choice: relaxation is that of 1 s for any time between 0 and 1 s (the fit's logarithm would
    go through zero there); time 0 is the state that write-verify accepted, read after 1 s.
    """

    acceptance: Acceptance = "2%"
    """How close to the target write-verify comes before it stops, in percent of the target."""
    programming: float = 1.0
    """Factor on the programming noise."""
    drift: float = 1.0
    """Factor on the relaxation."""
    read: float = 1.0
    """Factor on the read noise."""
    kind: ClassVar[str] = "reram-cmo"
    units: ClassVar[Units] = "uS"

    def __post_init__(self) -> None:
        if self.acceptance not in get_args(Acceptance):
            known = ", ".join(get_args(Acceptance))
            raise InputError(
                f"ReRAMCMODevice.acceptance must be one of {known}, got {self.acceptance!r}"
            )
        check_scales(self, "programming", "drift", "read")

    @property
    def is_ideal(self) -> bool:
        """True if all three factors are 0."""
        return self.programming == self.drift == self.read == 0

    @property
    def drifts(self) -> bool:
        """True unless relaxation is switched off."""
        return self.drift > 0

    @property
    def reads_noisily(self) -> bool:
        """True unless read noise is switched off."""
        return self.read > 0

    @property
    def g_range(self) -> tuple[float, float]:
        """9 to 88.2 uS."""
        return 9.0, 88.2

    @property
    def last_measured(self) -> float:
        """A law in ln t: any time."""
        return math.inf

    def state(self, target: Tensor, seconds: float, key: NoiseKey) -> Tensor:
        """Conductances [uS]."""
        sigma = polynomial(_CMO[self.acceptance], target).mul_(self.programming)
        state = key.normal(target.shape, target.dtype, target.device).mul_(sigma).add_(target)
        if seconds > 0 and self.drift > 0:
            logs = math.log(max(seconds, 1.0))
            drawn = sub_key(key, "drift").normal(target.shape, target.dtype, target.device)
            drawn.mul_(0.04201137 * logs + 0.41183342).sub_(0.08900206 * logs)
            state.add_(drawn, alpha=self.drift)
        return state.clamp_(min=0)

    def read_sigma(self, state: Tensor, target: Tensor, seconds: float) -> Tensor:
        """Standard deviation of a read [uS]."""
        width = math.sqrt(math.log((max(seconds, 1.0) + 1e-6) / 2e-6))
        return state.clamp(min=1).log10_().mul_(0.0277316483 * self.read * width)


_CMO: dict[Acceptance, tuple[float, float]] = {
    "0.2%": (0.00081107, 0.00106879),
    "2%": (0.0112185391, 0.01129027418),
}
