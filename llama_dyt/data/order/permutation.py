"""Orders of n things that are computed, not stored: number k of the shuffled order is a function of n, a seed and k.

This arithmetic must never change: a run resumed years later asks it for the same order.
"""

from __future__ import annotations

import hashlib

import numpy as np

_ROUNDS = (
    8  # even, so that both halves end where they began; twice what a balanced Feistel network needs to look random
)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # SplitMix64's finalizer (Steele 2014)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


class Permutation:
    """A seeded permutation of range(n), as an array function.

    A Feistel network over the next power of two, walked along its cycles back into range(n) (Black and Rogaway 2002):
    a bijection whatever the round function, in constant memory.

    Args:
        n: how many things, at least 0 and at most 2**62.
        key: what the order depends on besides n: numbers and texts, such as a seed, a source's name and an epoch.
    """

    def __init__(self, n: int, *key: int | str):
        if not 0 <= n <= 2**62:
            raise ValueError(f"a permutation of {n} things; there can be 0 to 2**62")
        self.n = n
        bits = max(n - 1, 0).bit_length()
        self._widths = (bits // 2, bits - bits // 2)
        digest = hashlib.shake_256(repr(key).encode()).digest(8 * _ROUNDS)
        self._keys = np.frombuffer(digest, "<u8").astype(np.uint64)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Where each of `numbers` (integers in range(n), any shape) stands in the order, int64, of the same shape."""
        numbers = np.asarray(numbers)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < self.n):
            raise IndexError(f"numbers from {numbers.min()} to {numbers.max()} in an order of {self.n}")
        values = self._encipher(numbers.astype(np.uint64).ravel())
        outside = np.flatnonzero(values >= self.n)
        while outside.size:
            values[outside] = self._encipher(values[outside])
            outside = outside[values[outside] >= self.n]
        return values.astype(np.int64).reshape(numbers.shape)

    def _encipher(self, values: np.ndarray) -> np.ndarray:
        left_width, right_width = self._widths
        left, right = values >> np.uint64(right_width), values & _mask(right_width)
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & _mask(left_width))
            left_width, right_width = right_width, left_width
        return (left << np.uint64(right_width)) | right


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> _SHIFTS[0])) * _MULTIPLIERS[0]
    values = (values ^ (values >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return values ^ (values >> _SHIFTS[2])
