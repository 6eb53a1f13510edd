"""Counter-based randomness: every draw is a hash of what it is for, never of what was drawn before.

SplitMix64 in fixed 64-bit arithmetic instead of numpy.random, whose streams may change between
versions (Steele, Lea and Flood 2014; the constants are Stafford's variant 13).
"""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]

_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_FLOAT_BITS = np.uint64(11)  # 64 - 53: what a float64 cannot hold


class Purpose(IntEnum):
    """What a draw is for; the numbers are part of every run's definition."""

    CROP = 1
    FLIP = 2
    DEPTH = 3
    MIXUP = 4
    RANDAUGMENT = 5


def mix(words: Words) -> Words:
    """The SplitMix64 finaliser, a bijection of 64-bit words, elementwise."""
    with np.errstate(over="ignore"):
        words = (words ^ (words >> _SHIFTS[0])) * _FIRST
        words = (words ^ (words >> _SHIFTS[1])) * _SECOND
        return words ^ (words >> _SHIFTS[2])


def words(value: ArrayLike) -> Words:
    """Integers as 64-bit words; negative ones wrap."""
    return np.asarray(value).astype(np.uint64)


def uniforms(
    seed: int, counters: ArrayLike, purpose: Purpose, num_draws: int
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) of shape (n, num_draws) for counters (n,): positions or steps."""
    with np.errstate(over="ignore"):
        key = mix(words(seed) + mix(words(int(purpose))))
        base = mix(mix(words(counters)) + key)
        drawn = mix(base[:, None] + mix(np.arange(1, num_draws + 1, dtype=np.uint64)))
    return (drawn >> _FLOAT_BITS).astype(np.float64) * 2.0**-53


def permute(values: ArrayLike, size: ArrayLike, bound: int, key: Words) -> NDArray[np.int64]:
    """A keyed bijection of [0, size), elementwise, for sizes up to `bound`.

    Four Feistel rounds permute the even power of two above `bound`; a value that lands outside
    [0, size) is permuted again until it is inside.
    """
    current, limits, keys = np.broadcast_arrays(words(values), words(size), key)
    current = current.copy()
    half = np.uint64((max(bound - 1, 1).bit_length() + 1) // 2)
    todo = np.flatnonzero(limits > 1)
    while todo.size:
        current[todo] = _feistel(current[todo], half, keys[todo])
        todo = todo[current[todo] >= limits[todo]]
    return current.astype(np.int64)


def _feistel(values: Words, half: np.uint64, keys: Words) -> Words:
    mask = np.uint64((1 << int(half)) - 1)
    left, right = values >> half, values & mask
    with np.errstate(over="ignore"):
        for turn in range(4):
            left, right = right, left ^ (mix(right + mix(keys + np.uint64(turn))) & mask)
    return (left << half) | right
