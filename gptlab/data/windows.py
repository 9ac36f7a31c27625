"""Which windows of the text batch t holds: a pure function of (seed, t).

A window is `sequence_length` + 1 consecutive tokens: the inputs, and the same moved on by one as targets. Each epoch
visits every one of its (N − T) // T windows once; windows are numbered through all epochs, so a batch may straddle two.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from gptlab.data.tokens import Split
from gptlab.errors import BadInputError
from gptlab.randomness import Purpose, random_bits
from gptlab.spec import canonical_json

FEISTEL_ROUNDS = 6
STEPS_AT_ONCE = 64
"""One step's windows cost as much to order as those of so many."""


@dataclass(frozen=True)
class Windows:
    """The training windows in their order; `tokens` has shape `(N,)`."""

    tokens: NDArray[np.uint16]
    sequence_length: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse a text that is too short.

        Raises:
            BadInputError: There is not a single window.
        """
        if self.per_epoch < 1:
            longest = len(self.tokens) // 2
            raise BadInputError(
                f"the training part of the text has {len(self.tokens):,} tokens, but sequence_length "
                f"{self.sequence_length} needs {2 * self.sequence_length:,}: use a longer text"
                + (f", or --set train.sequence_length={longest}" if longest else "")
            )

    @property
    def per_epoch(self) -> int:
        """Windows in an epoch; the phase shift, below `sequence_length`, never changes it."""
        return (len(self.tokens) - self.sequence_length) // self.sequence_length

    def batch(self, step: int) -> NDArray[np.int64]:
        """The tokens of the step's windows, shape `(batch_size, sequence_length + 1)`."""
        return windows_at(self.tokens, self.starts(step), self.sequence_length)

    def starts(self, step: int) -> NDArray[np.int64]:
        """Where in the tokens the step's windows begin, shape `(batch_size,)`."""
        block, row = divmod(step, STEPS_AT_ONCE)
        starts = _starts(self.seed, self.per_epoch, self.sequence_length, self.batch_size, block)
        return cast(NDArray[np.int64], starts[row])


@functools.lru_cache(maxsize=2)
def _starts(seed: int, per_epoch: int, sequence_length: int, batch_size: int, block: int) -> NDArray[np.int64]:
    """Where the windows of a block of steps begin, `(STEPS_AT_ONCE, batch_size)`."""
    first = block * STEPS_AT_ONCE
    numbers = np.arange(first * batch_size, (first + STEPS_AT_ONCE) * batch_size)
    epochs, indices = np.divmod(numbers, per_epoch)
    starts = np.empty_like(indices)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        phase, *keys = _epoch_keys(seed, epoch)
        here = slice(*np.searchsorted(epochs, (epoch, epoch + 1)))
        order = permute(indices[here].astype(np.uint64), per_epoch, keys)
        starts[here] = order.astype(np.int64) * sequence_length + phase % sequence_length
    starts.flags.writeable = False
    return starts.reshape(STEPS_AT_ONCE, batch_size)


def windows_at(tokens: NDArray[np.uint16], starts: NDArray[np.int64], sequence_length: int) -> NDArray[np.int64]:
    """The windows that begin at `starts`, shape `(len(starts), sequence_length + 1)`."""
    windows: NDArray[np.int64] = tokens[starts[:, None] + np.arange(sequence_length + 1)].astype(np.int64)
    return windows


def validation_starts(val: Split, sequence_length: int, windows: int | None) -> NDArray[np.int64]:
    """Where evenly spaced windows of the validation part begin: `windows` of them, or all (None) side by side.

    Raises:
        BadInputError: The part is shorter than one window.
    """
    available = (len(val.tokens) - 1) // sequence_length
    if available < 1:
        raise BadInputError(
            f"the validation part of the text has {len(val.tokens):,} tokens, but sequence_length {sequence_length} "
            f"needs {sequence_length + 1:,}: use a longer text, a larger data.val_fraction or a shorter sequence_length"
        )
    count = min(windows or available, available)
    return np.arange(count) * available // count * sequence_length


def yardstick(val: Split, starts: NDArray[np.int64], sequence_length: int) -> str:
    """What a validation number was measured on, as 8 hexadecimal digits: numbers compare where these agree."""
    content = [val.sha256, starts.tolist(), sequence_length]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:8]


def permute(indices: NDArray[np.uint64], size: int, keys: list[int]) -> NDArray[np.uint64]:
    """A keyed bijection of `range(size)` at the given indices, in O(1) memory.

    A balanced Feistel network over the next larger power of four (Luby and Rackoff 1988), walked along its cycles until
    it comes back into the range (Black and Rogaway 2002, section 3).
    """
    half = np.uint64(max((size - 1).bit_length() + 1, 2) // 2)
    result = _feistel(indices, half, keys)
    while (outside := result >= size).any():
        result[outside] = _feistel(result[outside], half, keys)
    return result


def _feistel(values: NDArray[np.uint64], half: np.uint64, keys: list[int]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ np.uint64(key)) & mask)
    return (left << half) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014): every output bit depends on every input bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _epoch_keys(seed: int, epoch: int) -> list[int]:
    """The epoch's phase, then a key for each Feistel round."""
    return [int(word) for word in random_bits(seed, Purpose.WINDOW_ORDER, epoch, n=1 + FEISTEL_ROUNDS)]
