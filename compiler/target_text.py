"""Targets and device models in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ..runtime.converters import Converter
from ..runtime.devices import Device, GaussianDevice
from ..runtime.target import Target
from .printing import counted


def target_text(target: Target) -> str:
    """Hardware in a line: what differs from exact devices and plain converters."""
    tile = f"tiles of {target.tile.rows}×{target.tile.cols}"
    if target.is_ideal:
        return f"{tile}, without any error"
    parts = [tile, _converter_text("DAC", target.dac), _converter_text("ADC", target.adc)]
    if target.slicing is not None:
        slices, pulses = target.slicing.slices, len(target.slicing.input_bits or ())
        pulsed = f" and {counted(pulses, 'input pulse')}" if pulses else ""
        parts.append(f"{counted(slices, 'weight slice')}{pulsed}")
    parts += _devices(target)
    if target.periphery is not None:
        parts.append("errors of the periphery")
    if target.output_noise:
        parts.append(f"output noise {target.output_noise:g}")
    return ", ".join(parts)


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


def _converter_text(name: str, converter: Converter | None) -> str:
    if converter is None:
        return f"ideal {name}"
    kind = "" if converter.kind == "ideal" else f"{converter.kind} "
    return f"{converter.bits}-bit {kind}{name}"


def _devices(target: Target) -> Iterator[str]:
    """Devices, cells, wires and what is done about drift, a phrase each."""
    device, cell = target.device, target.cell
    if cell.has_conductances:
        many = f" of {cell.devices} devices" if cell.devices > 1 else ""
        yield f"{cell.mode} cells{many}, {cell.g_min:g} to {cell.g_max:g} µS"
    if cell.has_faults:
        yield "faulty cells"
    if isinstance(device, GaussianDevice):
        if device.sigma:
            yield f"{100 * device.sigma:g} % programming noise"
        if device.read_noise:
            yield f"{100 * device.read_noise:g} % read noise"
        if device.drifts:
            yield f"drift with exponent {device.drift_nu:g}"
    elif not device.is_ideal:
        fit = getattr(device, "fit", "")
        yield f"device {device.kind}{f' ({fit})' if fit else ''}"
    if target.weight_clip is not None:
        yield f"weights clipped at {target.weight_clip.kind} {target.weight_clip.value:g}"
    if target.wires is not None:
        row, col = target.wires.row_resistance, target.wires.col_resistance
        each = f"{row:g}" if row == col else f"{row:g} and {col:g}"
        yield f"lines of {each} Ω a cell"
    if target.compensation != "none":
        yield f"{target.compensation} drift compensation"
