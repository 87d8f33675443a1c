"""Tile arrays: what is programmed into the tiles, and the check that it is still current.

The parameter that the user holds is the truth. A tile array is derived from it and remembers what
it was programmed from; it looks at its source on every call and is programmed again only if that
changed. The operators find their array by key, so a graph needs no Python object in it.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import SyncError
from .native.layer import Packed
from .native.loader import library
from .noise import NoiseKey, NoiseSource
from .spec import LayerSpec
from .stamp import Stamp
from .standin import resolve

_FIXED = NoiseKey(0, "stateless", 0)


class Programmed:
    """Content of the tiles of one layer, held once: packed for the native kernels, or plain.

    Args:
        held: the packed weight, or the row blocks: for a linear layer ``[N, K_r]``, for a conv
            ``[N, channels of the block, *kernel]``, zero at the taps of other blocks.
        scale: weight scale of each output column, ``[N]``.
        key: of the programming noise.
        seconds: time since programming whose state this is.
        slices: ``[S][R]`` row blocks of each weight slice, where a layer is bit-sliced; nothing is
            held beside them.
        read_variance: ``[S][R]`` variances of the read noise, as the blocks.
        significances: of the slices, ``[S]``.
    """

    __slots__ = (
        "held", "key", "prepared", "read_variance", "scale", "seconds", "significances", "slices",
    )  # fmt: skip

    def __init__(
        self,
        held: Packed | tuple[Tensor, ...],
        scale: Tensor,
        key: NoiseKey = _FIXED,
        seconds: float = 0.0,
        slices: tuple[tuple[Tensor, ...], ...] | None = None,
        read_variance: tuple[tuple[Tensor, ...], ...] | None = None,
        significances: tuple[float, ...] = (1.0,),
    ) -> None:
        self.held = held
        self.scale = scale
        self.key = key
        self.seconds = seconds
        self.slices = slices
        self.read_variance = read_variance
        self.significances = significances
        self.prepared: object = None

    @property
    def packed(self) -> Packed | None:
        """The weight in the form of the native kernels, if that is how it is held."""
        return self.held if isinstance(self.held, Packed) else None

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """Effective normalised weight of each row block; unpacked anew on each access if packed."""
        if self.slices is not None:
            return tuple(merged(self.significances, block) for block in zip(*self.slices, strict=True))
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
        if isinstance(self.held, Packed):
            return (self.held.data, self.held.step, self.scale)
        sliced = [*(self.slices or ()), *(self.read_variance or ())]
        return (*self.held, *(block for blocks in sliced for block in blocks), self.scale)


def channel_span(start: int, stop: int, taps: int) -> tuple[int, int]:
    """Input channels that flat rows ``start..stop`` of a kernel of ``taps`` taps touch."""
    return start // taps, -(-stop // taps)


def program(
    weight: Tensor,
    spec: LayerSpec,
    key: NoiseKey,
    groups: int | None = None,
    seconds: float = 0.0,
) -> Programmed:
    """Write ``weight`` ([N, K] or [N, C, *kernel]) into devices: a function of its arguments.

    Args:
        weight: what to write.
        spec: settings of the layer.
        key: of the programming noise.
        groups: of the layer, to hold the weight packed where that can be; None: plain.
        seconds: after programming.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with torch.no_grad():
        flat = weight.detach().reshape(weight.shape[0], -1).to(dtype)
        peak = flat.abs().amax(dim=1) if flat.numel() else flat.new_zeros(flat.shape[0])
        if spec.weight_scale == "tensor":
            peak = peak.max().expand_as(peak).contiguous()
        scale = torch.where(peak > 0, peak, torch.ones_like(peak))
        wanted = flat / scale[:, None]
        if spec.slicing is None:
            held = store(_write(wanted, spec, key, seconds), weight.shape, spec, groups)
            return Programmed(held, scale, key, seconds)
        slices = []
        for s, part in enumerate(spec.slicing.split(wanted)):
            one = NoiseKey(key.seed, f"{key.stream}/slice{s}", key.counter)
            slices.append(cut(_write(part, spec, one, seconds), weight.shape, spec.rows))
        significances = spec.slicing.significances
        return Programmed((), scale, key, seconds, tuple(slices), None, significances)


def _write(wanted: Tensor, spec: LayerSpec, key: NoiseKey, seconds: float) -> Tensor:
    written = spec.device.program(wanted, key)
    if seconds > 0:
        drift_key = NoiseKey(key.seed, f"{key.stream}/drift", key.counter)
        written = spec.device.drift(written, seconds, drift_key)
    return written


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


def merged(significances: tuple[float, ...], slices: tuple[Tensor, ...]) -> Tensor:
    """Effective weight ``sum c_s W_s`` of weight slices."""
    total = slices[0] * significances[0]
    for significance, part in zip(significances[1:], slices[1:], strict=True):
        total.add_(part, alpha=significance)
    return total


def cut(written: Tensor, shape: torch.Size, rows: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Row blocks of a weight ``[N, K]`` of a layer whose weight has ``shape``."""
    spans = zip(rows, rows[1:], strict=False)
    if len(shape) == 2:
        return tuple(written[:, a:b].contiguous() for a, b in spans)
    return tuple(_conv_block(written, shape, a, b) for a, b in spans)


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
        self.programmed = program(weight, self.spec, key, self.groups)
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
            self.programmed = program(value, self.spec, held.key, self.groups, seconds)

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
    return program(resolve(weight), spec, _FIXED, groups)
