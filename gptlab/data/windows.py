"""The order of the training windows: the windows of batch t are a pure function of (seed, t).

A window is `sequence_length` + 1 consecutive tokens: the inputs and, shifted by one, the targets. Each epoch visits
each of its (N − T) // T windows once. Windows are numbered across epochs, so a batch may contain windows of two epochs.
"""

import functools
import hashlib
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from gptlab.data.tokens import Split, TokenSequence
from gptlab.data.vocabularies import GPT2
from gptlab.digests import canonical_json
from gptlab.errors import BadInputError
from gptlab.randomness import Purpose, random_bits
from gptlab.terminal.text import plural

FEISTEL_ROUNDS = 6
STEPS_PER_BLOCK = 64
"""Ordering the windows of this many steps at once costs as much as ordering those of one."""


@dataclass(frozen=True)
class Windows:
    """The training windows in the order of the seed."""

    tokens: TokenSequence
    sequence_length: int
    batch_size: int
    seed: int
    offset: int = 0
    """Number of the first window of step 0. A branch whose parent had another batch size needs it, to skip none."""
    rows: slice = field(default_factory=lambda: slice(None))
    """Which rows of a batch this process reads, if several train together."""

    def __post_init__(self) -> None:
        """Check that an epoch has at least one window.

        Raises:
            BadInputError: The text is too short.
        """
        if self.per_epoch < 1:
            longest = len(self.tokens) // 2
            raise BadInputError(
                f"the training part of the text has {plural(len(self.tokens), 'token')}, but sequence_length "
                f"{self.sequence_length} needs {2 * self.sequence_length:,}: use a longer text"
                + (f", or --set train.sequence_length={longest}" if longest else "")
            )

    @property
    def per_epoch(self) -> int:
        """Windows in an epoch, whatever its phase (an offset below `sequence_length`)."""
        return (len(self.tokens) - self.sequence_length) // self.sequence_length

    def epochs(self, step: int) -> float:
        """Passes over the text in `step` steps."""
        return (self.offset + step * self.batch_size) / self.per_epoch

    def batch(self, step: int) -> NDArray[np.int64]:
        """The tokens of a step's windows, shape `(batch_size, sequence_length + 1)`, or of its `rows` only."""
        return windows_at(self.tokens, self.starts(step)[self.rows], self.sequence_length)

    def starts(self, step: int) -> NDArray[np.int64]:
        """Start positions of a step's windows, shape `(batch_size,)`."""
        block, row = divmod(step, STEPS_PER_BLOCK)
        first = self.offset + block * STEPS_PER_BLOCK * self.batch_size
        starts = _block_starts(self.seed, self.per_epoch, self.sequence_length, self.batch_size, first)
        return cast(NDArray[np.int64], starts[row])


@functools.lru_cache(maxsize=2)
def _block_starts(seed: int, per_epoch: int, sequence_length: int, batch_size: int, first: int) -> NDArray[np.int64]:
    """Start positions of the windows of a block of steps from the window `first`, `(STEPS_PER_BLOCK, batch_size)`."""
    numbers = np.arange(first, first + STEPS_PER_BLOCK * batch_size)
    numbers = np.maximum(numbers, 0)  # steps before a branch, in the block of its first step, may have negative numbers
    epochs, indices = np.divmod(numbers, per_epoch)
    starts = np.empty_like(indices)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        phase, *keys = _epoch_keys(seed, epoch)
        of_epoch = slice(*np.searchsorted(epochs, (epoch, epoch + 1)))
        order = permute(indices[of_epoch].astype(np.uint64), per_epoch, keys)
        starts[of_epoch] = order.astype(np.int64) * sequence_length + phase % sequence_length
    starts.flags.writeable = False
    return starts.reshape(STEPS_PER_BLOCK, batch_size)


def windows_at(tokens: TokenSequence, starts: NDArray[np.int64], sequence_length: int) -> NDArray[np.int64]:
    """The windows at the start positions `starts`, shape `(len(starts), sequence_length + 1)`."""
    return np.stack([tokens[start : start + sequence_length + 1] for start in starts.tolist()]).astype(np.int64)


def validation_starts(val: Split, sequence_length: int, windows: int | None) -> NDArray[np.int64]:
    """Start positions of evenly spaced validation windows, shape `(windows,)`.

    If `windows` is None or more than there are, all of them: adjacent, without overlap.

    Raises:
        BadInputError: The validation part is shorter than one window.
    """
    available = (len(val.tokens) - 1) // sequence_length
    if available < 1:
        raise BadInputError(
            f"the validation part of the text has {plural(len(val.tokens), 'token')}, but sequence_length "
            f"{sequence_length} needs {sequence_length + 1:,}: use a longer text, a larger data.val_fraction or a "
            "shorter sequence_length"
        )
    count = min(windows or available, available)
    return np.arange(count) * available // count * sequence_length


def yardstick(val: Split, starts: NDArray[np.int64], sequence_length: int) -> str:
    """Hash of what a validation loss is measured on, 8 hexadecimal digits; compare losses only where it is equal.

    GPT-2's tokenizer is not hashed, so that yardsticks are the same as before there were others.
    """
    other = [] if val.tokenizer is GPT2 else [val.tokenizer.sha256]
    content = [val.sha256, starts.tolist(), sequence_length, *other]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:8]


def permute(indices: NDArray[np.uint64], size: int, keys: list[int]) -> NDArray[np.uint64]:
    """Apply a keyed permutation of `range(size)` to the given indices, without storing the permutation.

    A balanced Feistel network on the next larger power of four (Luby and Rackoff 1988) with cycle walking: values
    outside the range are permuted again (Black and Rogaway 2002, section 3).
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
    """SplitMix64's finalizer (Steele, Lea and Flood 2014): each output bit depends on all input bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _epoch_keys(seed: int, epoch: int) -> list[int]:
    """The epoch's phase, then one key per Feistel round."""
    return [int(word) for word in random_bits(seed, Purpose.WINDOW_ORDER, epoch, n=1 + FEISTEL_ROUNDS)]
