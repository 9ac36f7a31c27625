"""The tokens that a run trains on and is validated on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptlab.data import text as texts
from gptlab.data import tokens
from gptlab.data.text import Text
from gptlab.data.tokens import Split
from gptlab.data.windows import Windows, validation_starts
from gptlab.errors import BadInputError
from gptlab.spec import Experiment
from gptlab.tracking.run import Run


@dataclass(frozen=True)
class TrainingData:
    """The training windows in the order of the seed, and the validation windows."""

    windows: Windows
    val: Split
    val_starts: NDArray[np.int64]
    """Index of each validation window's first token, `(val_windows,)`."""


def load_training_data(experiment: Experiment, text: Text, seed: int) -> TrainingData:
    """Return the windows of a text, which is tokenized if its tokens are not in the cache.

    Raises:
        BadInputError: The text is not UTF-8, has changed since it was located, or is too short for the windows.
    """
    prepared = tokens.prepare(text, experiment.data.val_fraction)
    train = experiment.train
    return TrainingData(
        windows=Windows(prepared.train.tokens, train.sequence_length, train.batch_size, seed),
        val=prepared.val,
        val_starts=validation_starts(prepared.val, train.sequence_length, experiment.data.val_windows),
    )


def stored_text(run: Run, remedy: str = "restore it") -> Text:
    """Return the run's text after checking that it has not changed since the run began.

    Args:
        run: The run.
        remedy: What the error message proposes if the text has changed.

    Raises:
        BadInputError: The text is gone or has changed.
    """
    record = run.record.text
    if record.source in texts.NAMED:
        text = texts.locate(record.source)
    else:
        path = Path(record.path)
        if path.is_file() and (size := path.stat().st_size) != record.bytes:  # no need to hash it
            raise _changed(run, f"{record.bytes:,} bytes", f"{size:,}", remedy)
        text = texts.locate(record.path)
    if text.sha256 != record.sha256:
        raise _changed(run, f"sha256 {record.sha256}", text.sha256, remedy)
    return text


def _changed(run: Run, before: str, now: str, remedy: str) -> BadInputError:
    path = run.record.text.path
    return BadInputError(f"the text of {run.id} has changed: {path} had {before} and now has {now}; {remedy}")
