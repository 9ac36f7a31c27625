"""`gptlab batch`: print the passages that a step trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptlab import project
from gptlab.data.tokens import TokenSequence
from gptlab.data.vocabularies import Tokenizer
from gptlab.errors import BadInputError
from gptlab.terminal.console import Console
from gptlab.terminal.text import plural, shell_command
from gptlab.tracking.history import History
from gptlab.tracking.metrics import stream_metrics
from gptlab.tracking.run import Run, find_run
from gptlab.training.run_text import stored_text
from gptlab.training.run_tokenizer import run_tokenizer
from gptlab.training.training_data import load_training_data

COUNTED_TOKENS = 1 << 20
"""Tokens whose bytes are counted at once."""


@dataclass(frozen=True)
class CoveringRow:
    """The row of metrics that a step is part of. Its values are means over the steps since the row before it."""

    step: int
    """The row's own step, which counts the steps done."""
    first: int
    """The first step of the mean."""
    loss: float
    grad_norm: float | None

    @property
    def steps(self) -> str:
        """The steps of the mean, in words."""
        last = self.step - 1
        return f"step {last}" if self.first == last else f"steps {self.first} to {last}"

    def document(self) -> dict[str, Any]:
        """Return this part of what `gptlab batch --json` prints."""
        steps = {"first_step": self.first, "last_step": self.step - 1}
        return {"step": self.step, **steps, "train_loss": self.loss, "grad_norm": self.grad_norm}


@dataclass(frozen=True)
class Passage:
    """One window of a batch."""

    token: int
    """Index of its first token in the training part."""
    byte: int
    """Offset of its first byte in the text."""
    bytes: int
    text: str
    """Bytes that are not UTF-8, such as a part of a character at either end, are U+FFFD."""


@dataclass(frozen=True)
class Batch:
    """The passages of a step."""

    run: str
    step: int
    """Steps done before: this batch made them one more."""
    path: Path
    """The text."""
    sequence_length: int
    epoch: float
    passages: list[Passage]
    row: CoveringRow | None
    """None if no row has the step yet, or if the metrics are damaged."""
    diverged: bool
    """Whether the run diverged in this step."""

    def document(self) -> dict[str, Any]:
        """Return what `gptlab batch --json` prints."""
        return {
            "run": self.run,
            "step": self.step,
            "text": str(self.path),
            "epoch": self.epoch,
            "diverged": self.diverged,
            "row": self.row.document() if self.row else None,
            "passages": [vars(passage) for passage in self.passages],
        }


def find_step(reference: str) -> tuple[Run, int]:
    """Return the run and the step that `RUN@STEP` names.

    Raises:
        BadInputError: It has another form, or there is no such run.
    """
    name, at, step = reference.rpartition("@")
    if not (at and step.isdecimal() and step.isascii() and len(step) <= 18):
        raise BadInputError(f"give the run and the step as RUN@STEP, such as {name or reference or 'RUN'}@100")
    return find_run(name), int(step)


def read_batch(run: Run, step: int) -> Batch:
    """Return the passages that a step trained on.

    Args:
        run: A run in any state.
        step: The number of steps done before.

    Raises:
        BadInputError: The run has not done this step, or its text or tokenizer is gone or has changed.
    """
    record, history = run.record, run.history()
    diverged_at = _diverged_at(history)
    _check_done(run, history, step, diverged_at)
    text, tokenizer = stored_text(run), run_tokenizer(run)
    data = load_training_data(record.spec, text, record.seed, tokenizer, window_offset=record.window_offset)
    length, tokens = record.spec.train.sequence_length, data.windows.tokens
    starts = data.windows.starts(step)
    offsets = _byte_offsets(tokens, starts, tokenizer)
    passages = []
    for start, offset in zip(starts.tolist(), offsets.tolist(), strict=True):
        content = tokenizer.decode_bytes(tokens[start : start + length + 1].tolist())
        passages.append(Passage(start, offset, len(content), content.decode(errors="replace")))
    row = None if history.damage else covering_row(run, step)
    epoch = data.windows.epochs(step)
    return Batch(run.id, step, text.path, length, epoch, passages, row, diverged=step == diverged_at)


def covering_row(run: Run, step: int) -> CoveringRow | None:
    """Return the row of the metrics whose mean includes a step; None if there is none yet."""
    first = run.record.start_step
    for row in stream_metrics(run.directory):
        if row["step"] > step:
            known = "train/loss" in row
            return CoveringRow(row["step"], first, row["train/loss"], row.get("optim/grad_norm")) if known else None
        first = row["step"]
    return None


def render(batch: Batch, console: Console) -> None:
    """Print where the passages are, the loss of their row, and the passages."""
    console.print(f"{batch.run}, the batch of step {batch.step}", style="bold")
    console.fact("text", f"{project.display_path(batch.path)}, epoch {batch.epoch:.2f}")
    console.fact("passages", f"{len(batch.passages)} of {plural(batch.sequence_length + 1, 'token')}")
    if batch.diverged:
        console.fact("diverged", "in this step: the loss or the gradient norm was not finite")
    if row := batch.row:
        mean = f"in {row.steps}" if row.first == row.step - 1 else f"the mean of {row.steps}"
        console.fact("train loss", f"{row.loss:.4f} nats/token, {mean}")
        if row.grad_norm is not None:
            console.fact("grad norm", f"{row.grad_norm:.4g}, {mean}")
    for number, passage in enumerate(batch.passages, start=1):
        place = f"bytes {passage.byte:,} to {passage.byte + passage.bytes:,}, from token {passage.token:,}"
        console.print(f"\n— {number} of {len(batch.passages)}: {place} —", style="dim")
        console.print(passage.text)


def _check_done(run: Run, history: History, step: int, diverged_at: int | None) -> None:
    """Check that a run has done a step.

    Raises:
        BadInputError: It has not; the message names the steps that it has done.
    """
    start, done = run.record.start_step, history.step
    if step < start and run.record.branch:
        parent = shell_command("batch", f"{run.record.branch.run}@{step}")
        raise BadInputError(f"{run.id} begins at step {start}; before, its parent was trained: {parent}")
    if not start <= step < done and step != diverged_at:
        last = f"from {start} to {done - 1}" if done > start else "none yet"
        raise BadInputError(f"{run.id} has not trained on the batch of step {step}; its steps are {last}")


def _diverged_at(history: History) -> int | None:
    """The step in which the last attempt diverged in training, which it began and did not finish."""
    end = history.attempts[-1] if history.attempts else None
    facts = end.get("diverged") if end is not None and end["event"] == "end" else None
    step = facts.get("after_step") if isinstance(facts, dict) and "loss" in facts else None
    return step if isinstance(step, int) else None


def _byte_offsets(tokens: TokenSequence, starts: NDArray[np.int64], tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return the offset in the text of each token in `starts`: the training part begins with the text."""
    sizes, order = tokenizer.token_bytes(), np.argsort(starts)
    offsets = np.empty_like(starts)
    at = offset = 0
    for index in order.tolist():
        while at < starts[index]:
            end = min(at + COUNTED_TOKENS, int(starts[index]))
            offset += int(sizes[tokens[at:end]].sum())
            at = end
        offsets[index] = offset
    return offsets
