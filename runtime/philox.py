"""Standard normal numbers from Philox4x32-10, in NumPy: the bits of the native kernels.

The noise of row block r in call c of a layer is a matrix ``[rows, columns]``; its numbers depend on
(key, r, c, place in the matrix) alone, so not on threads, chunks or processor. In memory a row is
``width(columns)`` wide; flat element ``e`` comes from Philox block ``e // 64 * 16 + e % 16``: it is
normal number ``e % 64 // 16`` of the block's four. So 16 SIMD lanes make 64 numbers in a row.

Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox, Random123);
Box and Muller 1958. ``native/scalar.h`` has the same operations in the same order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_FACTORS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
_LOG = [-0.07634493, 0.12761575, -0.13160183, 0.14201759, -0.16623357, 0.20001227, -0.2500082,
        0.33333331]  # fmt: skip
_SIN = [-75.4534, 81.593941, -41.341675, -1.7484555e-7]
_TURN = np.float32(6.2831855)
"""2 pi; what float32 cuts off is the last of ``_SIN``."""
_COS = [59.245964, -85.443741, 64.939323, -19.739208, 1.0]
_GROUPS = 1024
"""Groups of 64 numbers made at a time: what fits a core's cache."""


def width(columns: int) -> int:
    """Elements that a row of ``columns`` numbers takes of the counter."""
    return 16 if columns <= 16 else 32 if columns <= 32 else -(-columns // 64) * 64


def philox4x32_10(counter: NDArray[np.uint32], key: int) -> NDArray[np.uint32]:
    """Random words ``[4, n]`` of 128-bit counters ``[4, n]`` (word 0 the lowest), 64-bit key."""
    wide = counter.astype(np.uint64)
    radius, angle = _rounds(wide[0::2].copy(), wide[1::2].copy(), key)
    words = np.empty(counter.shape, np.uint32)
    words[0::2], words[1::2] = radius & _LOW, angle & _LOW
    return words


def _rounds(
    even: NDArray[np.uint64], odd: NDArray[np.uint64], key: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The ten rounds on words 0 and 2 (``even``) and 1 and 3 (``odd``), ``[2, n]`` each.

    Words are the lower halves of 64-bit lanes: what a round leaves in the upper halves is ignored.
    """
    keys = np.array([[key & 0xFFFFFFFF], [key >> 32 & 0xFFFFFFFF]], np.uint64)
    product = np.empty_like(even)
    for _ in range(10):
        even &= _LOW
        np.multiply(even, _FACTORS, out=product)
        swapped = product[::-1]
        np.right_shift(swapped, _HALF, out=even)
        even ^= odd
        even ^= keys
        # The old odd words are not needed any more: the next product goes there.
        odd, product = swapped, odd
        keys = (keys + _WEYL) & _LOW
    return even, odd


def _polynomial(coefficients: list[float], x: NDArray[np.float32]) -> NDArray[np.float32]:
    value = x * np.float32(coefficients[0])
    for coefficient in coefficients[1:-1]:
        value += np.float32(coefficient)
        value *= x
    value += np.float32(coefficients[-1])
    return value


def box_muller(
    radius_word: NDArray[np.uint32], angle_word: NDArray[np.uint32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two independent standard normal numbers from the top 24 bits of two random words.

    ``sqrt(-2 ln u) cos(2 pi v)`` and ``... sin(2 pi v)`` with ``u`` in (0, 1]: at most 5.77 sigma.
    Each is within 3.2 ulp of the exact value, 0.6 ulp in the root mean square.
    """
    # ln u, where u = n / 2^24 = 2^e (1 + f) with f in [sqrt(1/2) - 1, sqrt(2) - 1).
    n = ((radius_word >> 8).astype(np.int32) + np.int32(1)).astype(np.float32)
    shifted = n.view(np.int32) - np.int32(0x4B3504F3)
    e = (shifted >> 23).astype(np.float32)
    shifted &= np.int32(0x007FFFFF)
    shifted += np.int32(0x3F3504F3)
    f = shifted.view(np.float32)
    f -= np.float32(1)
    ff = f * f
    ln = _polynomial(_LOG, f)
    ln *= f
    ln *= ff
    ln += e * np.float32(-2.12194440e-4)
    ff *= np.float32(-0.5)
    ln += ff
    ln += f
    e *= np.float32(0.693359375)
    ln += e
    ln *= np.float32(-2)
    radius = np.sqrt(ln, out=ln)
    # Angle: the nearest quarter turn, and t in [-1/8, 1/8) turns from there.
    turns = (angle_word >> 8).astype(np.int32)
    turns += np.int32(0x200000)
    t = ((turns & np.int32(0x3FFFFF)) - np.int32(0x200000)).astype(np.float32)
    t *= np.float32(2.0**-24)
    tt = t * t
    s = _polynomial(_SIN, tt)
    s += _TURN
    s *= t
    c = _polynomial(_COS, tt)
    # Quarter q of the turn: (c, s), (-s, c), (-c, -s), (s, -c).
    cos, sin = c.view(np.int32), s.view(np.int32)
    swap = (turns << 9) >> 31
    swap &= cos ^ sin
    cos ^= swap
    sin ^= swap
    sign = np.int32(-0x80000000)
    cos ^= ((turns + np.int32(0x400000)) << 8) & sign
    sin ^= (turns << 8) & sign
    c *= radius
    s *= radius
    return c, s


def normals(
    key: int, block_row: int, call: int, rows: int, columns: int, first_row: int = 0
) -> NDArray[np.float32]:
    """Noise of rows ``first_row ..`` of row block ``block_row``, ``[rows, columns]``.

    Args:
        key: 64 bits that name the layer.
        block_row: row block.
        call: how often the layer was called before; its lower 32 bits count.
        rows: input vectors (convolutions: output pixels of all samples, in NHWC order).
        columns: output columns.
        first_row: of the matrix, where a caller makes it in parts.
    """
    wide = width(columns)
    start, stop = first_row * wide, (first_row + rows) * wide
    first, last = start // 64, -(-stop // 64)
    flat = np.empty((last - first, 64), np.float32)
    for group in range(first, last, _GROUPS):
        upto = min(group + _GROUPS, last)
        _fill(flat[group - first : upto - first], key, block_row, call, group)
    matrix = flat.reshape(-1)[start - first * 64 : stop - first * 64].reshape(rows, wide)
    return np.ascontiguousarray(matrix[:, :columns])


def _fill(out: NDArray[np.float32], key: int, block_row: int, call: int, first_group: int) -> None:
    """Fill ``[groups, 64]`` with numbers ``64 * first_group ..`` of a noise matrix."""
    block = np.arange(16 * first_group, 16 * (first_group + len(out)), dtype=np.uint64)
    even, odd = np.empty((2, 2, block.size), np.uint64)
    even[0], even[1] = block, block_row
    odd[0], odd[1] = block >> _HALF, call & 0xFFFFFFFF
    even, odd = _rounds(even, odd, key)
    lanes = out.reshape(-1, 2, 2, 16).transpose(2, 1, 0, 3)
    pair = box_muller(even.astype(np.uint32), odd.astype(np.uint32))
    for place, numbers in zip(lanes, pair, strict=True):
        place[...] = numbers.reshape(place.shape)
