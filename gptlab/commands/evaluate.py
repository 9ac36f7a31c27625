"""`gptlab eval`: evaluate a checkpoint on a full held-out text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from torch import nn

from gptlab import project
from gptlab.checkpoints.manifest import select_checkpoint
from gptlab.checkpoints.read import load_model
from gptlab.compiler import keep_kernels
from gptlab.data import text as texts
from gptlab.data import tokens
from gptlab.data.tokens import Split
from gptlab.data.windows import validation_starts
from gptlab.errors import BadInputError
from gptlab.files import atomic_write
from gptlab.huggingface.directory import load_directory
from gptlab.model.gpt import GPT
from gptlab.terminal.console import Console
from gptlab.terminal.text import plural, printable
from gptlab.tracking import evaluations
from gptlab.tracking.run import EVALUATIONS, Run
from gptlab.training.capacity import limit_threads
from gptlab.training.evaluate import Evaluation, evaluate
from gptlab.training.memory import explain_out_of_memory, keep_freed_memory
from gptlab.training.run_code import changed_model
from gptlab.training.run_text import is_moved_text_of, remember_place, stored_text
from gptlab.training.run_tokenizer import run_tokenizer
from gptlab.training.settings import Available, Settings, resolve_settings


@dataclass(frozen=True)
class RunEvaluation:
    """The losses of a run, or of a directory's model, on a held-out text."""

    run: str
    step: int | None
    """None for a directory."""
    text: str | None
    """The text, or None for the run's validation split."""
    evaluation: Evaluation
    path: Path | None
    """The file with the per-window losses; None for a directory."""
    not_stored: str | None = None
    """Why that file was not written; None if it was."""
    unscored: int = 0
    """Tokens at the end of another text that do not fill a window."""
    string: str | None = None
    """The string that was evaluated instead of a text."""

    def document(self) -> dict[str, Any]:
        """Return what `gptlab eval --json` prints."""
        evaluation = self.evaluation
        return {
            "run": self.run,
            "step": self.step,
            "loss": evaluation.loss,
            "loss_se": evaluation.loss_se if len(evaluation.window_losses) > 1 else None,
            "bpb": evaluation.bits_per_byte,
            "perplexity": evaluation.perplexity,
            "tokens": evaluation.tokens,
            "bytes": evaluation.bytes,
            "yardstick": evaluation.yardstick,
        }


@dataclass(frozen=True)
class Subject:
    """A model and the windows to evaluate it on."""

    name: str
    """The run's id, or the directory."""
    run: Run | None
    """None for a directory."""
    step: int | None
    """None for a directory."""
    load: Callable[[], GPT]
    held_out: Split
    text: str | None
    """The text, or None for the run's validation split."""
    string: str | None
    length: int
    """Predicted tokens per window."""
    starts: NDArray[np.int64]
    settings: Settings

    def file(self, name: str) -> Path | None:
        """The path of a file with results; None for a directory of `transformers`."""
        return self.run.directory / EVALUATIONS / name if self.run else None

    def not_stored(self) -> str | None:
        """Return why results are not stored: the model's code computes something else now. None if it does not."""
        return changed_model(self.run) if self.run else None


def evaluate_run(
    run: Run, *, step: int | None, text: str | None, device: str, console: Console, string: str | None = None
) -> RunEvaluation:
    """Evaluate a checkpoint on every window of the run's validation split, or of another text.

    The per-window losses are written to the run's `evaluations/`, in a file named by step and yardstick. If this fails,
    as in a read-only run, or if the model's code computes something else now, the result says why not. Losses on a
    string are never stored.

    Raises:
        BadInputError: See `find_windows`.
        GptlabError: The checkpoint is damaged, or memory runs out.
    """
    return evaluate_subject(
        find_windows(run, step=step, text=text, device=device, console=console, string=string), console
    )


def evaluate_directory(
    directory: Path, *, text: str | None, device: str, console: Console, string: str | None = None
) -> RunEvaluation:
    """Evaluate the model of a directory of `transformers` on a text or a string. No losses are stored.

    Raises:
        BadInputError: See `find_directory_windows`.
        GptlabError: Memory runs out.
    """
    return evaluate_subject(find_directory_windows(directory, text=text, device=device, string=string), console)


