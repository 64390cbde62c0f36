"""Philox 4x32-10, a counter-based random number generator (Salmon et al., SC 2011), vectorised.

No state: the number for (seed, position) is a function of the two, whatever was drawn before or beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
MASK = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
ROUNDS = 10

Words = npt.NDArray[np.uint64]


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, ...]:
    """Ten rounds over arrays of 32-bit words (held in uint64)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        low, high = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (high >> HALF) ^ c1 ^ k0, high & MASK, (low >> HALF) ^ c3 ^ k1, low & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def uniform(seeds: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) with 53 random bits for each (seed, position). Seeds are taken modulo 2**64."""
    seed = np.array([s & (2**64 - 1) for s in seeds], np.uint64)
    position = np.array(positions, np.uint64)
    zero = np.zeros_like(position)
    words = philox((position & MASK, position >> HALF, zero, zero), (seed & MASK, seed >> HALF))
    bits = (words[0] >> np.uint64(5)) * np.uint64(2**26) + (words[1] >> np.uint64(6))
    return bits.astype(np.float64) / 2.0**53  # type: ignore[no-any-return]
