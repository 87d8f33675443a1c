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
    physical: bool = dataclasses.field(init=False, repr=False, compare=False)
    """True if ``physical`` computes the layer, not the plain kernels."""
    draws: bool = dataclasses.field(init=False, repr=False, compare=False)
    """True if each call draws random numbers, whatever the tiles hold."""

    def __post_init__(self) -> None:
        plain = all(c is None or c.is_plain for c in (self.dac, self.adc))
        object.__setattr__(
            self,
            "physical",
            not plain or self.slicing is not None or self.periphery is not None,
        )
        random = any(
            c is not None and c.rounding == "stochastic" for c in (self.dac, self.adc)
        )
        object.__setattr__(self, "draws", random or self.output_noise > 0)
        rows = self.rows
        rising = all(a < b for a, b in zip(rows, rows[1:], strict=False))
        if len(rows) < 2 or rows[0] != 0 or not rising or any(type(row) is not int for row in rows):
            raise FormatError(f"row blocks must be integers that rise from 0, got {rows}")

    @classmethod
    def of(cls, target: Target, rows: tuple[int, ...]) -> LayerSpec:
        """Spec of a layer on ``target`` whose row blocks have these boundaries."""
        return cls(rows, **{name: getattr(target, name) for name in _SHARED})

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
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Row blocks as ``(start, stop)`` over K."""
        return tuple(zip(self.rows, self.rows[1:], strict=False))

    @property
    def managed(self) -> bool:
        """True if an input vector whose sums clip is multiplied again (bound management)."""
        return self.adc is not None and self.adc.bound_management != "none"

    def adc_shape(self, columns: int) -> tuple[int, ...]:
        """Shape of the ADC ranges of a layer of N ``columns``.

        ``[R]``, ``[R, N]`` by column, ``[R, S, pulses]`` by slice, ``[R, S, pulses, N]`` by both.
        """
        shape: tuple[int, ...] = (len(self.blocks),)
        if self.slicing is not None and self.slicing.ranges == "per-slice":
            shape = (*shape, self.slicing.slices, self.slicing.pulses)
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
        return json.dumps({"rows": self.rows, **data}, separators=(",", ":"))


_SHARED = tuple(f.name for f in dataclasses.fields(LayerSpec) if f.init and f.name != "rows")
_ALWAYS = ("dac", "adc", "weight_scale", "device", "output_noise")
_PLAIN = Target().to_dict()
_CONVERTER_ALWAYS = ("bits", "range", "per_column")
_CONVERTER_PLAIN = dataclasses.asdict(Converter())


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> LayerSpec:
    """LayerSpec of the text of ``to_text``; FormatError if it is not one."""
    try:
        data = json.loads(text)
        rows = tuple(data["rows"])
        del data["rows"]
        if missing := [name for name in _ALWAYS if name not in data]:
            raise FormatError(f"no {missing[0]}")
        # A target checks all values.
        return LayerSpec.of(Target.from_dict(data), rows)
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise FormatError(f"not a layer spec: {err}") from None
