"""Random numbers: every draw has a key, so a result never depends on threads or on call order.

A key is (seed, stream, counter): the stream names a layer and a purpose, the counter says how
often it was used. The numbers of one key are a function of the key and the shape alone; torch's
CPU generator fills serially, so they are the same for any number of threads.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """Names one draw of random numbers."""

    seed: int
    stream: str
    counter: int

    def generator(self, device: torch.device) -> torch.Generator:
        """Generator on ``device`` in the state that this key stands for."""
        text = f"{self.seed}/{self.stream}/{self.counter}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)

    def normal(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normal numbers of ``shape``, contiguous."""
        return torch.randn(shape, dtype=dtype, device=device, generator=self.generator(device))


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
