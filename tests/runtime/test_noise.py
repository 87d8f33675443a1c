from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]

from analogc.runtime.noise import NoiseKey, NoiseSource

CPU = torch.device("cpu")


def draw(key: NoiseKey, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return key.normal(torch.Size(shape), dtype, CPU)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_key_gives_the_same_numbers_each_time() -> None:
    key = NoiseKey(3, "read/fc", 7)
    first = draw(key, 100)

    torch.manual_seed(99)
    torch.randn(5)

    assert torch.equal(draw(NoiseKey(3, "read/fc", 7), 100), first)


def test_drawing_leaves_the_default_generator_alone() -> None:
    before = torch.get_rng_state()

    draw(NoiseKey(0, "a", 0), 1000)
    NoiseSource(0).key("a", 1)

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 40_001, 300_000])
def test_numbers_do_not_depend_on_the_number_of_threads(size: int, threads: None) -> None:
    found = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        found.append(draw(NoiseKey(1, "read", 0), size))

    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_numbers_are_the_same_in_another_process_and_release() -> None:
    # Stored, and by a formula of its own: a change of meaning would change users' results.
    key = NoiseKey(1, "read", 3)
    digest = hashlib.blake2b(b"1/read", digest_size=8).digest()

    assert key.bits == int.from_bytes(digest, "little") == 0x847E009FF8D88382
    expected = [0.6373203992843628, -1.0200974941253662, 0.6967096328735352, -0.5454012155532837]
    assert draw(key, 4).tolist() == expected


def test_calls_of_a_stream_share_its_key_and_differ_in_the_counter() -> None:
    first, second = NoiseKey(1, "read", 0), NoiseKey(1, "read", 1)

    assert first.bits == second.bits
    assert not torch.equal(draw(first, 100), draw(second, 100))


def test_shapes_are_read_as_a_matrix_of_their_last_dim() -> None:
    key = NoiseKey(1, "read", 0)

    assert torch.equal(draw(key, 2, 3, 5), draw(key, 6, 5).view(2, 3, 5))
    assert torch.equal(draw(key), draw(key, 1, 1).view(()))
    assert torch.equal(draw(key, 6, 5), key.matrix(0, 6, 5, torch.float32, CPU))


def test_row_blocks_have_numbers_of_their_own() -> None:
    key = NoiseKey(1, "read", 0)
    blocks = np.stack([key.matrix(r, 500, 100, torch.float32, CPU).numpy() for r in range(4)])

    found = np.corrcoef(blocks.reshape(4, -1)) - np.eye(4)

    assert abs(found).max() < 5 / np.sqrt(50_000)


KEYS = [
    NoiseKey(0, "read/a", 0),
    NoiseKey(1, "read/a", 0),
    NoiseKey(-1, "read/a", 0),
    NoiseKey(0, "read/b", 0),
    NoiseKey(0, "program/a", 0),
    NoiseKey(0, "read/a", 1),
    NoiseKey(0, "read/a/1", 0),
    NoiseKey(2**62, "read/a", 0),
]


def test_distinct_keys_are_uncorrelated() -> None:
    count = 100_000
    draws = np.stack([draw(key, count, dtype=torch.float64).numpy() for key in KEYS])

    found = np.corrcoef(draws)

    pairs = [abs(found[i, j]) for i, j in itertools.combinations(range(len(KEYS)), 2)]
    # Correlation of independent draws has standard deviation 1/sqrt(n); 28 pairs, 5 sigma.
    assert max(pairs) < 5 / np.sqrt(count)


def test_numbers_are_standard_normal() -> None:
    # Eight keys of 50 000 numbers each: moments within 5 standard errors, KS at 0.1 %.
    numbers = np.concatenate([draw(key, 50_000, dtype=torch.float64).numpy() for key in KEYS])
    n = len(numbers)

    assert abs(numbers.mean()) < 5 / np.sqrt(n)
    assert abs(numbers.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs(stats.skew(numbers)) < 5 * np.sqrt(6 / n)
    assert abs(stats.kurtosis(numbers)) < 5 * np.sqrt(24 / n)
    assert stats.kstest(numbers, "norm").pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_have_the_asked_shape_and_dtype(dtype: torch.dtype) -> None:
    numbers = draw(NoiseKey(0, "a", 0), 2, 0, 3, dtype=dtype)

    assert (numbers.shape, numbers.dtype) == (torch.Size([2, 0, 3]), dtype)


def test_a_seeded_source_names_its_keys() -> None:
    assert NoiseSource(5).key("read/fc", 2) == NoiseKey(5, "read/fc", 2)


def test_a_source_without_seed_follows_manual_seed() -> None:
    source = NoiseSource()

    torch.manual_seed(42)
    first = [source.key("a", 0), source.key("a", 1)]
    torch.manual_seed(42)
    again = [source.key("a", 0), source.key("a", 1)]
    torch.manual_seed(43)
    other = source.key("a", 0)

    assert first == again
    assert first[0].seed != first[1].seed
    assert other != first[0]
