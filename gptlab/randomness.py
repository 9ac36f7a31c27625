"""All randomness of a run, as keyed functions: the same key gives the same bits, whatever was drawn before.

Keys are hashed by Philox-4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so neighboring
seeds, epochs and steps give independent bits. NumPy guarantees Philox's bits across versions, but not the normal
variates computed from them: golden values in the tests check those.
"""

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What random bits are used for; each purpose has its own stream."""

    WINDOW_ORDER = 1
    STEP = 2
    WEIGHTS = 3
    SAMPLE = 4


def random_bits(seed: int, purpose: Purpose, *key: int, n: int = 1) -> NDArray[np.uint64]:
    """Return `n` random 64-bit words, `(n,)`, which depend on the arguments only; `key` has at most three words."""
    return _philox(seed, purpose, *key).random_raw(n)


def normal_generator(seed: int, purpose: Purpose, name: str) -> np.random.Generator:
    """Return a generator for normal variates that depends on seed, purpose and name only."""
    return np.random.Generator(_philox(seed, purpose, name_word(name)))


def name_word(name: str) -> int:
    """Return a 64-bit word for a name, as a part of a key."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])


def _philox(seed: int, purpose: Purpose, *key: int) -> np.random.Philox:
    counter = [0, *key, *[0] * (3 - len(key))]
    # uint64 arrays, because a list with a word of 2**63 or more would pass through float64 and lose its low bits.
    return np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=np.array(counter, np.uint64))
