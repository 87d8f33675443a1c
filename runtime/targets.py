"""Presets: each a function that returns a Target, its figures cited in the docstring."""

from __future__ import annotations

from collections.abc import Callable

from .converters import Converter
from .devices import GaussianDevice
from .errors import InputError
from .slicing import Slicing
from .target import Target, TileSpec

__all__ = ["generic_8bit", "generic_8bit_noisy", "get", "ideal", "isaac_like", "names"]


def ideal() -> Target:
    """Tiles without any error: the result equals the digital model's to float rounding.

    For checking a mapping, and as the reference that errors are measured against.
    """
    return Target(name="ideal", tile=TileSpec(512, 512), dac=None, adc=None)


def generic_8bit() -> Target:
    """512 x 512 tiles with 8-bit DAC and ADC, calibrated ranges, exact devices.

    Tile size and converter resolution of the standard inference setting of Rasch et al.,
    Nat. Commun. 14, 5282 (2023).
    """
    return Target(name="generic-8bit", tile=TileSpec(512, 512), dac=Converter(8), adc=Converter(8))


def generic_8bit_noisy() -> Target:
    """As generic-8bit, with 2 % programming noise and an output noise of 0.04.

    Output noise 0.04 is that of the standard setting of Rasch et al., Nat. Commun. 14, 5282 (2023).
    The 2 % is a round generic figure of our choice, not a published device.
    """
    return generic_8bit().replace(
        name="generic-8bit-noisy", device=GaussianDevice(0.02), output_noise=0.04
    )


def isaac_like() -> Target:
    """Bit-sliced 128 x 128 tiles: 2-bit cells, 16-bit weights in 8 slices, 1-bit inputs, 8-bit ADC.

    The dot-product engine of Shafiee et al., "ISAAC: A Convolutional Neural Network Accelerator
    with In-Situ Analog Arithmetic in Crossbars", ISCA 2016, sections IV and V: 16-bit inputs in
    two's complement, one bit at a time; weights with an offset of half their range, 2 bits a cell;
    columns above half scale are stored as their complement, so the sum of 128 rows, at most 192
    steps, fits an 8-bit ADC whose step is one step of a cell. So the arrays themselves lose nothing:
    the result is that of 16-bit fixed point. Devices and wires are exact here.
    """
    return Target(
        name="isaac-like",
        tile=TileSpec(128, 128),
        dac=Converter(16),
        adc=Converter(8, range=255 / 3, codes="unsigned"),
        slicing=Slicing((2,) * 8, "offset", (1,) * 16, flip=True),
    )


_PRESETS: dict[str, Callable[[], Target]] = {
    "ideal": ideal,
    "generic-8bit": generic_8bit,
    "generic-8bit-noisy": generic_8bit_noisy,
    "isaac-like": isaac_like,
}


def names() -> tuple[str, ...]:
    """Names of all presets."""
    return tuple(_PRESETS)


def get(name: str) -> Target:
    """Preset of that name; InputError lists the names if there is none."""
    if name not in _PRESETS:
        raise InputError(f"no target named {name!r}", fix=f"one of {', '.join(_PRESETS)}")
    return _PRESETS[name]()


def summary(name: str) -> str:
    """First line of the preset's docstring."""
    return (_PRESETS[name].__doc__ or "").strip().splitlines()[0]
