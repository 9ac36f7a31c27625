"""All randomness of a run, as keyed functions: the same key gives the same bits, whatever was drawn before.

Keys are hashed by Philox-4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so neighbouring
seeds, epochs and steps share nothing. NumPy guarantees the stream of `Philox.random_raw` across its versions.
"""

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What the random bits are for; each purpose has a stream of its own."""

    WINDOW_ORDER = 1
    STEP = 2
    WEIGHTS = 3
    SAMPLE = 4


def random_bits(seed: int, purpose: Purpose, *key: int, n: int = 1) -> NDArray[np.uint64]:
    """`n` words of 64 random bits that depend on the arguments alone; up to three further key words."""
    return np.random.Philox(key=[seed, purpose], counter=[0, *key, *[0] * (3 - len(key))]).random_raw(n)


def normal_generator(seed: int, purpose: Purpose, name: str) -> np.random.Generator:
    """A generator of normal variates of its own for each name."""
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, word, 0, 0]))
