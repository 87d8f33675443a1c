"""The weights of the analog layers, by name: live tensors, and what the tiles hold of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..runtime.errors import InputError, UnsupportedError
from ..runtime.reference import flat_weight
from ..runtime.tiles import TileArray

if TYPE_CHECKING:
    from .model import CompiledModel


class AnalogWeight:
    """One weight on the tiles."""

    def __init__(self, model: CompiledModel, array: TileArray) -> None:
        self._model = model
        self._array = array

    @property
    def name(self) -> str:
        """Name of the tile array."""
        return self._array.name

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that the weight is.

        Raises:
            UnsupportedError: it is computed from several (folded batch norm, weight norm, ...).
        """
        value = self._model.live_weight(self.name)
        if not isinstance(value, nn.Parameter):
            raise UnsupportedError(
                f"weight {self.name!r} is computed from parameters, it is none itself",
                fix="write the model's own parameters; the tiles follow them",
            )
        return value

    def get(self) -> Tensor:
        """The live tensor itself: no copy, no detach, no move.

        What the tiles really hold is ``programmed()``.
        """
        return self._model.live_weight(self.name)

    def set(self, value: Tensor) -> None:
        """Write ``value`` into the parameter, in place; the tiles follow at the next forward.

        Raises:
            InputError: another shape, dtype or device than the parameter's.
            UnsupportedError: the weight is computed from several parameters.
        """
        parameter = self.parameter
        for what in ("shape", "dtype", "device"):
            have, want = getattr(value, what), getattr(parameter, what)
            if have != want:
                raise InputError(
                    f"weight {self.name!r}: {what} is {want}, the new value has {have}",
                    where=f"layer {self.name}",
                )
        with torch.no_grad():
            parameter.copy_(value)

    def programmed(self) -> Tensor:
        """Weight that the tiles stand for now, with all programming errors; a new tensor."""
        value = self.get().detach()
        if self._array.spec.is_ideal:
            return value.clone()
        tiles = self._array.current(value)
        flat = flat_weight(tiles, value.shape, self._array.spec) * tiles.scale[:, None]
        return flat.view(value.shape).to(value.dtype)

    @property
    def times_programmed(self) -> int:
        """How often the tiles were written."""
        return self._array.times_programmed

    def __repr__(self) -> str:
        shape = list(self.get().shape)
        return f"AnalogWeight({self.name!r}, {shape}, programmed {self.times_programmed} times)"


class WeightMap(Mapping[str, AnalogWeight]):
    """All analog weights of the current graph, by name."""

    def __init__(self, model: CompiledModel, arrays: dict[str, TileArray]) -> None:
        self._weights = {name: AnalogWeight(model, array) for name, array in arrays.items()}

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
