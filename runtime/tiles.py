"""Tile arrays: what is programmed into the tiles, and the check that it is still current.

The parameter that the user holds is the truth. A tile array is derived from it and remembers what
it was programmed from; it looks at its source on every call and is programmed again only if that
changed. The operators find their array by key, so a graph needs no Python object in it.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from .compensation import gains, needs_fresh
from .errors import SyncError
from .native.layer import Packed
from .native.loader import library
from .noise import NoiseKey, NoiseSource
from .programming import Conductances, State, combine, conductances_at, state_at
from .spec import LayerSpec
from .stamp import Stamp
from .standin import resolve

FIXED = NoiseKey(0, "stateless", 0)
"""Key of tiles that no live array stands for."""


class Programmed:
    """Content of the tiles of one layer, held once: packed for the native kernels, or plain.

    Args:
        held: the packed weight, or the row blocks: for a linear layer ``[N, K_r]``, for a conv
            ``[N, channels of the block, *kernel]``, zero at the taps of other blocks. Empty if the
            weight is sliced.
        scale: weight scale of each output column, ``[N]``, the drift compensation's gain included.
        key: of the programming noise.
        seconds: time since programming whose state this is.
        chip: key of what differs from chip to chip and is not written.
        gain: digital gain of the drift compensation, ``[N]``; None if there is none.
        slices: row blocks of each bit slice, as ``held``; None if the weight is not sliced.
        significances: digital factor of each slice.
        read_variance: variance of one read of each weight, in units of full scale squared: row
            blocks of each slice, as ``slices``; None without read noise.
    """

    __slots__ = (
        "chip", "gain", "held", "key", "prepared", "read_variance", "scale", "seconds",
        "significances", "slices",
    )  # fmt: skip

    def __init__(
        self,
        held: Packed | tuple[Tensor, ...],
        scale: Tensor,
        key: NoiseKey = FIXED,
        seconds: float = 0.0,
        *,
        chip: NoiseKey = FIXED,
        gain: Tensor | None = None,
        slices: tuple[tuple[Tensor, ...], ...] | None = None,
        significances: tuple[float, ...] = (1.0,),
        read_variance: tuple[tuple[Tensor, ...], ...] | None = None,
    ) -> None:
        self.held = held
        self.scale = scale
        self.key = key
        self.seconds = seconds
        self.chip = chip
        self.gain = gain
        self.slices = slices
        self.significances = significances
        self.read_variance = read_variance
        self.prepared: object = None  # by ``stage``

    @property
    def packed(self) -> Packed | None:
        """The weight in the form of the native kernels, if that is how it is held."""
        return self.held if isinstance(self.held, Packed) else None

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """Effective normalised weight of each row block; made anew if packed or sliced."""
        if self.slices is not None:
            rows = zip(*self.slices, strict=True)
            return tuple(combine(parts, self.significances) for parts in rows)
        if not isinstance(self.held, Packed):
            return self.held
        shape = torch.Size([*self.held.shape])
        if self.held.taps:
            taps = math.prod(self.held.taps)
            shape = torch.Size([shape[0], shape[1] // taps, *self.held.taps])
        return cut(self.held.unpack(), shape, self.held.rows)

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All memory that it takes."""
        held = self.held
        parts = (held.data, held.step) if isinstance(held, Packed) else held
        more = (*(self.slices or ()), *(self.read_variance or ()))
        gain = () if self.gain is None else (self.gain,)
        return (*parts, *chain.from_iterable(more), self.scale, *gain)


def channel_span(start: int, stop: int, taps: int) -> tuple[int, int]:
    """Input channels that flat rows ``start..stop`` of a kernel of ``taps`` taps touch."""
    return start // taps, -(-stop // taps)


def program(
    weight: Tensor,
    spec: LayerSpec,
    key: NoiseKey,
    groups: int | None = None,
    seconds: float = 0.0,
    chip: NoiseKey = FIXED,
) -> Programmed:
    """Write ``weight`` ([N, K] or [N, C, *kernel]) into devices: a function of its arguments.

    Args:
        weight: what to write.
        spec: settings of the layer.
        key: of the programming noise.
        groups: of the layer, to hold the weight packed where that can be; None: plain.
        seconds: after programming.
        chip: key of what differs from chip to chip: faults.
    """
    with torch.no_grad():
        wanted, scale = normalised(weight, spec)
        state = state_at(wanted, spec, key, chip, seconds)
        gain = None
        mode = spec.compensation
        if mode == "exact" or (needs_fresh(mode) and seconds > 0 and spec.device.drifts):
            fresh = wanted if mode == "exact" else state_at(wanted, spec, key, chip, 0.0).total
            gain = gains(mode, state.total, fresh)
        return hold(state, scale, weight.shape, spec, groups, key, seconds, chip, gain)


