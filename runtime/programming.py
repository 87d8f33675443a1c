"""From normalised weights to the devices and back: what a layer's cells hold at a time.

All here are functions of their operands: a state at any time is computed again from the weight and
the keys of its programming and its chip.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .devices import faults
from .noise import NoiseKey, sub_key
from .slicing import flips
from .spec import LayerSpec

_PART = 2**21
"""Weights whose devices are computed at once."""


@dataclass(frozen=True, slots=True)
class Conductances:
    """What the devices of one weight have."""

    values: Tensor
    """``[P, N, K]`` [uS]; of a convolution K is input channels / groups · kernel volume."""
    planes: tuple[str, ...]
    """Name of each of the P device arrays: ``+`` and ``-`` for a pair, numbered if there are
    several devices, with ``slice0/`` and so on before it if the weight is sliced."""
    reference: Tensor | None = None
    """Of an offset cell: ``[P, column blocks, K]`` [uS], the reference columns of each tile."""


@dataclass(frozen=True, slots=True)
class State:
    """What the tiles of one layer stand for, in units of full scale."""

    slices: tuple[Tensor, ...]
    """Effective normalised weight of each bit slice, ``[N, K]``; one if it is not sliced."""
    significances: tuple[float, ...]
    """Digital factor of each slice."""
    variance: tuple[Tensor, ...] | None
    """Variance of one read of each weight, of each slice; None without read noise."""

    @property
    def total(self) -> Tensor:
        """Effective normalised weight ``[N, K]``."""
        return combine(self.slices, self.significances)


def combine(slices: tuple[Tensor, ...], significances: tuple[float, ...]) -> Tensor:
    """Sum of slices with their digital significances."""
    if significances == (1.0,):
        return slices[0]
    first, *rest = (part * c for part, c in zip(slices, significances, strict=True))
    for part in rest:
        first += part
    return first


def state_at(
    weight: Tensor, spec: LayerSpec, key: NoiseKey, chip: NoiseKey, seconds: float
) -> State:
    """State of the tiles that ``weight`` was written into.

    Args:
        weight: normalised, ``[N, K]`` in [-1, 1].
        spec: settings of the layer.
        key: of the programming noise.
        chip: of the faults.
        seconds: after programming.
    """
    targets, significances = slice_targets(weight, spec)
    signs = [_signs(target, spec) for target in targets]
    found = [
        _slice_state(
            _signed(target, sign), spec, _key(key, s, targets), _key(chip, s, targets), seconds
        )
        for s, (target, sign) in enumerate(zip(targets, signs, strict=True))
    ]
    parts, variances = zip(*found, strict=True)
    slices = tuple(_signed(part, sign) for part, sign in zip(parts, signs, strict=True))
    variance = variances if spec.device.reads_noisily else None
    return State(slices, significances, variance)


def slice_targets(weight: Tensor, spec: LayerSpec) -> tuple[tuple[Tensor, ...], tuple[float, ...]]:
    """What each bit slice is to hold, in [-1, 1], and the digital significance of each."""
    if spec.slicing is None:
        return (weight,), (1.0,)
    return spec.slicing.split(weight), spec.slicing.significances


def _signs(target: Tensor, spec: LayerSpec) -> Tensor | None:
    """-1 where a slice's column is written as its complement, ``[N, K]``; None if no slice is."""
    if spec.slicing is None or not spec.slicing.flip:
        return None
    blocks = [flips(target[:, a:b])[:, None].expand(-1, b - a) for a, b in spec.blocks]
    return torch.cat(blocks, dim=1)


def _signed(values: Tensor, signs: Tensor | None) -> Tensor:
    return values if signs is None else values * signs


def conductances_at(
    weight: Tensor, spec: LayerSpec, key: NoiseKey, chip: NoiseKey, seconds: float
) -> Conductances:
    """Conductances of the devices that ``weight`` was written into; operands of ``state_at``."""
    targets, _ = slice_targets(weight, spec)
    values, references, names = [], [], []
    for s, target in enumerate(targets):
        keys = _key(key, s, targets), _key(chip, s, targets)
        written = _signed(target, _signs(target, spec))
        parts = [_Cells(*part, seconds) for part in _parts(written, spec, *keys)]
        values.append(torch.cat([cells.planes for cells in parts], dim=1))
        found = [cells.reference for cells in parts if cells.reference is not None]
        if found:
            references.append(torch.cat(found, dim=1))
        head = f"slice{s}/" if len(targets) > 1 else ""
        names += [head + name for name in spec.cell.planes]
    reference = torch.cat(references) if references else None
    return Conductances(torch.cat(values), tuple(names), reference)


def _key(key: NoiseKey, index: int, slices: tuple[Tensor, ...]) -> NoiseKey:
    return key if len(slices) == 1 else sub_key(key, f"slice{index}")


