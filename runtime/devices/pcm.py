"""Phase-change memory: published fits of programming noise, drift and 1/f read noise.

With ĝ = g / g_max of the target g (all in uS), N standard normal, t = seconds + t0:

    programming   g_P = max(g + sigma(ĝ) N, 0)
    drift         g_D(t) = g_P (t / t0)^-nu,     nu = |nu_mean(ĝ) + nu_sigma(ĝ) N|, of each device
    read          sigma_read(t) = g_D(t) Q(ĝ) sqrt(ln((t + t_read) / (2 t_read)))

Equations and forms: Joshi et al., Nat. Commun. 11, 2473 (2020), Methods; Nandakumar et al., ICECS
(2019). The read noise there is the 1/f noise accumulated since programming; here every MVM draws it
anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from ..converters import is_number
from ..errors import InputError
from ..noise import NoiseKey, sub_key
from .base import Units
from .curves import Branched, Power, check_positive, check_scales, polynomial

FitName = Literal["nandakumar-2019", "joshi-2020", "hermes-one-device", "hermes-two-device"]


@dataclass(frozen=True, slots=True)
class Fit:
    """One characterisation."""

    g_max: float
    """Largest conductance that was characterised [uS]."""
    t0: float
    """First read after programming [s]."""
    t_read: float
    """Duration of a read [s]."""
    sigma: tuple[float, ...]
    """Programming: polynomial in ĝ, lowest order first [uS]."""
    nu_mean: Callable[[Tensor], Tensor]
    nu_sigma: Callable[[Tensor], Tensor]
    read: Callable[[Tensor], Tensor]
    """Q, relative."""


_NU_MEAN = Branched(-0.0155, 0.0244, 0.049, 0.1)
_NU_SIGMA = Branched(-0.0125, -0.0059, 0.008, 0.045)
_Q = Power(0.0088, -0.65, 0.2)
_HERMES_NU = Branched(-0.0387, -0.0182, 0.0720, 0.13, 0.0945, (0.0736, -0.0126, -0.0436))

FITS: dict[FitName, Fit] = {
    "nandakumar-2019": Fit(
        25.0, 20.0, 250e-9, (0.26348, 1.9650, -1.1731), _NU_MEAN, _NU_SIGMA, _Q
    ),
    "joshi-2020": Fit(
        25.0, 20.0, 250e-9, (0.28638599, 0.07585724 * 25, -0.00178767 * 25**2),
        _NU_MEAN, _NU_SIGMA, _Q,
    ),
    "hermes-one-device": Fit(
        10.35, 200.0, 512e-9, (0.15781817, 2.32443916, -2.16310839, 0.68841818),
        _HERMES_NU,
        Branched(-0.0120, -0.0023, 0.0124, 0.04, 0.3039, (0.0104, 0.0116, -0.0165)),
        Branched(-0.0078, 0.0038, 0.0179, 0.04, 0.1591, (0.0088, 0.0768, -0.1352, 0.0664)),
    ),
    "hermes-two-device": Fit(
        20.7, 300.0, 512e-9, (0.16603222, 4.71806468, -8.48101252, 4.68961419),
        _HERMES_NU,
        Branched(-0.0117, -0.0057, 0.0091, 0.04, 0.3055, (0.0073, 0.0093, -0.0118)),
        Branched(-0.0117, -0.0069, 0.015, 0.04, 0.16, (0.0123, 0.0211, -0.0280, 0.0069)),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PCMDevice:
    """Phase-change memory, by one of four published fits.

    - ``nandakumar-2019``: Nandakumar et al., ICECS (2019), coefficients as in aihwkit 1.2.0
      (``PCMLikeNoiseModel``); up to 25 uS, t0 = 20 s, t_read = 250 ns.
    - ``joshi-2020``: programming noise by another fit, of Fig. 3b of Joshi et al., Nat. Commun. 11,
      2473 (2020), coefficients as in CrossSim 3.2 (``PCMJoshi``); the rest as the first.
    - ``hermes-one-device``, ``hermes-two-device``: unit cells of the IBM HERMES Project Chip (Le
      Gallo et al., Nat. Electron. (2023); Khaddam-Aljameh et al., JSSC (2022)), one device of up
      to 10.35 uS read first after 200 s, or two that hold the same, of up to 20.7 uS together,
      programmed as in Vasilopoulos et al., TED (2023), and read first after 300 s;
      t_read = 512 ns. Coefficients as in aihwkit 1.2.0 (``HermesNoiseModel``).
    """

    fit: FitName = "nandakumar-2019"
    """Which characterisation."""
    programming: float = 1.0
    """Factor on the programming noise; 0 switches it off."""
    drift: float = 1.0
    """Factor on the drift exponents."""
    read: float = 1.0
    """Factor on the read noise."""
    g_max: float | None = None
    """Largest conductance [uS] of a device that is like the characterised one in all but size: its
    noise in uS is smaller by the same factor. None: the characterised one."""
    sigma: tuple[float, ...] | None = None
    """Programming noise of your own: polynomial in ĝ, lowest order first [uS at the characterised
    ``g_max``]; None: the fit's."""
    t0: float | None = None
    """First read after programming [s]; None: the fit's."""
    t_read: float | None = None
    """Duration of a read [s]; None: the fit's."""
    kind: ClassVar[str] = "pcm"
    units: ClassVar[Units] = "uS"

    def __post_init__(self) -> None:
        if self.fit not in get_args(FitName):
            known = ", ".join(get_args(FitName))
            raise InputError(f"PCMDevice.fit must be one of {known}, got {self.fit!r}")
        check_scales(self, "programming", "drift", "read")
        check_positive(self, "g_max", "t0", "t_read")
        if self.sigma is not None:
            given = tuple(self.sigma) if isinstance(self.sigma, tuple | list) else ()
            if not given or not all(is_number(c) for c in given):
                raise InputError(f"PCMDevice.sigma must be a tuple of numbers, got {self.sigma!r}")
            object.__setattr__(self, "sigma", given)

    @property
    def is_ideal(self) -> bool:
        """True if all three factors are 0."""
        return self.programming == self.drift == self.read == 0

    @property
    def drifts(self) -> bool:
        """True unless drift is switched off."""
        return self.drift > 0

    @property
    def reads_noisily(self) -> bool:
        """True unless read noise is switched off."""
        return self.read > 0

    @property
    def g_range(self) -> tuple[float, float]:
        """From 0 to the largest conductance [uS]."""
        return 0.0, self._g_max

    @property
    def last_measured(self) -> float:
        """Power laws: any time."""
        return math.inf

    @property
    def _fit(self) -> Fit:
        return FITS[self.fit]

    @property
    def _g_max(self) -> float:
        return self.g_max or self._fit.g_max

    @property
    def _t0(self) -> float:
        return self.t0 or self._fit.t0

    def state(self, target: Tensor, seconds: float, key: NoiseKey) -> Tensor:
        """Conductances [uS] ``seconds`` after the first read."""
        relative = target / self._g_max
        state = self._programmed(target, relative, key)
        if self.drift == 0 or seconds == 0:
            return state
        drawn = sub_key(key, "drift").normal(target.shape, target.dtype, target.device)
        nu = drawn.mul_(self._fit.nu_sigma(relative)).add_(self._fit.nu_mean(relative)).abs_()
        decades = math.log((seconds + self._t0) / self._t0)
        return state.mul_(nu.mul_(-self.drift * decades).exp_())

    def _programmed(self, target: Tensor, relative: Tensor, key: NoiseKey) -> Tensor:
        if self.programming == 0:
            return target.clone()
        sigma = polynomial(self.sigma or self._fit.sigma, relative).clamp_(min=0)
        sigma.mul_(self.programming * self._g_max / self._fit.g_max)
        drawn = key.normal(target.shape, target.dtype, target.device)
        return drawn.mul_(sigma).add_(target).clamp_(min=0)

    def read_sigma(self, state: Tensor, target: Tensor, seconds: float) -> Tensor:
        """Standard deviation of a read [uS]."""
        t, t_read = seconds + self._t0, self.t_read or self._fit.t_read
        width = math.sqrt(math.log((t + t_read) / (2 * t_read)))
        return self._fit.read(target / self._g_max).mul_(state).mul_(self.read * width)