def normalised(weight: Tensor, spec: LayerSpec) -> tuple[Tensor, Tensor]:
    """What is to be written, ``[N, K]`` in [-1, 1], and the scale of each column, ``[N]``."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    flat = weight.detach().reshape(weight.shape[0], -1).to(dtype)
    if spec.weight_clip is not None:
        flat = spec.weight_clip.apply(flat, spec.weight_scale == "column")
    peak = flat.abs().amax(dim=1) if flat.numel() else flat.new_zeros(flat.shape[0])
    if spec.weight_scale == "tensor":
        peak = peak.max().expand_as(peak).contiguous()
    scale = torch.where(peak > 0, peak, torch.ones_like(peak))
    return flat / scale[:, None], scale


def hold(
    state: State,
    scale: Tensor,
    shape: torch.Size,
    spec: LayerSpec,
    groups: int | None,
    key: NoiseKey = FIXED,
    seconds: float = 0.0,
    chip: NoiseKey = FIXED,
    gain: Tensor | None = None,
) -> Programmed:
    """``state`` as it is held: packed if it is one slice without read noise and can be packed."""
    sliced = state.significances != (1.0,)
    held: Packed | tuple[Tensor, ...] = ()
    if not sliced:
        plain = state.variance is not None
        held = store(state.slices[0], shape, spec, None if plain else groups)
    slices, variance = (
        tuple(cut(part, shape, spec.rows) for part in parts) if parts else None
        for parts in (state.slices if sliced else None, state.variance)
    )
    return Programmed(
        held, scale if gain is None else scale * gain, key, seconds, chip=chip, gain=gain,
        slices=slices, significances=state.significances, read_variance=variance,
    )  # fmt: skip


def store(
    written: Tensor, shape: torch.Size, spec: LayerSpec, groups: int | None
) -> Packed | tuple[Tensor, ...]:
    """The effective normalised weight ``written`` ``[N, K]`` as it is held: packed if it can be."""
    plain = spec.physical or groups is None or written.dtype != torch.float32 or not written.is_cpu
    native = library()
    if not plain and written.numel() and native is not None and native.runs_layers:
        bits = spec.dac.bits if spec.dac else None
        return Packed.pack(written, spec.rows, tuple(shape[2:]), groups or 1, bits)
    return cut(written, shape, spec.rows)


def cut(written: Tensor, shape: torch.Size, rows: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Row blocks of a matrix ``[N, K]``, in the form of a weight of ``shape``."""
    spans = zip(rows, rows[1:], strict=False)
    if len(shape) == 2:
        return tuple(written[:, a:b].contiguous() for a, b in spans)
    return tuple(_conv_block(written, shape, a, b) for a, b in spans)


def join(blocks: tuple[Tensor, ...], shape: torch.Size, spec: LayerSpec) -> Tensor:
    """Row blocks as one matrix ``[N, K]``, the inverse of how they were cut."""
    if len(shape) == 2:
        return torch.cat(blocks, dim=1)
    taps = shape[2:].numel()
    rows = []
    for block, (start, stop) in zip(blocks, spec.blocks, strict=True):
        skip = start // taps * taps
        rows.append(block.flatten(1)[:, start - skip : stop - skip])
    return torch.cat(rows, dim=1)


def _conv_block(written: Tensor, shape: torch.Size, start: int, stop: int) -> Tensor:
    taps = shape[2:].numel()
    first, last = channel_span(start, stop, taps)
    block = written[:, first * taps : last * taps].clone()
    block[:, : start - first * taps] = 0
    block[:, stop - first * taps :] = 0
    return block.view(shape[0], last - first, *shape[2:])