def _parts(
    weight: Tensor, spec: LayerSpec, key: NoiseKey, chip: NoiseKey
) -> list[tuple[Tensor, LayerSpec, NoiseKey, NoiseKey]]:
    """Whole column blocks to treat one after the other, with their own noise: devices take many
    times the memory of a weight while they are computed."""
    cuts = [0]
    for start, stop in pairwise(spec.cols):
        if start > cuts[-1] and (stop - cuts[-1]) * weight.shape[1] > _PART:
            cuts.append(start)
    if len(cuts) == 1:
        return [(weight, spec, key, chip)]
    parts = []
    for i, (start, stop) in enumerate(pairwise([*cuts, spec.cols[-1]])):
        cols = tuple(c - start for c in spec.cols if start <= c <= stop)
        place = f"part{i}"
        there = dataclasses.replace(spec, cols=cols)
        parts.append((weight[start:stop], there, sub_key(key, place), sub_key(chip, place)))
    return parts


def _slice_state(
    weight: Tensor, spec: LayerSpec, key: NoiseKey, chip: NoiseKey, seconds: float
) -> tuple[Tensor, Tensor | None]:
    device, cell = spec.device, spec.cell
    if not cell.has_conductances:
        held = device.state(weight, seconds, key)
        if not device.reads_noisily:
            return held, None
        return held, device.read_sigma(held, weight, seconds).square_()
    if len(parts := _parts(weight, spec, key, chip)) > 1:
        found = [_slice_state(*part, seconds) for part in parts]
        whole = torch.cat([part for part, _ in found])
        noisy = [part for _, part in found if part is not None]
        return whole, torch.cat(noisy) if noisy else None
    cells = _Cells(weight, spec, key, chip, seconds)
    variance = cells.read_variance() if device.reads_noisily else None
    planes, reference = cells.planes, cells.reference
    if spec.wires is not None:
        cols = spec.cols or (0, weight.shape[0])
        planes, reference = spec.wires.effective(planes, spec.rows, cols, reference)
    return cell.decode(planes, cells.spread(reference)), variance


class _Cells:
    """The device arrays of one slice, at one time."""

    def __init__(
        self, weight: Tensor, spec: LayerSpec, key: NoiseKey, chip: NoiseKey, seconds: float
    ) -> None:
        cell = spec.cell
        self._spec, self._seconds = spec, seconds
        cols = spec.cols or (0, weight.shape[0])
        self._widths = torch.tensor(
            [b - a for a, b in zip(cols, cols[1:], strict=False)], device=weight.device
        )
        self._count = cols[-1]
        self._targets = cell.encode(weight)
        self.planes = self._written(self._targets, key)
        alive = None
        if cell.has_faults:
            # A copy: an ideal device returns the targets themselves.
            planes = faults.stuck(self.planes.clone(), cell, chip)
            self.planes, alive = faults.dead(planes, cell, chip, spec.rows, cols)
        self.reference: Tensor | None = None
        if cell.mode == "offset":
            shape = torch.empty(len(cols) - 1, weight.shape[1], device="meta").shape
            self._middle = cell.encode_reference(weight.new_empty(shape))
            self.reference = self._written(self._middle, sub_key(key, "reference"))
            if alive is not None:
                self.reference = self.reference * alive

    def _written(self, targets: Tensor, key: NoiseKey) -> Tensor:
        device, full = self._spec.device, self._spec.cell.g_max
        if device.units == "uS":
            return device.state(targets, self._seconds, key)
        if device.is_ideal:
            return targets
        return device.state(targets / full, self._seconds, key).clamp(min=0).mul_(full)

    def spread(self, reference: Tensor | None) -> Tensor | None:
        """``[P, column blocks, K]`` of references as ``[P, N, K]``: that of each weight's tile."""
        if reference is None:
            return None
        return reference.repeat_interleave(self._widths, dim=1, output_size=self._count)

    def read_variance(self) -> Tensor:
        """Variance of one read of the normalised weight, ``[N, K]``.

        Noise of a reference column is counted for each of its columns, as if they had one each.
        """
        reference = None
        if self.reference is not None:
            reference = self.spread(self._variance(self.reference, self._middle))
        return self._spec.cell.decode_variance(
            self._variance(self.planes, self._targets), reference
        )

    def _variance(self, planes: Tensor, targets: Tensor) -> Tensor:
        device, full = self._spec.device, self._spec.cell.g_max
        if device.units == "uS":
            sigma = device.read_sigma(planes, targets, self._seconds)
        else:
            sigma = device.read_sigma(planes / full, targets / full, self._seconds).mul_(full)
        # What conducts nothing has no noise.
        return sigma.square_().mul_(planes > 0)
