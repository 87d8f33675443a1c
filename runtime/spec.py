"""What one analog operator needs to know besides its tensors, as a value with a text form.

The text travels as a plain attribute of the operator, so a graph holds all its semantics.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from typing import Literal

from .clip import WeightClip
from .converters import Converter
from .devices import Device, IdealDevice
from .devices.cell import Cell
from .errors import FormatError
from .periphery import Periphery
from .slicing import Slicing
from .target import OPTIONAL_PARTS, Compensation, Target
from .wires import Wires


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Converter, device and row-block settings of one analog layer."""

    rows: tuple[int, ...]
    """Boundaries of the row blocks over the flat inputs K: ``(0, k1, ..., K)``."""
    dac: Converter | None = None
    adc: Converter | None = None
    weight_scale: Literal["column", "tensor"] = "column"
    device: Device = dataclasses.field(default_factory=IdealDevice)
    output_noise: float = 0.0
    cell: Cell = dataclasses.field(default_factory=Cell)
    slicing: Slicing | None = None
    wires: Wires | None = None
    periphery: Periphery | None = None
    weight_clip: WeightClip | None = None
    compensation: Compensation = "none"
    cols: tuple[int, ...] = ()
    """Boundaries of the column blocks over N, of all groups, where cells or wires ask which tile a
    column is on; else empty."""
    physical: bool = dataclasses.field(init=False, repr=False, compare=False)
    """True if ``physical`` computes the layer, not the plain kernels."""
    draws: bool = dataclasses.field(init=False, repr=False, compare=False)
    """True if each call draws random numbers."""

    def __post_init__(self) -> None:
        for name, given in (("row", self.rows), ("column", self.cols or (0, 1))):
            rising = all(a < b for a, b in zip(given, given[1:], strict=False))
            whole = all(type(value) is int for value in given)
            if len(given) < 2 or given[0] != 0 or not rising or not whole:
                raise FormatError(f"{name} blocks must be integers that rise from 0, got {given}")
        converters = [c for c in (self.dac, self.adc) if c is not None]
        physical = (
            self.slicing is not None
            or self.periphery is not None
            or self.device.reads_noisily
            or not all(c.is_plain for c in converters)
        )
        draws = (
            self.output_noise > 0
            or self.device.reads_noisily
            or any(c.rounding == "stochastic" for c in converters)
        )
        object.__setattr__(self, "physical", physical)
        object.__setattr__(self, "draws", draws)

    @classmethod
    def of(cls, target: Target, rows: tuple[int, ...], cols: tuple[int, ...] = ()) -> LayerSpec:
        """Spec of a layer on ``target`` whose row and column blocks have these boundaries."""
        placed = target.cell.has_conductances or target.wires is not None
        shared = {name: getattr(target, name) for name in _SHARED}
        return cls(rows, **shared, cols=cols if placed else ())

    @property
    def is_ideal(self) -> bool:
        """True if the layer computes exactly what the digital operator computes."""
        return (
            self.dac is None
            and self.adc is None
            and self.device.is_ideal
            and self.output_noise == 0
            and self.cell == Cell()
            and all(getattr(self, name) is None for name in OPTIONAL_PARTS)
        )

    @property
    def writes_exactly(self) -> bool:
        """True if tiles hold the weight over its scale, as it is."""
        return (
            self.device.is_ideal
            and self.cell == Cell()
            and self.wires is None
            and self.weight_clip is None
            and self.compensation == "none"
        )

    @property
    def differs_by_chip(self) -> bool:
        """True if some of its errors belong to the chip: writing the weight again leaves them."""
        converters = [c for c in (self.dac, self.adc) if c is not None]
        return (
            self.cell.has_faults
            or self.periphery is not None
            or any(c.gain_error or c.offset_error or c.mismatch for c in converters)
        )

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Row blocks as ``(start, stop)`` over K."""
        return tuple(zip(self.rows, self.rows[1:], strict=False))

    @property
    def managed(self) -> bool:
        """True if an input vector whose sums clip is multiplied again (bound management)."""
        return self.adc is not None and self.adc.bound_management != "none"

    def adc_shape(self, columns: int) -> tuple[int, ...]:
        """Shape of the ADC ranges of a layer of N ``columns``.

        ``[R]``, ``[R, N]`` by column, ``[R, S, 1]`` by slice, ``[R, S, pulses]`` by pulse, and the
        last two with N at the end by column, too.
        """
        shape: tuple[int, ...] = (len(self.blocks),)
        if self.slicing is not None and self.slicing.ranges != "shared":
            pulses = self.slicing.pulses if self.slicing.ranges == "per-pulse" else 1
            shape = (*shape, self.slicing.slices, pulses)
        if self.adc is not None and self.adc.per_column:
            shape = (*shape, columns)
        return shape

    @property
    def dynamic(self) -> bool:
        """True if the input range is taken from each input vector."""
        return self.dac is not None and self.dac.range == "dynamic"

    def to_text(self) -> str:
        """Compact JSON; equal specs have equal texts."""
        target = Target(**{name: getattr(self, name) for name in _SHARED}).to_dict()
        data = {
            name: target[name]
            for name in _SHARED
            if name in _ALWAYS or target[name] != _PLAIN[name]
        }
        for name in ("dac", "adc"):
            if data[name] is not None:
                data[name] = {
                    key: value
                    for key, value in data[name].items()
                    if key in _CONVERTER_ALWAYS or value != _CONVERTER_PLAIN[key]
                }
        places = {"rows": self.rows, "cols": self.cols} if self.cols else {"rows": self.rows}
        return json.dumps({**places, **data}, separators=(",", ":"))


CONTENT = ("device", "cell", "wires", "weight_clip", "compensation", "cols")
"""Settings that change what the tiles hold, and its scale; the forward reads no more of them than
that, but for the read noise of a device."""

_SHARED = tuple(
    f.name for f in dataclasses.fields(LayerSpec) if f.init and f.name not in ("rows", "cols")
)
_ALWAYS = ("dac", "adc", "weight_scale", "device", "output_noise")
_PLAIN = Target().to_dict()
_CONVERTER_ALWAYS = ("bits", "range", "per_column")
_CONVERTER_PLAIN = dataclasses.asdict(Converter())


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> LayerSpec:
    """LayerSpec of the text of ``to_text``; FormatError if it is not one."""
    try:
        data = json.loads(text)
        rows, cols = tuple(data["rows"]), tuple(data.get("cols", ()))
        data = {name: value for name, value in data.items() if name not in ("rows", "cols")}
        if missing := [name for name in _ALWAYS if name not in data]:
            raise FormatError(f"no {missing[0]}")
        # A target checks all values.
        return LayerSpec.of(Target.from_dict(data), rows, cols)
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise FormatError(f"not a layer spec: {err}") from None
