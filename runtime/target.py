"""The hardware to compile for: tile size, converters, devices. Plain values, validated, JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from .clip import WeightClip
from .converters import Converter, is_number
from .devices import KINDS, Device, IdealDevice
from .devices.cell import Cell
from .errors import FormatError, InputError
from .periphery import Periphery
from .slicing import Slicing
from .wires import Wires

FORMAT = 1
Compensation = Literal["none", "global", "column", "exact"]
COMPENSATIONS: tuple[Compensation, ...] = ("none", "global", "column", "exact")
OPTIONAL_PARTS: dict[str, type] = {
    "slicing": Slicing, "wires": Wires, "periphery": Periphery, "weight_clip": WeightClip,
}  # fmt: skip
"""Fields of a target that are None or a value of this class."""


@dataclass(frozen=True, slots=True)
class TileSpec:
    """Physical size of one crossbar tile.

    Raises:
        InputError: a size that is not a positive int, or fewer columns than one weight takes.
    """

    rows: int = 512
    """Input lines: how many inputs one tile multiplies."""
    cols: int = 512
    """Output lines."""
    columns_per_weight: int = 1
    """Output lines that one weight takes: 2 for a differential pair in adjacent columns."""

    def __post_init__(self) -> None:
        for name in ("rows", "cols", "columns_per_weight"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"TileSpec.{name} must be a positive int, got {value!r}")
        if self.cols < self.columns_per_weight:
            raise InputError(
                f"TileSpec.cols={self.cols} cannot hold a weight of "
                f"{self.columns_per_weight} columns"
            )

    @property
    def logical_cols(self) -> int:
        """Weights that fit side by side in one row."""
        return self.cols // self.columns_per_weight


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a converter range is chosen from data."""

    method: Literal["mse", "percentile", "absmax"] = "mse"
    """``"mse"``: the least mean squared error of clipping plus rounding. ``"percentile"``: that
    share of values fits. ``"absmax"``: all fit."""
    percentile: float = 99.99
    """Used by ``method="percentile"``."""

    def __post_init__(self) -> None:
        if self.method not in ("mse", "percentile", "absmax"):
            raise InputError(
                f"Calibration.method must be 'mse', 'percentile' or 'absmax', got {self.method!r}"
            )
        if not is_number(self.percentile) or not 0 < self.percentile <= 100:
            raise InputError(f"Calibration.percentile must be in (0, 100], got {self.percentile!r}")


