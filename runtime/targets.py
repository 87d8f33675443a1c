"""Presets: each a function that returns a Target, its figures cited in the docstring."""

from __future__ import annotations

from collections.abc import Callable

from .converters import Converter
from .devices import (
    Cell,
    GaussianDevice,
    PCMDevice,
    ReRAMCMODevice,
    ReRAMMiloDevice,
    ReRAMWanDevice,
    SONOSDevice,
)
from .errors import InputError
from .slicing import Slicing
from .target import Target, TileSpec

__all__ = [
    "generic_8bit",
    "generic_8bit_noisy",
    "get",
    "ideal",
    "isaac_like",
    "names",
    "pcm_hermes_one_device",
    "pcm_hermes_two_device",
    "pcm_like",
    "reram_cmo",
    "reram_milo",
    "reram_wan2022",
    "sonos",
]


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


def pcm_like() -> Target:
    """Phase-change memory as in large robustness studies: pairs of up to 25 uS, 8-bit converters.

    Source: devices: Nandakumar et al., ICECS (2019), and Joshi et al., Nat. Commun. 11, 2473
    (2020), Methods and Fig. 3; tile size, converters, output noise and drift compensation (one gain
    a layer): Rasch et al., Nat. Commun. 14, 5282 (2023).

    A column is that of a pair: the 512 x 512 are weights.
    """
    return generic_8bit().replace(
        name="pcm-like", device=PCMDevice(), cell=Cell(mode="pair", g_max=25.0), output_noise=0.04,
        compensation="global",
    )  # fmt: skip


def pcm_hermes_one_device() -> Target:
    """IBM HERMES Project Chip, one phase-change device a polarity: 256 x 256 cores, 8-bit I/O.

    Source: devices: Le Gallo et al., Nat. Electron. 6 (2023), and Khaddam-Aljameh et al., JSSC 57
    (2022), as fitted in aihwkit 1.2.0; core size and converters: Le Gallo et al., abstract.

    Our choice: one drift gain a column, which the chip's per-column digital scale can hold, and no
    output noise beside that of the devices. A column is that of a unit cell, which holds a weight.
    """
    return _hermes("pcm-hermes-one-device", PCMDevice("hermes-one-device"), 10.35)


def pcm_hermes_two_device() -> Target:
    """IBM HERMES Project Chip, two phase-change devices a polarity: 256 x 256 cores, 8-bit I/O.

    Source: devices: Le Gallo et al., Nat. Electron. 6 (2023), Khaddam-Aljameh et al., JSSC 57
    (2022), and Vasilopoulos et al., TED (2023), as fitted in aihwkit 1.2.0; core size and
    converters: Le Gallo et al., abstract.

    The fit is of both devices together, of up to 20.7 uS. Our choice: as for one device.
    """
    return _hermes("pcm-hermes-two-device", PCMDevice("hermes-two-device"), 20.7)


def _hermes(name: str, device: PCMDevice, g_max: float) -> Target:
    return Target(
        name=name, tile=TileSpec(256, 256), dac=Converter(8), adc=Converter(8), device=device,
        cell=Cell(mode="pair", g_max=g_max), compensation="column",
    )  # fmt: skip


def reram_wan2022() -> Target:
    """NeuRRAM: 256 x 256 cores of ReRAM, pairs in adjacent rows, 8-bit inputs, 10-bit outputs.

    Source: Wan et al., Nature 608, 504 (2022); spread after 1 s, 1 day and 2 days: Extended Data
    Fig. 3, as fitted in aihwkit 1.2.0; core size, resolutions and differential rows: ibid.

    A pair takes two rows, so a core holds 128 x 256 weights. Our choice: the largest of the chip's
    resolutions, and a lowest conductance of 1 uS. The chip's voltage-mode sensing is not modelled.
    """
    return Target(
        name="reram-wan2022", tile=TileSpec(128, 256), dac=Converter(8), adc=Converter(10),
        device=ReRAMWanDevice(), cell=Cell(mode="pair", g_min=1.0, g_max=40.0),
    )  # fmt: skip


def reram_milo() -> Target:
    """HfO2 ReRAM with an on/off ratio of 4.5 (50 to 225 uS), pairs, generic 8-bit converters.

    Source: Milo et al., IRPS (2021), Fig. 4 (IGVVA-100), as fitted in CrossSim 3.2.

    Generic, of our choice: 256 x 256 tiles and 8-bit converters.
    """
    return Target(
        name="reram-milo", tile=TileSpec(256, 256), dac=Converter(8), adc=Converter(8),
        device=ReRAMMiloDevice(), cell=Cell(mode="pair", g_min=50.0, g_max=225.0),
    )  # fmt: skip


def reram_cmo() -> Target:
    """Analog CMO/HfOx ReRAM (9 to 88.2 uS), one device a weight, generic 8-bit converters.

    Source: Falcone et al., arXiv:2502.04524 (2025), as fitted in aihwkit 1.2.0; write-verify to 2 %
    of the target.

    Generic, of our choice: 256 x 256 tiles, 8-bit converters, a reference column beside each tile's
    columns, one drift gain a layer.
    """
    return Target(
        name="reram-cmo", tile=TileSpec(256, 256), dac=Converter(8), adc=Converter(8),
        device=ReRAMCMODevice(), cell=Cell(mode="offset", g_min=9.0, g_max=88.2),
        compensation="global",
    )  # fmt: skip


def sonos() -> Target:
    """40 nm SONOS in subthreshold (up to 1600 nA, on/off ratio 1e7), generic 8-bit converters.

    Source: Agrawal et al., IEDM (2022), 21.7.1-21.7.4, Fig. 10 and 11, as fitted in CrossSim 3.2.

    Generic, of our choice: 1024 x 512 tiles of pairs in adjacent columns, 8-bit converters.
    """
    return Target(
        name="sonos", tile=TileSpec(1024, 512, columns_per_weight=2), dac=Converter(8),
        adc=Converter(8), device=SONOSDevice(), cell=Cell(mode="pair", g_min=1.6e-6, g_max=16.0),
    )  # fmt: skip


def isaac_like() -> Target:
    """Bit-sliced 128 x 128 tiles: 2-bit cells, 16-bit weights in 8 slices, 1-bit inputs, 8-bit ADC.

    Source: Shafiee et al., "ISAAC: A Convolutional Neural Network Accelerator with In-Situ Analog
    Arithmetic in Crossbars", ISCA 2016, sections IV and V.

    16-bit inputs in two's complement, one bit at a time; weights with an offset of half their
    range, 2 bits a cell; columns above half scale are stored as their complement, so the sum of 128
    rows, at most 192 steps, fits an 8-bit ADC whose step is one step of a cell. So the arrays
    themselves lose nothing: the result is that of 16-bit fixed point. Devices and wires are exact.
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
    "pcm-like": pcm_like,
    "pcm-hermes-one-device": pcm_hermes_one_device,
    "pcm-hermes-two-device": pcm_hermes_two_device,
    "reram-wan2022": reram_wan2022,
    "reram-milo": reram_milo,
    "reram-cmo": reram_cmo,
    "sonos": sonos,
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


def source(name: str) -> str:
    """Citation of the preset's figures; empty if there is none."""
    paragraphs = (_PRESETS[name].__doc__ or "").split("\n\n")
    found = [p.strip() for p in paragraphs if p.strip().startswith("Source: ")]
    return " ".join(found[0].removeprefix("Source: ").split()) if found else ""
