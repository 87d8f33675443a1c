"""What the runtime asks of a device model."""

from __future__ import annotations

import warnings
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from ..noise import NoiseKey

Units = Literal["full scale", "uS"]


@runtime_checkable
class Device(Protocol):
    """A small frozen dataclass: what a target value becomes when it is written, and with time.

    A value is a conductance. Models in units of ``"full scale"`` (1 is the largest conductance)
    also act on normalised weights, if the cell has no conductances; published ones are in
    ``"uS"``.
    """

    kind: ClassVar[str]
    """Name in JSON."""
    units: ClassVar[Units]

    @property
    def is_ideal(self) -> bool:
        """True if nothing is ever changed."""
        ...

    @property
    def drifts(self) -> bool:
        """True if what was written changes with time."""
        ...

    @property
    def reads_noisily(self) -> bool:
        """True if ``read_sigma`` is ever above 0."""
        ...

    @property
    def g_range(self) -> tuple[float, float]:
        """Conductances that the model was characterised for [uS]; inf: any."""
        ...

    @property
    def last_measured(self) -> float:
        """Time after programming up to which there are data [s]; inf for a law, not a table."""
        ...

    def state(self, target: Tensor, seconds: float, key: NoiseKey) -> Tensor:
        """What ``target`` became ``seconds`` after it was written: a function of its operands.

        Args:
            target: any shape, in the model's units.
            seconds: since the first read after programming.
            key: of this programming; the same key is the same devices, at any time.
        """
        ...

    def read_sigma(self, state: Tensor, target: Tensor, seconds: float) -> Tensor:
        """Standard deviation of one read of each device, fresh for every MVM, in the model's units.

        Args:
            state: what ``state`` returned for ``target`` and ``seconds``.
            target: what was written.
            seconds: since the first read after programming.
        """
        ...


class DeviceTimeWarning(UserWarning):
    """A time that the data of a device model do not reach."""


def warn_of_time(device: Device, seconds: float) -> None:
    """Warn if there are no data on ``device`` for so late a time; the last ones are used."""
    if seconds > device.last_measured:
        warnings.warn(
            f"device {device.kind!r} was measured up to {device.last_measured:g} s after "
            f"programming; at {seconds:g} s it is taken to be as it was then",
            DeviceTimeWarning,
            stacklevel=3,
        )