@dataclass(frozen=True, slots=True)
class Target:
    """The hardware that a model is compiled for.

    ``None`` in place of a converter means an ideal one. See docs/design.md, section 3, for the
    arithmetic that these settings stand for.

    Raises:
        InputError: any value out of its domain.
    """

    name: str = "custom"
    tile: TileSpec = field(default_factory=TileSpec)
    dac: Converter | None = field(default_factory=Converter)
    adc: Converter | None = field(default_factory=Converter)
    weight_scale: Literal["column", "tensor"] = "column"
    """Abs-max scale of the weights: one per output column, or one for the whole layer."""
    device: Device = field(default_factory=IdealDevice)
    output_noise: float = 0.0
    """Standard deviation at the ADC's input, fresh for each conversion, in units of one full-scale
    input on one full-scale weight."""
    calibration: Calibration = field(default_factory=Calibration)
    cell: Cell = field(default_factory=Cell)
    """How a weight becomes conductances, and conductances a weight."""
    slicing: Slicing | None = None
    """Bit slices of weights and inputs; None: one conversion for each column and input."""
    wires: Wires | None = None
    """Resistance of the lines (IR drop); None: none."""
    periphery: Periphery | None = None
    """Errors of the circuits between columns and ADC; None: none."""
    weight_clip: WeightClip | None = None
    """Clipping of weights before they are scaled; None: the largest weight is full scale."""
    compensation: Compensation = "none"
    """Digital output scales that undo the mean drift: none, one for a layer, one for a column, or
    the exact reference (docs/design.md)."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"Target.name must be a non-empty string, got {self.name!r}")
        if not isinstance(self.tile, TileSpec):
            raise InputError(f"Target.tile must be a TileSpec, got {self.tile!r}")
        for name in ("dac", "adc"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Converter):
                raise InputError(f"Target.{name} must be a Converter or None, got {value!r}")
        if self.dac is not None:
            self.dac.check_dac()
        if self.adc is not None:
            self.adc.check_adc()
        if self.weight_scale not in ("column", "tensor"):
            raise InputError(
                f"Target.weight_scale must be 'column' or 'tensor', got {self.weight_scale!r}"
            )
        if not isinstance(self.device, Device) or self.device.kind not in KINDS:
            raise InputError(f"Target.device must be a device model, got {self.device!r}")
        noise = self.output_noise
        if not is_number(noise) or noise < 0:
            raise InputError(f"Target.output_noise must be a finite number >= 0, got {noise!r}")
        if not isinstance(self.calibration, Calibration):
            raise InputError(f"Target.calibration must be a Calibration, got {self.calibration!r}")
        if not isinstance(self.cell, Cell):
            raise InputError(f"Target.cell must be a Cell, got {self.cell!r}")
        _check_device(self.device, self.cell)
        if self.wires is not None and not self.cell.has_conductances:
            raise InputError(
                "Target.wires: IR drop is about conductances, and the cell has none",
                fix="cell=Cell(mode='pair', g_max=...)",
            )
        for name, part in OPTIONAL_PARTS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, part):
                raise InputError(f"Target.{name} must be a {part.__name__} or None, got {value!r}")
        if self.compensation not in COMPENSATIONS:
            raise InputError(
                f"Target.compensation must be one of {', '.join(COMPENSATIONS)}, "
                f"got {self.compensation!r}"
            )

        (self.slicing or Slicing()).check(self.dac, self.adc)
        if self.tile.cols < self.columns_per_weight:
            raise InputError(
                f"Target.tile.cols={self.tile.cols} cannot hold a weight of "
                f"{self.columns_per_weight} columns"
            )

    @property
    def columns_per_weight(self) -> int:
        """Output lines that one weight takes, all slices together."""
        slices = 1 if self.slicing is None else self.slicing.slices
        return self.tile.columns_per_weight * slices

    @property
    def is_ideal(self) -> bool:
        """True if the tiles compute exactly what the digital layer computes."""
        return (
            self.dac is None
            and self.adc is None
            and self.device.is_ideal
            and self.output_noise == 0
            and self.cell == Cell()
            and all(getattr(self, name) is None for name in OPTIONAL_PARTS)
        )

    def replace(self, **changes: Any) -> Target:
        """Copy with some fields changed; an unknown name raises InputError."""
        names = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise InputError(f"Target has no field {name!r}", fix=f"one of {', '.join(names)}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        out = {"format": FORMAT, **dataclasses.asdict(self)}
        out["device"] = device_to_dict(self.device)
        return out

    def to_json(self, indent: int | None = 2) -> str:
        """JSON text that ``from_json`` reads back to an equal target."""
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_dict(cls, data: object) -> Target:
        """Target from plain values; FormatError or InputError if they are not one."""
        fields = _checked(data, cls, "Target", extra=("format",))
        if fields.pop("format", FORMAT) != FORMAT:
            raise FormatError(f"Target of unknown format, this analogc reads format {FORMAT}")
        parts = {"tile": TileSpec, "calibration": Calibration, "cell": Cell, **OPTIONAL_PARTS}
        for name, part in parts.items():
            if name in fields and (fields[name] is not None or name not in OPTIONAL_PARTS):
                fields[name] = part(**_checked(fields[name], part, f"Target.{name}"))
        for name in ("dac", "adc"):
            if name in fields:
                fields[name] = converter_from_dict(fields[name], f"Target.{name}")
        if "device" in fields:
            fields["device"] = device_from_dict(fields["device"])
        return cls(**fields)

    @classmethod
    def from_json(cls, text: str) -> Target:
        """Target from the text of ``to_json``; FormatError if it is not JSON of a target."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise FormatError(f"Target is not valid JSON: {err}") from None
        return cls.from_dict(data)


def _check_device(device: Device, cell: Cell) -> None:
    if not cell.has_conductances:
        if device.units == "uS":
            raise InputError(
                f"Target.device: {device.kind!r} is about conductances, and the cell has none",
                fix="cell=Cell(mode='pair', g_max=...)",
            )
        if getattr(device, "scaling", "") == "inverse":
            raise InputError(
                "Target.device: scaling='inverse' on weights near 0 has no bound",
                fix="cell=Cell(mode='pair', g_min=...) with g_min above 0",
            )
        return
    low, high = device.g_range
    if not low <= cell.g_min <= cell.g_max <= high:
        raise InputError(
            f"Target.cell: {device.kind!r} was characterised from {low:g} to {high:g} uS, and the "
            f"cell goes from {cell.g_min:g} to {cell.g_max:g} uS"
        )


def converter_from_dict(data: object, where: str) -> Converter | None:
    """Converter from plain values, or None."""
    return None if data is None else Converter(**_checked(data, Converter, where))


def device_to_dict(device: Device) -> dict[str, Any]:
    """Plain values of a device model, with its kind."""
    assert dataclasses.is_dataclass(device) and not isinstance(device, type)
    return {"kind": device.kind, **dataclasses.asdict(device)}


def device_from_dict(data: object) -> Device:
    """Device model from plain values."""
    if not isinstance(data, dict) or data.get("kind") not in list(KINDS):
        raise FormatError(f"unknown device {data!r}", fix=f"kind is one of {', '.join(KINDS)}")
    kind = KINDS[data["kind"]]
    return kind(**_checked(data, kind, "Target.device", extra=("kind",), drop=("kind",)))


def _checked(
    data: object,
    kind: type,
    where: str,
    extra: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise FormatError(f"{where} must be a JSON object, got {data!r}")
    names = {f.name for f in dataclasses.fields(kind)} | set(extra)
    unknown = sorted(str(key) for key in data if key not in names)
    if unknown:
        raise FormatError(f"{where} has unknown fields {', '.join(unknown)}")
    return {key: value for key, value in data.items() if key not in drop}
