"""The bins in which the losses of tokens are summed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Bin:
    """Whole numbers from `first` to `last`."""

    first: int
    last: int | None
    """None if there is no upper end."""

    @property
    def label(self) -> str:
        """The numbers as text: `1`, `3–4` or `> 8`."""
        if self.last is None:
            return f"> {self.first - 1:,}"
        return f"{self.first:,}" if self.first == self.last else f"{self.first:,}–{self.last:,}"


def position_bins(sequence_length: int) -> list[Bin]:
    """Return the bins of positions: 1, 2, 3–4, 5–8, … up to the window's length.

    A position is the number of tokens of context that a prediction sees. The first prediction of a window sees one.
    """
    lasts = [1]
    while lasts[-1] < sequence_length:
        lasts.append(min(2 * lasts[-1], sequence_length))
    return [Bin(first + 1, last) for first, last in zip([0, *lasts], lasts, strict=False)]


def frequency_bins(most: int) -> list[Bin]:
    """Return the bins of counts: 0, 1–2, 3–8, 9–32, … by powers of four; the last one contains `most`."""
    lasts = [0, 2]
    while lasts[-1] < most:
        lasts.append(4 * lasts[-1])
    return [Bin(first + 1, last) for first, last in zip([-1, *lasts], lasts, strict=False)]


def numbers_of_bins(counts: NDArray[np.int64], bins: list[Bin]) -> NDArray[np.int64]:
    """Return the index of the bin that contains each of `counts`."""
    lasts = [bin_.last for bin_ in bins]
    return np.searchsorted(np.array(lasts), counts).astype(np.int64)
