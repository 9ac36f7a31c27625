"""Sums of the losses of single tokens, by position in the window and by the token's frequency."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from gptlab.data.vocabularies import Tokenizer
from gptlab.explanation.bins import frequency_bins, numbers_of_bins, position_bins
from gptlab.explanation.stored import MAX_BLOCKS


class SummingModel(nn.Module):
    """A model that adds up the losses that it returns, so that they are those of `gptlab.training.evaluate`.

    It is called with the windows in their order. Sums are kept for each of at most `MAX_BLOCKS` blocks of adjacent
    windows.
    """

    def __init__(
        self, model: nn.Module, windows: int, sequence_length: int, tokenizer: Tokenizer, counts: NDArray[np.int64]
    ) -> None:
        """Make room for the sums.

        Args:
            model: Called as `model(tokens, targets, reduction="none")`.
            windows: Number of windows.
            sequence_length: Predicted tokens per window.
            tokenizer: What made the tokens.
            counts: How often each token occurs in the training part, `(vocab_size,)`.
        """
        super().__init__()
        self.model = model
        self._block_of = np.arange(windows) * min(windows, MAX_BLOCKS) // windows
        self._token_bytes = tokenizer.token_bytes()
        self._positions = [bin_.first - 1 for bin_ in position_bins(sequence_length)]
        bins = frequency_bins(int(counts.max()))
        self._bin_of, self._bins = numbers_of_bins(counts, bins), len(bins)
        self._seen = 0
        blocks = int(self._block_of[-1]) + 1
        by_position, by_frequency = (blocks, len(self._positions)), (blocks, len(bins))
        self.sums: dict[str, NDArray[Any]] = {
            "windows": np.bincount(self._block_of),
            "position_loss": np.zeros(by_position),
            "position_bytes": np.zeros(by_position, np.int64),
            "frequency_loss": np.zeros(by_frequency),
            "frequency_tokens": np.zeros(by_frequency, np.int64),
            "frequency_bytes": np.zeros(by_frequency, np.int64),
        }
        """Arrays of `gptlab.explanation.stored.Explanation`, by name."""

    @override
    def forward(self, tokens: Tensor, targets: Tensor, *, reduction: str) -> Tensor:
        """Return the model's losses, `(B, T)`, after adding them to the sums."""
        losses: Tensor = self.model(tokens, targets, reduction=reduction)
        self._add(targets.cpu().numpy(), losses.cpu().to(torch.float64).numpy())
        return losses

    def _add(self, targets: NDArray[np.int64], losses: NDArray[np.float64]) -> None:
        """Add the losses of the next windows, both `(B, T)`."""
        blocks = self._block_of[self._seen : self._seen + len(targets)]
        self._seen += len(targets)
        sizes, bins = self._token_bytes[targets], self._bin_of[targets]
        for name, values in (("position_loss", losses), ("position_bytes", sizes)):
            np.add.at(self.sums[name], blocks, np.add.reduceat(values, self._positions, axis=1))
        cells = (blocks[:, None], bins)
        np.add.at(self.sums["frequency_loss"], cells, losses)
        np.add.at(self.sums["frequency_tokens"], cells, 1)
        np.add.at(self.sums["frequency_bytes"], cells, sizes)
