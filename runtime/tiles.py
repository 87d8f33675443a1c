"""Tile arrays: what is programmed into the tiles, and the check that it is still current.

The parameter that the user holds is the truth. A tile array is derived from it and remembers what
it was programmed from; it looks at its source on every call and is programmed again only if that
changed. The operators find their array by key, so a graph needs no Python object in it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import SyncError
from .noise import NoiseKey, NoiseSource
from .spec import LayerSpec
from .stamp import Stamp
from .standin import resolve


@dataclass(frozen=True, slots=True)
class Programmed:
    """Content of the tiles of one layer."""

    blocks: tuple[Tensor, ...]
    """Effective normalised weight of each row block. linear: ``[N, K_r]``. conv:
    ``[N, channels of the block, *kernel]``, zero at the taps of other blocks."""
    scale: Tensor
    """Weight scale of each output column, ``[N]``."""


def channel_span(start: int, stop: int, taps: int) -> tuple[int, int]:
    """Input channels that flat rows ``start..stop`` of a kernel of ``taps`` taps touch."""
    return start // taps, -(-stop // taps)


def program(weight: Tensor, spec: LayerSpec, key: NoiseKey) -> Programmed:
    """Write ``weight`` ([N, K] or [N, C, *kernel]) into devices: a function of its arguments."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with torch.no_grad():
        flat = weight.detach().reshape(weight.shape[0], -1).to(dtype)
        peak = flat.abs().amax(dim=1) if flat.numel() else flat.new_zeros(flat.shape[0])
        if spec.weight_scale == "tensor":
            peak = peak.max().expand_as(peak).contiguous()
        scale = torch.where(peak > 0, peak, torch.ones_like(peak))
        written = spec.device.program(flat / scale[:, None], key)
        if weight.dim() == 2:
            blocks = tuple(written[:, a:b].contiguous() for a, b in spec.blocks)
        else:
            blocks = tuple(_conv_block(written, weight.shape, a, b) for a, b in spec.blocks)
    return Programmed(blocks, scale)


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
    programmed: Programmed | None = None
    times_programmed: int = 0
    calls: int = 0
    _stamp: Stamp | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
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

    def write(self, weight: Tensor) -> Programmed:
        """Program ``weight`` with fresh programming noise."""
        value = resolve(weight)
        # The stamp comes first: a write that falls in between makes the tiles stale, not current.
        return self._write(value, Stamp(weight, value))

    def _write(self, weight: Tensor, stamp: Stamp) -> Programmed:
        key = self.noise.key(f"program/{self.name}", self.times_programmed)
        self.programmed = program(weight, self.spec, key)
        self._stamp = stamp
        self.times_programmed += 1
        return self.programmed

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
        return self.noise.key(f"read/{self.name}", self.calls - 1)

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


def stateless(weight: Tensor, spec: LayerSpec) -> Programmed:
    """Content of tiles that no live array stands for: programmed on the spot with a fixed key."""
    return program(resolve(weight), spec, NoiseKey(0, "stateless", 0))
