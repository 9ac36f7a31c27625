"""The tokens that a run trains on and is validated on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptlab.data import tokens
from gptlab.data.text import Text
from gptlab.data.tokens import Split
from gptlab.data.vocabularies import GPT2, Tokenizer
from gptlab.data.windows import Windows, validation_starts
from gptlab.spec import Experiment


@dataclass(frozen=True)
class TrainingData:
    """The training windows in the order of the seed, and the validation windows."""

    windows: Windows
    val: Split
    val_starts: NDArray[np.int64]
    """Index of each validation window's first token, `(val_windows,)`."""


def load_training_data(
    experiment: Experiment, text: Text, seed: int, tokenizer: Tokenizer = GPT2, *, window_offset: int = 0
) -> TrainingData:
    """Return the windows of a text, which is tokenized if its tokens are not in the cache.

    `window_offset` is 0 unless the run is a branch; see `RunRecord.window_offset`.

    Raises:
        BadInputError: The text is not UTF-8, has changed since it was located, or is too short for the windows.
    """
    prepared = tokens.prepare(text, experiment.data.val_fraction, tokenizer)
    train = experiment.train
    return TrainingData(
        windows=Windows(prepared.train.tokens, train.sequence_length, train.batch_size, seed, window_offset),
        val=prepared.val,
        val_starts=validation_starts(prepared.val, train.sequence_length, experiment.data.val_windows),
    )
