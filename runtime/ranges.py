"""Converter ranges as buffers beside the model's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .spec import LayerSpec


class RangeTable(nn.Module):
    """Input and ADC ranges of all layers of a graph, float32, not part of the state dict.

    They change by calibration only: a change of the model's dtype leaves them alone. A learned
    input range requires a gradient, so an optimizer can take it.
    """

    def learned(self) -> dict[str, Tensor]:
        """Input ranges that require a gradient, by name."""
        return {name: value for name, value in self.named_buffers() if value.requires_grad}

    def add(
        self, name: str, spec: LayerSpec, columns: int, device: torch.device
    ) -> tuple[str | None, str | None]:
        """Make the buffers of a layer; returns their names (None: the layer needs none).

        Fixed ranges are filled in; ranges to be calibrated start as NaN. Buffers that another
        graph of the same model made are kept, on ``device``, if they are for as many blocks.
        Ranges have memory even where weights have none.
        """
        device = torch.device("cpu") if device.type == "meta" else device
        found: list[str | None] = []
        blocks = len(spec.blocks)
        for converter, suffix in ((spec.dac, "input"), (spec.adc, "adc")):
            if converter is None or converter.range == "dynamic":
                found.append(None)
                continue
            shape = (blocks,) if suffix == "input" else spec.adc_shape(columns)
            # Not torch's default dtype and device, which the user may have set.
            value = torch.full(shape, torch.nan, dtype=torch.float32, device=device)
            if converter.range == "full":
                lengths = [stop - start for start, stop in spec.blocks]
                rows = torch.tensor(lengths, dtype=torch.float32, device=device)
                value.copy_(rows.view(-1, *[1] * (len(shape) - 1)).expand(shape))
            elif not isinstance(converter.range, str):
                value.fill_(converter.range)
            value.requires_grad_(converter.learned)
            buffer = f"{name}_{suffix}"
            known = self._buffers.get(buffer)
            if known is None or known.shape != value.shape:
                self.register_buffer(buffer, value, persistent=False)
            else:
                self._buffers[buffer] = _moved(self.get_buffer(buffer), device)
            found.append(buffer)
        return found[0], found[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for name, value in self._buffers.items():
            assert value is not None, "range buffers are tensors"
            device = fn(value[:0]).device
            self._buffers[name] = value if device.type == "meta" else _moved(value, device)
        return self


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """On ``device``, still a leaf."""
    if value.device == device:
        return value
    return value.detach().to(device).requires_grad_(value.requires_grad)
