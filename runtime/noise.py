"""Random numbers: every draw has a key, so a result never depends on threads or on call order.

A key is (seed, stream, counter): the stream names a layer and a purpose, the counter says how
often it was used. The numbers of a draw are a function of the key and of their place in the draw,
from a counter-based generator (``philox``): the same for any number of threads, on any processor.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from . import philox
from .native.loader import library


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """Names one draw of random numbers."""

    seed: int
    stream: str
    counter: int

    @property
    def bits(self) -> int:
        """The 64-bit key of the generator: seed and stream. The counter is part of its counter."""
        return _bits(self.seed, self.stream)

    def normal(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normal numbers of ``shape``, contiguous: a matrix of ``shape[-1]`` columns."""
        columns = shape[-1] if shape else 1
        rows = shape[:-1].numel()
        return self.matrix(0, rows, columns, dtype, device).view(shape)

    def matrix(
        self, block: int, rows: int, columns: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Standard normal numbers for the partial sums of row block ``block``.

        Args:
            block: row block of the layer.
            rows: input vectors; of a convolution all output pixels of all samples.
            columns: output columns, of all groups.
            dtype: of the result; the numbers are float32 ones.
            device: of the result. Away from the CPU they are made there and copied; only the CUDA
                path (``gpu``) makes the same numbers on the device.

        Returns:
            ``[rows, columns]``, contiguous.
        """
        found = _draw(self.bits, block, self.counter, rows, columns)
        return found.to(device, dtype)


@functools.lru_cache(maxsize=4096)
def sub_key(key: NoiseKey, purpose: str) -> NoiseKey:
    """Key of another draw that goes with ``key``, independent of it and of other purposes."""
    return NoiseKey(key.seed, f"{key.stream}/{purpose}", key.counter)


@functools.lru_cache(maxsize=4096)
def _bits(seed: int, stream: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _draw(key: int, block: int, call: int, rows: int, columns: int) -> Tensor:
    """``[rows, columns]`` float32 on the CPU; the same bits from either generator."""
    native = library()
    if native is not None:
        out = torch.empty(rows, columns, dtype=torch.float32, device="cpu")
        native.normals(
            out.data_ptr(), rows, columns, key, block, call & 0xFFFFFFFF, torch.get_num_threads()
        )
        return out
    return torch.from_numpy(philox.normals(key, block, call, rows, columns))


@dataclass(slots=True)
class NoiseSource:
    """Gives out keys. Without a seed each key's seed comes from torch's default generator.

    So ``torch.manual_seed`` controls all noise of a model that was compiled without a seed.
    """

    seed: int | None = None

    def key(self, stream: str, counter: int) -> NoiseKey:
        """Key of draw ``counter`` of ``stream``."""
        if self.seed is not None:
            return NoiseKey(self.seed, stream, counter)
        # The drawn seed is all: the same state of the generator gives the same noise again.
        return NoiseKey(int(torch.randint(0, 2**62, (), device="cpu")), stream, 0)