def find_windows(
    run: Run, *, step: int | None, text: str | None, device: str, console: Console, string: str | None = None
) -> Subject:
    """Return a run's checkpoint and every window of its validation split, or of another text.

    Windows are adjacent, so each token that is scored is scored once. Another text that is shorter than a window is one
    window: all its tokens but the first are scored. Of a longer one the tokens at its end that do not fill a window are
    not.

    Args:
        run: The run.
        step: The checkpoint's step; the newest for None.
        text: A named text or a path, to evaluate on in full; None for the run's validation split. If the run's text is
            not where it was, a file with its sha256 is that text: the validation split is used, and the place is
            remembered.
        device: `auto`, `cpu`, `cuda` or `mps`.
        console: Where to say that the place of the text is remembered.
        string: A text to evaluate on, instead of `text`.

    Raises:
        BadInputError: There is no such checkpoint, text, tokenizer or device, or the text is too short or has changed.
    """
    limit_threads()
    spec = run.record.spec
    checkpoint = select_checkpoint(run.directory, step)
    settings = resolve_settings(device, run.record.precision, Available.here())
    length = spec.train.sequence_length
    if string is None:
        located = texts.locate(text) if text else stored_text(run)
        if text and is_moved_text_of(run, located):
            remember_place(run, located, console.notice)
            text = None
        held_out = tokens.prepare(located, 1.0 if text else spec.data.val_fraction, run_tokenizer(run)).val
    else:
        held_out, text = tokens.encode_string(string, run_tokenizer(run)), "the string"
    if text:
        length = tokens.window_length(held_out, length)
    starts = validation_starts(held_out, length, None)
    load = partial(load_model, checkpoint, spec.model)
    return Subject(run.id, run, checkpoint.step, load, held_out, text, string, length, starts, settings)


def find_directory_windows(directory: Path, *, text: str | None, device: str, string: str | None = None) -> Subject:
    """Return a directory's model and every window of a text or a string, as long as the model's context.

    Raises:
        BadInputError: There is neither text nor string; or see `load_directory` and `find_windows`.
    """
    if text is None and string is None:
        raise BadInputError(
            f"{directory} holds a model without a text of its own; give one to evaluate on: --text FILE, or --string"
        )
    limit_threads()
    settings = resolve_settings(device, "auto", Available.here())
    loaded = load_directory(directory)
    if text is not None:
        held_out = tokens.prepare(texts.locate(text), 1.0, loaded.tokenizer).val
    else:
        held_out, text = tokens.encode_string(string or "", loaded.tokenizer), "the string"
    length = tokens.window_length(held_out, loaded.model.spec.context_length)
    starts = validation_starts(held_out, length, None)
    return Subject(str(directory), None, None, lambda: loaded.model, held_out, text, string, length, starts, settings)


def evaluate_subject(
    subject: Subject, console: Console, observed: Callable[[GPT], nn.Module] = lambda model: model
) -> RunEvaluation:
    """Evaluate a model on its windows, with a progress bar, and store the losses of a run's windows.

    `observed` returns a model that computes the same losses.

    Raises:
        GptlabError: The checkpoint is damaged, or memory runs out.
    """
    keep_freed_memory()
    keep_kernels()
    model = observed(subject.load().to(subject.settings.device))
    with working(console, "windows", len(subject.starts)) as advance:
        evaluation = evaluate(
            model,
            subject.held_out,
            subject.starts,
            sequence_length=subject.length,
            settings=subject.settings,
            advance=advance,
        )
    unscored = len(subject.held_out.tokens) - 1 - evaluation.tokens if subject.text else 0
    name = f"step-{subject.step or 0:08d}-{evaluation.yardstick}.safetensors"
    path, not_stored = subject.file(name), subject.not_stored()
    if path and subject.string is None and not not_stored:
        not_stored = store(path, evaluations.to_bytes(subject.starts, evaluation.window_losses))
    return RunEvaluation(
        subject.name, subject.step, subject.text, evaluation, path, not_stored, unscored, subject.string
    )


@contextmanager
def working(console: Console, noun: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; yields a function that advances it. Running out of memory is explained."""
    progress = Progress(console=console.rich, transient=True, disable=not console.rich.is_terminal)
    with console.surviving(), explain_out_of_memory(), progress as bar:
        task = bar.add_task(f"  {noun}", total=total)
        yield lambda done: bar.update(task, advance=done)


def render(result: RunEvaluation, console: Console) -> None:
    """Print the evaluation."""
    evaluation = result.evaluation
    windows = len(evaluation.window_losses)
    at = "" if result.step is None else f" at step {result.step}"
    console.print(f"{printable(result.run)}{at} on {result.text or 'its validation split'}", style="bold")
    error = f" ± {evaluation.loss_se:.4f}" if windows > 1 else ""
    console.fact("loss", f"{evaluation.loss:.4f}{error} nats/token")
    console.fact("bits/byte", f"{evaluation.bits_per_byte:.4f}")
    console.fact("perplexity", f"{evaluation.perplexity:.2f}")
    parts = plural(windows, "window"), plural(evaluation.tokens, "token"), plural(evaluation.bytes, "byte")
    console.fact("evaluated", " · ".join(parts))
    if result.unscored:
        console.notice(
            f"the last {plural(result.unscored, 'token')} of the text are not evaluated: no full window is left"
        )
    if result.path is None:
        console.notice("the losses of the windows are not stored: they belong to no run")
    elif result.string is not None and not result.not_stored:
        console.notice("the losses of a string are not stored; put it into a file and use --text to store them")
    elif result.not_stored:
        console.notice(f"the losses of the windows are not stored: {result.not_stored}")
    else:
        console.fact("per window", project.display_path(result.path))


def store(path: Path, content: bytes) -> str | None:
    """Write a file with results. Returns the reason if this fails: the result is worth more than its file."""
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        return f"{project.display_path(path.parent)} cannot be written: {error.strerror}"
    return None
