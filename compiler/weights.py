"""The weights of the analog layers, by name: live tensors, and what the tiles hold of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..runtime.errors import InputError, UnsupportedError
from ..runtime.guard import Access, refusal
from ..runtime.programming import Conductances
from ..runtime.readout import read
from ..runtime.reference import flat_weight
from ..runtime.tiles import TileArray

if TYPE_CHECKING:
    from .tiled import Tiled


class AnalogWeight:
    """One weight on the tiles."""

    def __init__(self, model: Tiled, name: str, array: TileArray) -> None:
        self._model = model
        self._name = name
        self._array = array

    @property
    def name(self) -> str:
        """Name of the layer, the key in ``compiled.weights``."""
        return self._name

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that the weight is.

        Raises:
            UnsupportedError: it is computed from several (folded batch norm, weight norm, ...).
        """
        value = self.get()
        if not isinstance(value, nn.Parameter):
            raise UnsupportedError(
                f"weight {self.name!r} is computed from parameters, it is none itself",
                fix="write the model's own parameters; the tiles follow them",
            )
        return value

    @property
    def access(self) -> Access:
        """What the model shows of the weight: ``"direct"``, ``"readonly"`` or ``"sealed"``."""
        return self._model.weight_access

    def get(self) -> Tensor:
        """The live tensor itself: no copy, no detach, no move.

        With ``weight_access="readonly"`` or ``"sealed"`` a guard of it. This is the number that the
        tiles should hold. What they do hold is seen by ``read()``, the physical way.
        """
        return self._model._view.show_weight(self._live(), self.name)

    def _live(self) -> Tensor:
        return self._model._live_weight(self._array.name)

    def _operand(self) -> Tensor:
        self._model._require_weights()
        return self._model._live_weight(self._array.name, operand=True).detach()

    def set(self, value: Tensor) -> None:
        """Write ``value`` into the parameter, in place; the tiles follow at the next forward.

        Every alias, optimizer and device stays as it is. The physical write, with its programming
        noise, is ``CompiledModel.program()``, or the next forward's.

        Raises:
            InputError: no tensor, or another shape, dtype or device than the parameter's.
            UnsupportedError: the weight is computed from several parameters.
            AccessError: the model was not compiled with ``weight_access="direct"``.
        """
        if self.access != "direct":
            raise refusal(self.name, self.access, "set()")
        parameter = self.parameter
        if not isinstance(value, Tensor):
            raise InputError(
                f"weight {self.name!r}: the new value is no tensor but {type(value).__name__}",
                where=f"layer {self.name}",
                fix=f"torch.as_tensor(value, dtype={parameter.dtype})",
            )
        for what in ("shape", "dtype", "device"):
            have, want = getattr(value, what), getattr(parameter, what)
            if have != want:
                raise InputError(
                    f"weight {self.name!r}: {what} is {want}, the new value has {have}",
                    where=f"layer {self.name}",
                    fix="reshape or move the new value: set() converts nothing",
                )
        with torch.no_grad():
            parameter.copy_(value)

    def programmed(self) -> Tensor:
        """Weight that the tiles stand for now, with all programming errors; a new tensor.

        This is what only a simulator knows; ``read()`` is what can be measured.

        Raises:
            AccessError: the weight is sealed.
        """
        if self.access == "sealed":
            raise refusal(self.name, self.access, "programmed()")
        value = self._operand()
        if self._array.spec.is_ideal:
            return value.clone()
        tiles = self._array.current(value)
        flat = flat_weight(tiles, value.shape, self._array.spec) * tiles.scale[:, None]
        return flat.view(value.shape).to(value.dtype)

    def conductances(self) -> Conductances:
        """Conductances of the devices that hold the weight, now [uS]: faults, noise and drift.

        ``.values`` is ``[P, N, K]``: P device arrays (``.planes`` has their names: ``+`` and ``-``
        of a pair), N outputs, K inputs (of a convolution: input channels / groups x kernel volume).
        They are computed when asked for: no copy of them is kept.

        Raises:
            InputError: the target's cells have no conductances.
            AccessError: the weight is sealed.
        """
        if self.access == "sealed":
            raise refusal(self.name, self.access, "conductances()")
        if not self._array.spec.cell.has_conductances:
            raise InputError(
                f"weight {self.name!r}: the target's cells have no conductances",
                where=f"layer {self.name}",
                fix="a Target with cell=Cell(mode='pair', g_max=...), or a preset of a device",
            )
        return self._array.conductances(self._operand())

    @property
    def gain(self) -> Tensor:
        """Digital gain of the drift compensation for each output column, ``[N]``; 1 without one."""
        value = self._operand()
        if self._array.spec.is_ideal:
            return torch.ones(value.shape[0], dtype=value.dtype, device=value.device)
        held = self._array.current(value)
        return torch.ones_like(held.scale) if held.gain is None else held.gain.clone()

    @torch.no_grad()
    def read(self, noise: bool = True) -> Tensor:
        """Read the weight physically: one-hot inputs through the tile; works in every access mode.

        Included are what the devices hold, with their programming errors and read noise, the
        layer's DAC and ADC bits, and its output noise. The ADC range is not the calibrated one but
        chosen for reading: the largest weight of each row block. So a value is off by half a step
        of that range at most, plus the noise. A read is one more use of the tiles: the draws of
        noise after it are others. Weights of ideal tiles come back exactly.

        Args:
            noise: False leaves the output noise and the devices' read noise out.

        Returns:
            A new tensor of the weight's shape, dtype and device.

        Raises:
            SyncError: the tiles are stale and ``auto_sync`` is off.
        """
        value = self._operand()
        spec = self._array.spec
        if spec.is_ideal:
            return value.clone()
        tiles = self._array.current(value)
        noisy = spec.output_noise > 0 or spec.device.reads_noisily
        key = self._array.next_call() if noise and noisy else None
        return read(tiles, value.shape, spec, key).to(value.dtype)

    @property
    def times_programmed(self) -> int:
        """How often the tiles were written."""
        return self._array.times_programmed

    def __repr__(self) -> str:
        shape = list(self.get().shape)
        text = f"programmed {self.times_programmed} times"
        held = self._array.programmed
        if held is not None and self._array.spec.device.drifts:
            text += f", {held.seconds:g} s ago"
        if held is not None and held.gain is not None:
            text += f", gain {held.gain.min():.3f} to {held.gain.max():.3f}"
        return f"AnalogWeight({self.name!r}, {shape}, {text})"


class WeightMap(Mapping[str, AnalogWeight]):
    """All analog weights of the current graph, by name."""

    def __init__(self, model: Tiled, arrays: dict[str, TileArray]) -> None:
        self._weights = {name: AnalogWeight(model, name, array) for name, array in arrays.items()}

    def __getitem__(self, name: str) -> AnalogWeight:
        if name not in self._weights:
            known = ", ".join(self._weights) or "there are none"
            raise InputError(f"no analog weight named {name!r}", fix=f"names: {known}")
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self._weights.values()))
