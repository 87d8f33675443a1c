"""What one analog operator needs to know besides its tensors, as a value with a text form.

The text travels as a plain attribute of the operator, so a graph holds all its semantics.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from typing import Literal

from .converters import Converter
from .devices import Device, IdealDevice
from .errors import FormatError
from .target import Target, converter_from_dict, device_from_dict, device_to_dict


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

    def __post_init__(self) -> None:
        rows = self.rows
        rising = all(a < b for a, b in zip(rows, rows[1:], strict=False))
        if len(rows) < 2 or rows[0] != 0 or not rising or any(type(row) is not int for row in rows):
            raise FormatError(f"row blocks must be integers that rise from 0, got {rows}")

    @classmethod
    def of(cls, target: Target, rows: tuple[int, ...]) -> LayerSpec:
        """Spec of a layer on ``target`` whose row blocks have these boundaries."""
        return cls(
            rows, target.dac, target.adc, target.weight_scale, target.device, target.output_noise
        )

    @property
    def is_ideal(self) -> bool:
        """True if the layer computes exactly what the digital operator computes."""
        return (
            self.dac is None
            and self.adc is None
            and self.device.is_ideal
            and self.output_noise == 0
        )

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Row blocks as ``(start, stop)`` over K."""
        return tuple(zip(self.rows, self.rows[1:], strict=False))

    @property
    def dynamic(self) -> bool:
        """True if the input range is taken from each input vector."""
        return self.dac is not None and self.dac.range == "dynamic"

    def to_text(self) -> str:
        """Compact JSON; equal specs have equal texts."""
        data = {
            "rows": self.rows,
            "dac": self.dac and dataclasses.asdict(self.dac),
            "adc": self.adc and dataclasses.asdict(self.adc),
            "weight_scale": self.weight_scale,
            "device": device_to_dict(self.device),
            "output_noise": self.output_noise,
        }
        return json.dumps(data, separators=(",", ":"))


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> LayerSpec:
    """LayerSpec of the text of ``to_text``; FormatError if it is not one."""
    try:
        data = json.loads(text)
        # A target checks all values.
        target = Target(
            dac=converter_from_dict(data["dac"], "dac"),
            adc=converter_from_dict(data["adc"], "adc"),
            weight_scale=data["weight_scale"],
            device=device_from_dict(data["device"]),
            output_noise=data["output_noise"],
        )
        return LayerSpec.of(target, tuple(data["rows"]))
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise FormatError(f"not a layer spec: {err}") from None
