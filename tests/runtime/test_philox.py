from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from analogc.runtime import philox

KEY = 0x299F31D0A4093822
Floats = NDArray[np.float32]


def pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def exact(radius_word: NDArray[np.uint32], angle_word: NDArray[np.uint32]) -> list[Floats]:
    """Box-Muller in float64, each quadrant's sine and cosine from a small angle."""
    u = ((radius_word >> 8).astype(np.float64) + 1) / 2**24
    radius = np.sqrt(-2 * np.log(u))
    turns = (angle_word >> 8).astype(np.int64)
    quarter = (turns + 2**21) >> 22
    angle = (turns - (quarter << 22)) * (2 * np.pi / 2**24)
    c, s = np.cos(angle), np.sin(angle)
    quarter &= 3
    cos = np.choose(quarter, [c, -s, -c, s])
    sin = np.choose(quarter, [s, c, -s, -c])
    return [radius * cos, radius * sin]


@pytest.fixture(scope="module")
def sample() -> NDArray[np.float64]:
    """4 million numbers."""
    return philox.normals(KEY, 0, 0, 62_500, 64).astype(np.float64).ravel()


# -- words ----------------------------------------------------------------------------------------

# Random123, tests/kat_vectors: philox4x32 10.
KNOWN = [
    ([0, 0, 0, 0], 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (
        [0xFFFFFFFF] * 4,
        0xFFFFFFFFFFFFFFFF,
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        KEY,
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_words_are_those_of_random123(counter: list[int], key: int, words: list[int]) -> None:
    found = philox.philox4x32_10(np.array(counter, np.uint32)[:, None], key)

    assert found[:, 0].tolist() == words


def test_many_counters_are_many_single_ones() -> None:
    rng = np.random.default_rng(0)
    counter = rng.integers(0, 2**32, (4, 300), dtype=np.uint32)

    found = philox.philox4x32_10(counter, KEY)

    single = [philox.philox4x32_10(counter[:, i : i + 1], KEY)[:, 0] for i in range(300)]
    assert np.array_equal(found, np.stack(single, axis=1))


# -- Box-Muller -----------------------------------------------------------------------------------


def test_normals_are_a_few_ulp_from_exact_ones() -> None:
    # Every radius once and every angle once, in different orders.
    words = np.arange(2**24, dtype=np.uint32) << np.uint32(8)
    worst, square = 0.0, 0.0
    for part in np.split(np.arange(2**24), 16):
        radius, angle = words[part], words[(part * 9_999_991 + 5) % 2**24]
        for found, true in zip(philox.box_muller(radius, angle), exact(radius, angle), strict=True):
            error = np.abs(found - true) / np.spacing(np.abs(true).astype(np.float32))
            error[true == 0] = np.abs(found[true == 0])
            worst, square = max(worst, float(error.max())), square + float((error**2).mean()) / 32

    assert worst < 3.2
    assert math.sqrt(square) < 0.6


def test_extreme_words_give_finite_numbers() -> None:
    ends = np.array([0, 255, 256, 2**23, 2**31 - 1, 2**31, 2**32 - 257, 2**32 - 1], np.uint32)
    radius, angle = (w.ravel() for w in np.meshgrid(ends, ends))

    z = np.concatenate(philox.box_muller(radius, angle))

    assert np.isfinite(z).all()
    # The largest number there is: sqrt(2 ln 2^24).
    assert abs(z).max() == np.float32(math.sqrt(48 * math.log(2)))


# -- the matrix of a row block --------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 16, 17, 32, 33, 64, 65, 200])
def test_each_number_is_that_of_the_contract(columns: int) -> None:
    rows, block_row, call = 5, 3, 2**32 + 9
    width = {1: 16, 16: 16, 17: 32, 32: 32, 33: 64, 64: 64, 65: 128, 200: 256}[columns]

    found = philox.normals(KEY, block_row, call, rows, columns)

    assert philox.width(columns) == width
    for m, n in [(0, 0), (0, columns - 1), (4, 0), (4, columns - 1), (2, columns // 2)]:
        e = m * width + n
        counter = np.array([[e // 64 * 16 + e % 16], [0], [block_row], [9]], np.uint32)
        words = philox.philox4x32_10(counter, KEY)
        number = e % 64 // 16
        pair = philox.box_muller(words[number & 2], words[(number & 2) + 1])
        assert found[m, n] == pair[number & 1][0]


def test_rows_do_not_depend_on_the_part_they_are_made_in() -> None:
    for columns in (10, 20, 100):
        whole = philox.normals(KEY, 1, 2, 50, columns)
        parts = [philox.normals(KEY, 1, 2, 7, columns, first) for first in range(0, 49, 7)]
        assert np.array_equal(whole[:49], np.concatenate(parts))


def test_numbers_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = philox.normals(KEY, 0, 0, 300, 70)
    monkeypatch.setattr(philox, "_GROUPS", 7)

    assert np.array_equal(philox.normals(KEY, 0, 0, 300, 70), whole)


def test_counter_reaches_beyond_32_bits() -> None:
    # Block number 2^32 is row 2^30 of a matrix of 16 columns.
    far = philox.normals(KEY, 0, 0, 4, 16, 2**30)

    words = philox.philox4x32_10(np.array([[0], [1], [0], [0]], np.uint32), KEY)
    assert far[0, 0] == philox.box_muller(words[0], words[1])[0][0]
    assert not np.array_equal(far, philox.normals(KEY, 0, 0, 4, 16))


def test_empty_matrices() -> None:
    assert philox.normals(KEY, 0, 0, 0, 5).shape == (0, 5)
    assert philox.normals(KEY, 0, 0, 5, 0).shape == (5, 0)


# -- distribution ---------------------------------------------------------------------------------


def test_moments_are_those_of_a_standard_normal(sample: NDArray[np.float64]) -> None:
    # Standard errors of the estimates for normal samples; 4 sigma.
    n = sample.size
    assert abs(sample.mean()) < 4 / math.sqrt(n)
    assert abs(sample.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(stats.skew(sample)) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(sample)) < 4 * math.sqrt(24 / n)


def test_distribution_is_normal(sample: NDArray[np.float64]) -> None:
    assert stats.kstest(sample[:1_000_000], "norm").pvalue > 1e-3


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 4.5])
def test_tails_have_their_probability(sample: NDArray[np.float64], limit: float) -> None:
    probability = 2 * stats.norm.sf(limit)
    expected = sample.size * probability

    found = int((np.abs(sample) > limit).sum())

    assert abs(found - expected) < 4 * math.sqrt(expected) + 1


@pytest.mark.parametrize("lag", [1, 2, 15, 16, 17, 32, 48, 64, 1024])
def test_neighbours_are_independent(sample: NDArray[np.float64], lag: int) -> None:
    a, b = sample[:-lag], sample[lag:]
    # Products of independent standard normals have variance 1; those of squares minus 1 have 4.
    assert abs((a * b).mean()) < 4.5 / math.sqrt(a.size)
    assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 4.5 * 2 / math.sqrt(a.size)


def test_keys_calls_and_row_blocks_are_independent() -> None:
    draws = [(KEY, 0, 0), (KEY + 1, 0, 0), (KEY + 2**32, 0, 0), (KEY, 1, 0), (KEY, 0, 1),
             (KEY, 1, 1), (0, 0, 0), (1, 0, 0)]  # fmt: skip
    numbers = np.stack([philox.normals(*d, 2000, 100).ravel() for d in draws]).astype(np.float64)

    for values in (numbers, numbers**2):
        found = np.corrcoef(values) - np.eye(len(draws))
        assert abs(found).max() < 4.5 / math.sqrt(numbers.shape[1])


# -- the same bits in C++ -------------------------------------------------------------------------


def test_words_equal_those_of_cpp(scalar_library: ctypes.CDLL) -> None:
    counter = np.random.default_rng(1).integers(0, 2**32, (4, 1000), dtype=np.uint32)
    found = np.empty_like(counter)

    scalar_library.philox_words(
        pointer(counter), pointer(found), ctypes.c_long(1000),
        ctypes.c_uint(KEY & 0xFFFFFFFF), ctypes.c_uint(KEY >> 32),
    )  # fmt: skip

    assert np.array_equal(found, philox.philox4x32_10(counter, KEY))


def test_box_muller_equals_that_of_cpp(scalar_library: ctypes.CDLL) -> None:
    words = np.arange(2**24, dtype=np.uint32) << np.uint32(8)
    angle = np.random.default_rng(2).permutation(words)
    z0, z1 = np.empty((2, words.size), np.float32)

    scalar_library.normal_pairs(
        pointer(words), pointer(angle), pointer(z0), pointer(z1), ctypes.c_long(words.size)
    )

    expected = philox.box_muller(words, angle)
    for found, numpy_s in zip((z0, z1), expected, strict=True):
        assert np.array_equal(found.view(np.int32), numpy_s.view(np.int32))


# -- converters in C++ ----------------------------------------------------------------------------

SPECIAL = [0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 126.5, 127.5, 1e30, -1e30, math.inf, -math.inf,
           math.nan, 1e-40, 0.49999997]  # fmt: skip


@pytest.mark.parametrize("levels", [1, 7, 127, 32767])
def test_dac_equals_torchs_round_and_clamp(scalar_library: ctypes.CDLL, levels: int) -> None:
    noise = np.random.default_rng(3).normal(size=1000) * levels
    x = np.concatenate([SPECIAL, noise]).astype(np.float32)
    for steps in (1.0, 3.7):
        found = np.empty_like(x)
        scalar_library.dac_codes(
            pointer(x), pointer(found), ctypes.c_long(x.size), ctypes.c_float(steps),
            ctypes.c_float(levels),
        )  # fmt: skip
        expected = (torch.from_numpy(x) * steps).round().clamp(-levels, levels)
        assert np.array_equal(found, expected.numpy(), equal_nan=True)


def test_adc_equals_torchs_round_and_clamp(scalar_library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(4)
    p = np.concatenate([SPECIAL, rng.normal(size=1000) * 300]).astype(np.float32)
    z = rng.normal(size=p.size).astype(np.float32)
    found, inside = np.empty_like(p), np.empty(p.size, np.bool_)

    scalar_library.adc_codes(
        pointer(p), pointer(z), pointer(found), pointer(inside), ctypes.c_long(p.size),
        ctypes.c_float(0.5), ctypes.c_float(1.5), ctypes.c_float(127),
    )  # fmt: skip

    # 0.5 p is exact, so the fma is one rounding of an exact product and a float64 sum.
    t = (p.astype(np.float64) * 0.5 + z.astype(np.float64) * 1.5).astype(np.float32)
    assert np.array_equal(found, np.clip(np.rint(t), -127, 127), equal_nan=True)
    assert np.array_equal(inside, np.abs(t) <= 127)
