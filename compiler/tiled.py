"""The tile half of a CompiledModel: weights on tiles, drift, and converter ranges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..passes.derive_weights import HOME
from ..runtime.calibrate import calibrate, is_uncalibrated
from ..runtime.converters import is_number
from ..runtime.devices.base import warn_of_time
from ..runtime.errors import InputError
from ..runtime.target import Calibration
from ..runtime.tiles import Programmed
from .batches import Mapped, as_call, cloned
from .home import is_real
from .pictured import Pictured
from .source import Source
from .weights import WeightMap


class Tiled(Pictured):
    """Programs its tiles, lets them age, and chooses converter ranges."""

    _source: Source | None
    _data: Iterable[Any] | None
    _unready: bool = False
    """Weights have no memory yet, or ranges no data."""

    def _require_weights(self) -> None:
        """Raise if a weight has no memory; follow a model that was loaded since."""
        raise NotImplementedError

    @property
    def weights(self) -> WeightMap:
        """The weights on the tiles, by the name of the layer that uses them first."""
        return WeightMap(self, {m.layer: self._ctx.arrays[m.array] for m in self.tiles})

    def _contents(self) -> dict[str, Programmed]:
        """What the tiles of each array hold, of those whose weight did not change since."""
        return {
            mapping.array: array.programmed
            for mapping, array, weight in self._live_weights()
            if array.programmed is not None and array.is_current(weight)
        }

    def sync(self) -> list[str]:
        """Program again every tile array whose weight changed; returns the layers concerned.

        A forward does this by itself, layer by layer, unless ``auto_sync`` is off.
        """
        touched = []
        self._require_weights()
        for mapping, array, weight in self._live_weights():
            if not array.is_current(weight):
                array.write(weight)
                touched.append(mapping.layer)
        return touched

    def program(self, seed: int | None = None) -> None:
        """Write all weights into the devices once more, with fresh programming noise.

        Args:
            seed: start the model's noise anew from this seed.
        """
        self._require_weights()
        if seed is not None:
            self._ctx.noise.seed = _checked_seed(seed)
            for array in self._ctx.arrays.values():
                array.times_programmed = array.calls = 0
        for _, array, weight in self._live_weights():
            if not array.spec.is_ideal:
                array.write(weight)

    def drift_to(self, seconds: float) -> None:
        """Bring all tiles to their state ``seconds`` after they were programmed.

        Times may come in any order: a state depends on the programming and the time alone. A weight
        that changes is programmed anew, and its tiles are fresh again, at time 0.

        Args:
            seconds: time after programming [s].

        Raises:
            InputError: no number, or below 0.
            SyncError: a weight changed and ``auto_sync`` is off.
        """
        if not is_number(seconds) or seconds < 0:
            raise InputError(f"drift_to() takes a time >= 0 [s], got {seconds!r}")
        self._require_weights()
        warn_of_time(self.target.device, seconds)
        for _, array, weight in self._live_weights():
            if not array.spec.is_ideal:
                array.drift_to(weight, float(seconds))

    @property
    def auto_sync(self) -> bool:
        """True: a forward programs changed weights by itself. False: it raises SyncError."""
        return self._ctx.auto_sync

    @auto_sync.setter
    def auto_sync(self, value: bool) -> None:
        self._ctx.auto_sync = value
        for array in self._ctx.arrays.values():
            array.auto_sync = value

    # -- converter ranges ------------------------------------------------------------------------

    def calibrate(
        self,
        data: Iterable[Any] | None = None,
        method: str | None = None,
        percentile: float | None = None,
    ) -> int:
        """Choose the calibrated converter ranges from data; returns the number of batches.

        Args:
            data: inputs, each a tensor, a tuple of positional inputs or a dict of keyword inputs;
                default: the data given to compile, or the example inputs.
            method: ``"mse"``, ``"percentile"`` or ``"absmax"``; default: the target's.
            percentile: for ``method="percentile"``.

        Raises:
            InputError: no data, or inputs that do not fit the model.
        """
        how = self.target.calibration
        changes = {"method": method, "percentile": percentile}
        given = {name: value for name, value in changes.items() if value is not None}
        if given:
            values = {"method": how.method, "percentile": how.percentile, **given}
            how = Calibration(**values)  # type: ignore[arg-type]
        self._require_weights()
        if data is not None and self._data is None and not self._has_examples():
            # The graph of the other mode will want it too.
            self.__dict__["_data"] = data = data if isinstance(data, Sequence) else list(data)
        return self._calibrate(self._data if data is None else data, how, only_missing=False)

    def learned_ranges(self) -> dict[str, torch.Tensor]:
        """Input ranges of ``Converter(learned=True)``, ``[R]`` of each layer: leaves to be trained.

        Give them to an optimizer beside the parameters: ``SGD([*compiled.parameters(),
        *compiled.learned_ranges().values()], lr)``. Their gradient comes from the inputs that clip,
        and lets a range shrink while hardly any do. They are no parameters and not in the state
        dict, whose keys are the digital model's; ``save`` keeps them.
        """
        return self._root.get_submodule(f"{HOME}.ranges").learned()  # type: ignore[operator, no-any-return]

    def _has_examples(self) -> bool:
        source = self._source
        return source is not None and is_real((source.args, source.kwargs))

    def _calibrate(self, data: Iterable[Any] | None, how: Calibration, only_missing: bool) -> int:
        signature = self._program.signature
        source = self._source
        if data is None and source is not None and self._has_examples():
            data = Mapped([source.inputs()], cloned)
        elif data is None:
            if only_missing:
                self._unready = is_uncalibrated(self.graph, self._root)
                return 0
            raise InputError(
                "calibrate() needs data: this model has no example inputs with values",
                fix="calibrate([...]) with inputs of the model",
            )
        else:
            data = Mapped(data, as_call)
        batches = Mapped(data, lambda call: signature.flatten(*call))
        count = calibrate(self.graph, self._root, batches, how, only_missing)
        self._unready = False
        return count


def _checked_seed(seed: object) -> int:
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(f"seed must be an int, got {seed!r}")
    return seed
