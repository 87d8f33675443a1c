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
    key = NoiseKey(1, "read", 0)
    digest = hashlib.blake2b(b"1/read/0", digest_size=8).digest()
    seed = int.from_bytes(digest, "little") // 2

    assert seed == 4547446273067742816
    expected = torch.randn(9, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(draw(key, 9), expected)


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
