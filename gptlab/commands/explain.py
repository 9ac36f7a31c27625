"""`gptlab eval --explain`: what the loss of one model is made of, or how two models differ."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.commands import evaluate
from gptlab.commands.evaluate import RunEvaluation, Subject, working
from gptlab.data import occurrences, tokens
from gptlab.data.tokens import Tokens
from gptlab.data.windows import Windows
from gptlab.errors import BadInputError
from gptlab.explanation import rows, stored
from gptlab.explanation.rows import Row
from gptlab.explanation.stored import Explanation, Facts
from gptlab.model.gpt import GPT
from gptlab.terminal.console import Console
from gptlab.terminal.text import printable
from gptlab.tracking.run import Run
from gptlab.training import memorization
from gptlab.training.run_text import stored_text
from gptlab.training.run_tokenizer import run_tokenizer
from gptlab.training.token_losses import SummingModel

DEFAULT_PASSAGES = 200


@dataclass(frozen=True)
class Explained:
    """The evaluation of a model with its explanation."""

    evaluation: RunEvaluation
    explanation: Explanation
    path: Path | None
    """The file with the explanation; None if there is none."""
    not_stored: str | None
    """Why it could not be written; None if it was, or if the losses of the windows are not stored either."""
    not_measured: str | None
    """Why memorization was not measured; None if it was."""

    def document(self) -> dict[str, Any]:
        """Return what `gptlab eval --explain --json` prints of one model."""
        explanation = self.explanation
        return self.evaluation.document() | {
            "context": rows.context(explanation)[0],
            "counted_in_training_part": explanation.facts.counted_in_training_part,
            "by_position": rows.by_position(explanation),
            "by_frequency": rows.by_frequency(explanation),
            "memorization": rows.memorization(explanation),
            "memorized": rows.memorized(explanation),
            "not_measured": self.not_measured,
        }


@dataclass(frozen=True)
class Comparison:
    """Two models on the same windows."""

    first: Explained
    second: Explained

    @property
    def differences(self) -> list[Row]:
        """The paired differences `second − first`."""
        return rows.differences(self.first.explanation, self.second.explanation)

    def document(self) -> dict[str, Any]:
        """Return what `gptlab eval RUN RUN2 --explain --json` prints."""
        return {"a": self.first.document(), "b": self.second.document(), "differences": self.differences}


def explain(subject: Subject, passages: int, console: Console) -> Explained:
    """Evaluate a model, and sum its losses by position and frequency in the same pass; then measure memorization.

    The sums are stored in the run's `evaluations/`, where the losses of its windows are.

    Args:
        subject: The model and the windows.
        passages: Number of training passages, and of held-out passages.
        console: Where to show progress.

    Raises:
        BadInputError: The run's text or tokenizer is gone or has changed.
        GptlabError: The checkpoint is damaged, or memory runs out.
    """
    own = _own_text(subject)
    counted = own.train if own else subject.held_out
    tokenizer = subject.held_out.tokenizer
    counts = occurrences.token_counts(counted.tokens, tokenizer.vocab_size)
    loaded: list[tuple[GPT, SummingModel]] = []

    def observed(model: GPT) -> SummingModel:
        summing = SummingModel(model, len(subject.starts), subject.length, tokenizer, counts)
        loaded.append((model, summing))
        return summing

    evaluation = evaluate.evaluate_subject(subject, console, observed)
    ((model, summing),) = loaded
    not_measured = _why_not(subject)
    facts, matches = _NOTHING
    if own and subject.run and not not_measured:
        facts, matches = _memorization(subject, subject.run, model, own, passages, console)
    explanation = Explanation(
        Facts(
            windows=len(subject.starts),
            sequence_length=subject.length,
            counted=counted.sha256,
            counted_in_training_part=own is not None,
            most=int(counts.max()),
            **facts,
        ),
        **summing.sums,
        **matches,
    )
    path, not_stored = _store(subject, evaluation, explanation)
    return Explained(evaluation, explanation, path, not_stored, not_measured)


def check_same_windows(first: Subject, second: Subject) -> None:
    """Check that two models are evaluated on the same windows.

    Raises:
        BadInputError: They are not; the message says what differs.
    """
    a, b = first.held_out, second.held_out
    names = f"{printable(first.name)} and {printable(second.name)}"
    if a.tokenizer.sha256 != b.tokenizer.sha256:
        raise BadInputError(f"{names} cannot be compared token by token: their tokenizers differ")
    if a.sha256 != b.sha256:
        raise BadInputError(
            f"{names} have different validation texts; evaluate both on the same one, such as: --text FILE"
        )
    if first.length != second.length:
        raise BadInputError(f"{names} read windows of {first.length} and {second.length} tokens; windows must be equal")


def _own_text(subject: Subject) -> Tokens | None:
    """The text that a run is trained on; None for a directory, or if that text is gone and another is evaluated."""
    if not (run := subject.run):
        return None
    try:
        return tokens.prepare(stored_text(run), run.record.spec.data.val_fraction, run_tokenizer(run))
    except BadInputError:
        if subject.text is None:
            raise
        return None


def _why_not(subject: Subject) -> str | None:
    """Why memorization cannot be measured."""
    if not subject.run:
        return "memorization is measured on what a run was trained on, which a directory does not say"
    if subject.text is not None:
        return "memorization is measured on the run's own text: leave out --text and --string"
    if not memorization.lengths(subject.length)[0]:
        return f"windows of {subject.length} tokens are too short for prompts of {memorization.PROMPTS[0]} tokens"
    if subject.step is not None and subject.step <= subject.run.record.start_step:
        return "memorization is measured on what a run has trained on, and this checkpoint has not trained yet"
    return None


_NOTHING: tuple[dict[str, Any], dict[str, Any]] = (
    {},
    {f"{part}_start": np.zeros(0, np.int64) for part in ("trained", "held_out")}
    | {f"{part}_match": np.zeros((0, 0), np.int64) for part in ("trained", "held_out")},
)
"""The facts and arrays of an explanation without memorization."""


def _memorization(
    subject: Subject, run: Run, model: GPT, own: Tokens, passages: int, console: Console
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure how far training and held-out passages are continued verbatim; returns facts and arrays."""
    record, step = run.record, subject.step or 0
    batch_size = record.spec.train.batch_size
    windows = Windows(own.train.tokens, subject.length, batch_size, record.seed, record.window_offset)
    trained, available = memorization.trained_starts(windows, range(record.start_step, step), passages)
    starts = {"trained": trained, "held_out": memorization.held_out_starts(subject.starts, passages)}
    parts = {"trained": (own.train, own.val), "held_out": (own.val, own.train)}
    matches: dict[str, Any] = {}
    model.eval()
    with working(console, "passages", sum(map(len, starts.values()))) as advance:
        for name, (part, other) in parts.items():
            matches[f"{name}_start"] = starts[name]
            matches[f"{name}_match"] = memorization.match_lengths(
                model,
                part.tokens,
                starts[name],
                other=partial(occurrences.occur, tokens=other.tokens),
                sequence_length=subject.length,
                vocab_size=part.tokenizer.vocab_size,
                settings=subject.settings,
                advance=advance,
            )
    prompts, continuation = memorization.lengths(subject.length)
    return {"prompts": prompts, "continuation": continuation, "trained_windows": available}, matches


def _store(subject: Subject, evaluation: RunEvaluation, explanation: Explanation) -> tuple[Path | None, str | None]:
    """Write the explanation to the run. Returns its path, or why it was not written."""
    path = subject.file(stored.file_name(subject.step or 0, evaluation.evaluation.yardstick))
    if path is None or subject.string is not None or evaluation.not_stored:
        return None, None  # as for the losses of the windows, whose message says why
    if problem := evaluate.store(path, stored.to_bytes(explanation)):
        return None, problem
    return path, None
