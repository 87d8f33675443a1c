"""Targets, converters and device models in words: what is on, a phrase each."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..runtime.converters import Converter
from ..runtime.devices import Device, GaussianDevice
from ..runtime.spec import LayerSpec
from ..runtime.target import Target
from .printing import runs


def target_text(target: Target) -> str:
    """Hardware in a line: what differs from exact devices and plain converters."""
    tile = f"tiles of {target.tile.rows}×{target.tile.cols}"
    if target.is_ideal:
        return f"{tile}, without any error"
    found = [tile]
    for name, converter in (("DAC", target.dac), ("ADC", target.adc)):
        if converter is None:
            found.append(f"ideal {name}")
        else:
            notes = ", ".join(converter_notes(converter))
            found.append(f"{converter.bits}-bit {name}{f' ({notes})' if notes else ''}")
    found += parts(target).values()
    if target.output_noise:
        found.append(f"output noise {target.output_noise:g}")
    return ", ".join(found)


def device_text(device: Device) -> str:
    """A device model and those of its settings that are not the defaults."""
    if device.is_ideal:
        return "ideal"
    assert dataclasses.is_dataclass(device)
    settings = [
        f"{field.name}={value:g}" if isinstance(value, float) else f"{field.name}={value}"
        for field in dataclasses.fields(device)
        if (value := getattr(device, field.name)) != field.default
    ]
    return " ".join([device.kind, *settings])


def converter_notes(converter: Converter) -> list[str]:
    """What a converter has besides bits and a range that is calibrated."""
    found = []
    if converter.codes != "symmetric":
        found.append(f"{converter.codes} codes")
    if converter.rounding != "nearest":
        found.append("stochastic rounding")
    if converter.kind != "ideal":
        found.append(converter.kind)
    for name in ("mismatch", "gain_error", "offset_error"):
        if value := getattr(converter, name):
            found.append(f"{name.replace('_', ' ')} {value:g}")
    if converter.shared_by > 1:
        found.append(f"shared by {converter.shared_by} columns")
    if converter.bound_management != "none":
        found.append(f"{converter.bound_management} bound management")
    if converter.learned:
        found.append("learned range")
    return found


def parts(hardware: Target | LayerSpec) -> dict[str, str]:
    """Devices, cells, slices, circuits and what is done about drift, by what they are."""
    found: dict[str, str] = {}
    cell, slicing = hardware.cell, hardware.slicing
    if slicing is not None:
        found["slicing"] = ", ".join(_slices(slicing))
    if cell.has_conductances:
        many = f" of {cell.devices} devices" if cell.devices > 1 else ""
        faults = [
            f"{100 * share:g} % {name.replace('_', ' ')}"
            for name in ("stuck_on", "stuck_off", "dead_rows", "dead_cols")
            if (share := getattr(cell, name))
        ]
        levels = [] if cell.levels is None else [f"{cell.levels} levels"]
        held = f"{cell.mode} cells{many}, {cell.g_min:g} to {cell.g_max:g} µS"
        found["cell"] = ", ".join([held, *levels, *faults])
    if not hardware.device.is_ideal:
        found["device"] = _device(hardware.device)
    if hardware.weight_clip is not None:
        clip = hardware.weight_clip
        found["weight clipping"] = f"weights clipped at {clip.kind} {clip.value:g}"
    if hardware.wires is not None:
        row, col = hardware.wires.row_resistance, hardware.wires.col_resistance
        each = f"{row:g}" if row == col else f"{row:g} and {col:g}"
        found["wires"] = f"lines of {each} Ω a cell"
    if hardware.periphery is not None:
        found["periphery"] = ", ".join(_set(hardware.periphery)) or "periphery without errors"
    if hardware.compensation != "none":
        found["compensation"] = f"{hardware.compensation} drift compensation"
    return found


def _slices(slicing: Any) -> list[str]:
    found = []
    if slicing.weight_bits is not None:
        flip = ", flipped" if slicing.flip else ""
        found.append(f"weights of {runs(slicing.weight_bits)} bits ({slicing.coding}{flip})")
    if slicing.input_bits is not None:
        found.append(
            f"inputs of {runs(slicing.input_bits)} bits ({slicing.input_accumulation} accumulation)"
        )
    if slicing.ranges != "shared":
        found.append(f"ADC ranges {slicing.ranges}")
    return found or ["one slice"]


def _device(device: Any) -> str:
    if isinstance(device, GaussianDevice):
        found = [f"{100 * device.sigma:g} % programming noise"] if device.sigma else []
        if device.drifts:
            found.append(f"drift ν {device.drift_nu:g} ± {device.drift_nu_sigma:g}")
        if device.read_noise:
            found.append(f"{100 * device.read_noise:g} % read noise")
        return ", ".join(found)
    fit = getattr(device, "fit", "")
    return f"device {device.kind}{f' ({fit})' if fit else ''}"


def _set(value: Any) -> list[str]:
    """Fields that are not the default."""
    return [
        f"{field.name.replace('_', ' ')} {getattr(value, field.name):g}"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    ]