@dataclass(eq=False)
class TileArray:
    """The tiles that hold one weight, and what they were programmed from."""

    name: str
    """Name of the layer, for messages and for the noise stream."""
    key: str
    """Key by which operators find it; unique in the process."""
    spec: LayerSpec
    noise: NoiseSource
    auto_sync: bool = True
    groups: int = 1
    """Of the convolution; 1 for a linear layer."""
    chip: NoiseKey | None = None
    """Key of what differs from chip to chip and stays when a weight is written again; drawn when it
    is first needed."""
    programmed: Programmed | None = None
    times_programmed: int = 0
    calls: int = 0
    _stamp: Stamp | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._read_stream = f"read/{self.name}"
        _ARRAYS[self.key] = self

    def current(self, weight: Tensor) -> Programmed:
        """Content for ``weight``, programmed anew if it changed since the last call.

        Raises:
            SyncError: it changed and ``auto_sync`` is off.
        """
        if self.programmed is not None and self._is_unchanged(weight):
            return self.programmed
        value = resolve(weight)
        now = Stamp(weight, value)
        if self.programmed is not None and self._takes(now):
            return self.programmed
        if self._stamp is not None and not self.auto_sync:
            raise SyncError(
                f"tiles of layer {self.name!r} are stale: {self._stamp.difference(weight)}",
                where=f"layer {self.name}",
                fix="call compiled.sync(), or set compiled.auto_sync = True",
            )
        return self._write(value, now)

    def as_used(self, weight: Tensor) -> Programmed:
        """Content that a forward with ``weight`` used, for its backward.

        It does not look at the content of the weight again: to have its pages watched between a
        forward and a backward would make every training step pay for that.
        """
        if self.programmed is not None and self._stamp is not None and self._stamp.is_of(weight):
            return self.programmed
        return self.current(weight)

    def write(self, weight: Tensor) -> Programmed:
        """Program ``weight`` with fresh programming noise."""
        value = resolve(weight)
        # The stamp comes first: a write that falls in between makes the tiles stale, not current.
        return self._write(value, Stamp(weight, value))

    def _write(self, weight: Tensor, stamp: Stamp) -> Programmed:
        key = self.noise.key(f"program/{self.name}", self.times_programmed)
        if self.chip is None and self.spec.differs_by_chip:
            self.chip = self.noise.key(f"chip/{self.name}", 0)
        self.programmed = program(weight, self.spec, key, self.groups, 0.0, self.chip or FIXED)
        self._stamp = stamp
        self.times_programmed += 1
        return self.programmed

    def drift_to(self, weight: Tensor, seconds: float) -> None:
        """Bring the tiles to their state ``seconds`` after they were programmed, sooner or later.

        The state is computed from the weight and the noise of its programming, so any order of
        times gives the same states, and no second copy of the weight is kept.

        Raises:
            SyncError: the weight changed since and ``auto_sync`` is off.
        """
        held = self.current(weight)
        if self.spec.device.drifts and held.seconds != seconds:
            value = resolve(weight)
            self.programmed = program(value, self.spec, held.key, self.groups, seconds, held.chip)

    def conductances(self, weight: Tensor) -> Conductances:
        """What the devices have now; computed, as no copy is kept.

        Raises:
            SyncError: the weight changed since and ``auto_sync`` is off.
        """
        held = self.current(weight)
        with torch.no_grad():
            wanted, _ = normalised(resolve(weight), self.spec)
            return conductances_at(wanted, self.spec, held.key, held.chip, held.seconds)

    def adopt(self, weight: Tensor, programmed: Programmed) -> None:
        """Take ``programmed`` as what ``weight`` was written as (used when a file is loaded)."""
        self.programmed = programmed
        self._stamp = Stamp(weight)

    def is_current(self, weight: Tensor) -> bool:
        """True if the tiles hold what ``weight`` is now; ideal tiles always do."""
        if self.spec.is_ideal:
            return True
        return self.programmed is not None and (
            self._is_unchanged(weight) or self._takes(Stamp(weight))
        )

    def next_call(self) -> NoiseKey:
        """Key of the output noise of one more call."""
        self.calls += 1
        return self.noise.key(self._read_stream, self.calls - 1)

    def _is_unchanged(self, weight: Tensor) -> bool:
        return self._stamp is not None and self._stamp.matches(weight)

    def _takes(self, now: Stamp) -> bool:
        """Whether the content is the old one in new memory: computed weights, loads, moves."""
        if self._stamp is None or not now.same_content(self._stamp):
            return False
        self._stamp = now
        return True


_ARRAYS: weakref.WeakValueDictionary[str, TileArray] = weakref.WeakValueDictionary()


def find(key: str) -> TileArray | None:
    """Tile array with this key, or None if it is of another process or has been freed."""
    return _ARRAYS.get(key)


def stateless(weight: Tensor, spec: LayerSpec, groups: int = 1) -> Programmed:
    """Content of tiles that no live array stands for: programmed on the spot with a fixed key."""
    return program(resolve(weight), spec, FIXED, groups)
