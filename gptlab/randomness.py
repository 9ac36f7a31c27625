"""All randomness of a run, as keyed functions: the same key gives the same bits, whatever was drawn before.

Keys are hashed by Philox-4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so neighbouring
seeds, epochs and steps share nothing. NumPy guarantees Philox's bits across its versions, but not the normal variates
made from them: golden values in the tests watch those.
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
    return _philox(seed, purpose, *key).random_raw(n)


def normal_generator(seed: int, purpose: Purpose, name: str) -> np.random.Generator:
    """A generator of normal variates of its own for each name."""
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    return np.random.Generator(_philox(seed, purpose, word))


def _philox(seed: int, purpose: Purpose, *key: int) -> np.random.Philox:
    counter = [0, *key, *[0] * (3 - len(key))]
    # As uint64 from the start: a list with a word of 2**63 or more would pass through float64 and lose its last bits.
    return np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=np.array(counter, np.uint64))
