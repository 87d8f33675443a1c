"""How a weight becomes conductances, and conductances a weight.

One weight takes ``planes``: device arrays of the weight's shape, [P, N, K] in uS. With w in [-1, 1]
the representations of Xiao et al., IEEE Circuits Syst. Mag. 22(4), 26 (2022), are:

    pair            G+ = g_min + range max(w, 0)       G- = g_min + range max(-w, 0)
    pair-two-sided  G+ = g_min + range (1 + w) / 2     G- = g_min + range (1 - w) / 2
    offset          G  = g_min + range (1 + w) / 2     minus a reference column at w = 0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..converters import is_number
from ..errors import InputError

Mode = Literal["direct", "pair", "pair-two-sided", "offset"]
Fill = Literal["equal", "sequential", "digits"]
_MOST_DEVICES = 1024


@dataclass(frozen=True, slots=True)
class Cell:
    """Devices that hold one weight, and their faults.

    Faults belong to the chip: which devices and lines they are is a function of the model's seed
    and the layer, so writing a weight again, also by ``program(seed)``, meets the same ones. A
    stuck device has its conductance exactly and at any time. Reference columns have no faults of
    their own, save that a dead row reaches them too.

    Raises:
        InputError: a field out of its domain, or one that ``mode="direct"`` has no use for.
    """

    g_min: float = 0.0
    """Lowest conductance that is programmed [uS]; above 0 for a finite on/off ratio."""
    g_max: float = 25.0
    """Conductance of full scale [uS]."""
    mode: Mode = "direct"
    """``direct``: no conductances, the device model acts on the normalised weight. ``pair``: one
    device holds the magnitude, the other is at ``g_min``. ``pair-two-sided``: both hold half of it
    around the middle. ``offset``: one device, and a reference column at the middle in each tile."""
    devices: int = 1
    """Devices that hold one value together, their currents summed in analog; a pair has two such
    groups."""
    significances: tuple[float, ...] = (1.0,)
    """What a device's current counts, for each of ``devices``; the default is 1 for all."""
    fill: Fill = "equal"
    """How devices share a value: ``equal``: each holds the same fraction of its range.
    ``sequential``: the first is filled up before the second one is used. ``digits``: the most
    significant holds the largest level that fits, the others what is left (needs ``levels``)."""
    levels: int | None = None
    """Conductances that a device can be programmed to, evenly spaced; None: any."""
    stuck_on: float = 0.0
    """Fraction of devices that are at ``g_max`` whatever is written."""
    stuck_off: float = 0.0
    """Fraction of devices that are at ``g_min`` whatever is written."""
    dead_rows: float = 0.0
    """Fraction of a tile's input lines that drive nothing."""
    dead_cols: float = 0.0
    """Fraction of a tile's output lines, of one device array, that carry nothing."""

    def __post_init__(self) -> None:
        for name, least in (("g_min", 0.0), ("g_max", 0.0)):
            value = getattr(self, name)
            if not is_number(value) or value < least:
                raise InputError(f"Cell.{name} must be a finite number >= 0 [uS], got {value!r}")
        if self.g_max <= self.g_min:
            raise InputError(f"Cell.g_max={self.g_max} must be above g_min={self.g_min} [uS]")
        for name, kinds in (("mode", Mode), ("fill", Fill)):
            value = getattr(self, name)
            if value not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise InputError(f"Cell.{name} must be one of {known}, got {value!r}")
        if not _is_count(self.devices, 1) or self.devices > _MOST_DEVICES:
            raise InputError(
                f"Cell.devices must be an int 1..{_MOST_DEVICES}, got {self.devices!r}"
            )
        if not isinstance(self.significances, tuple | list):
            raise InputError(f"Cell.significances must be a tuple, got {self.significances!r}")
        given = tuple(self.significances)
        if given == (1.0,):
            given *= self.devices
        if len(given) != self.devices or any(not is_number(f) or f <= 0 for f in given):
            raise InputError(
                f"Cell.significances must be {self.devices} positive numbers, one for each of "
                f"devices={self.devices}, got {self.significances!r}"
            )
        object.__setattr__(self, "significances", given)
        if self.levels is not None and not _is_count(self.levels, 2):
            raise InputError(f"Cell.levels must be None or an int >= 2, got {self.levels!r}")
        if self.fill == "digits" and self.levels is None:
            raise InputError("Cell.fill='digits' needs levels", fix="say how many with levels=")
        for name in FAULTS:
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise InputError(f"Cell.{name} must be a fraction 0..1, got {value!r}")
        if self.stuck_on + self.stuck_off > 1:
            raise InputError("Cell.stuck_on + stuck_off must be at most 1")
        if self.mode == "direct" and (self.devices > 1 or self.levels or self.has_faults):
            raise InputError(
                "Cell.mode='direct' has no conductances: devices, levels and faults need some",
                fix="mode='pair', 'pair-two-sided' or 'offset'",
            )

    @property
    def has_conductances(self) -> bool:
        """True unless the device model acts on the normalised weight itself."""
        return self.mode != "direct"

    @property
    def has_faults(self) -> bool:
        """True if a device or line can be stuck or dead."""
        return any(getattr(self, name) > 0 for name in FAULTS)

    @property
    def span(self) -> float:
        """``g_max - g_min`` [uS]."""
        return self.g_max - self.g_min

    @property
    def planes(self) -> tuple[str, ...]:
        """Name of each device array: ``+`` and ``-`` of a pair, with the device's number if there
        are several."""
        signs = ("+",) if self.mode == "offset" else ("+", "-")
        numbers = range(self.devices) if self.devices > 1 else ("",)
        return tuple(f"{sign}{number}" for number in numbers for sign in signs)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """What 1 uS in each plane adds to the normalised weight."""
        total = self.span * sum(self.significances)
        if self.mode == "offset":
            return tuple(2 * f / total for f in self.significances)
        return tuple(sign * f / total for f in self.significances for sign in (1, -1))

    def encode(self, weight: Tensor) -> Tensor:
        """Target conductances ``[P, *weight.shape]`` [uS] of a normalised weight in [-1, 1]."""
        if self.mode == "pair":
            sides = [weight.clamp(min=0), (-weight).clamp(min=0)]
        elif self.mode == "pair-two-sided":
            sides = [(1 + weight) / 2, (1 - weight) / 2]
        else:
            sides = [(1 + weight) / 2]
        shares = [self._share(side) for side in sides]
        planes = [side[d] for d in range(self.devices) for side in shares]
        return torch.stack(planes).mul_(self.span).add_(self.g_min)

    def encode_reference(self, like: Tensor) -> Tensor:
        """Target conductances ``[P, *like.shape]`` [uS] of reference columns: exactly w = 0.

        Not rounded to levels: with an even number of levels there is none in the middle.
        """
        middle = torch.full_like(like, 0.5)
        shares = self._fractions(middle)
        return torch.stack(shares).mul_(self.span).add_(self.g_min)

    def decode(self, planes: Tensor, reference: Tensor | None = None) -> Tensor:
        """Normalised weight that conductances stand for.

        Args:
            planes: ``[P, N, K]`` [uS].
            reference: ``[P, N, K]`` [uS] of each weight's reference; for ``offset`` only.
        """
        if reference is not None:
            planes = planes - reference
        return torch.einsum("p,p...->...", planes.new_tensor(self.coefficients), planes)

    def decode_variance(self, planes: Tensor, reference: Tensor | None = None) -> Tensor:
        """Variance of the normalised weight from those of conductances [uS^2]; as ``decode``."""
        if reference is not None:
            planes = planes + reference
        return torch.einsum("p,p...->...", planes.new_tensor(self.coefficients).square(), planes)

    def _share(self, value: Tensor) -> list[Tensor]:
        """Fraction of its range that each device holds of ``value`` in [0, 1]."""
        if self.fill == "digits":
            return self._digits(value)
        shares = self._fractions(value)
        if self.levels is not None:
            steps = self.levels - 1
            shares = [(share * steps).round_().div_(steps) for share in shares]
        return shares

    def _fractions(self, value: Tensor) -> list[Tensor]:
        if self.fill != "sequential":
            return [value] * self.devices
        total, below, shares = sum(self.significances), 0.0, []
        for f in self.significances:
            shares.append(((value * total - below) / f).clamp_(0, 1))
            below += f
        return shares

    def _digits(self, value: Tensor) -> list[Tensor]:
        assert self.levels is not None, "digits have levels"
        steps = self.levels - 1
        unit = min(self.significances) / steps
        left = (value * (sum(self.significances) / unit)).round_()
        shares: list[Tensor] = [value] * self.devices
        for d in sorted(range(self.devices), key=lambda d: -self.significances[d]):
            digit = self.significances[d] / steps / unit
            code = (left / digit + 1e-4).floor_().clamp_(0, steps)
            left = left - code * digit
            shares[d] = code.div_(steps)
        return shares


FAULTS = ("stuck_on", "stuck_off", "dead_rows", "dead_cols")


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
