"""`gptlab eval`: evaluate a checkpoint on a full held-out text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

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


def evaluate_run(
    run: Run, *, step: int | None, text: str | None, device: str, console: Console, string: str | None = None
) -> RunEvaluation:
    """Evaluate a checkpoint on every window of the run's validation split, or of another text.

    Windows are adjacent, so each token that is scored is scored once. Another text that is shorter than a window is one
    window: all its tokens but the first are scored. Of a longer one the tokens at its end that do not fill a window are
    not.

    The per-window losses are written to the run's `evaluations/`, in a file named by step and yardstick. If this fails,
    as in a read-only run, or if the model's code computes something else now, the result says why not. Losses on a
    string are never stored.

    Args:
        run: The run.
        step: The checkpoint's step; the newest for None.
        text: A named text or a path, to evaluate on in full; None for the run's validation split. If the run's text is
            not where it was, a file with its sha256 is that text: the validation split is used, and the place is
            remembered.
        device: `auto`, `cpu`, `cuda` or `mps`.
        console: Where to show progress.
        string: A text to evaluate on, instead of `text`.

    Raises:
        BadInputError: There is no such checkpoint, text, tokenizer or device, or the text is too short or has changed.
        GptlabError: The checkpoint is damaged, or memory runs out.
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
    evaluation = _evaluate(lambda: load_model(checkpoint, spec.model), held_out, starts, length, settings, console)
    path = run.directory / EVALUATIONS / f"step-{checkpoint.step:08d}-{evaluation.yardstick}.safetensors"
    not_stored = changed_model(run)
    if string is None and not not_stored:
        not_stored = _store(path, evaluations.to_bytes(starts, evaluation.window_losses))
    unscored = len(held_out.tokens) - 1 - evaluation.tokens if text else 0
    return RunEvaluation(run.id, checkpoint.step, text, evaluation, path, not_stored, unscored, string)


def evaluate_directory(
    directory: Path, *, text: str | None, device: str, console: Console, string: str | None = None
) -> RunEvaluation:
    """Evaluate the model of a directory of `transformers` on a text or a string, as `evaluate_run` does.

    Windows have the length of the model's context. No losses are stored.

    Raises:
        BadInputError: There is neither text nor string; or see `load_directory` and `evaluate_run`.
        GptlabError: Memory runs out.
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
    evaluation = _evaluate(lambda: loaded.model, held_out, starts, length, settings, console)
    unscored = len(held_out.tokens) - 1 - evaluation.tokens
    return RunEvaluation(str(directory), None, text, evaluation, None, None, unscored, string)


def _evaluate(
    load: Callable[[], GPT],
    held_out: Split,
    starts: NDArray[np.int64],
    length: int,
    settings: Settings,
    console: Console,
) -> Evaluation:
    """Evaluate a model with a progress bar."""
    keep_freed_memory()
    keep_kernels()
    model = load().to(settings.device)
    progress = Progress(console=console.rich, transient=True, disable=not console.rich.is_terminal)
    with console.surviving(), explain_out_of_memory(), progress as bar:
        task = bar.add_task("  windows", total=len(starts))
        return evaluate(
            model,
            held_out,
            starts,
            sequence_length=length,
            settings=settings,
            advance=lambda windows: bar.update(task, advance=windows),
        )


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


def _store(path: Path, content: bytes) -> str | None:
    """Write the losses of the windows. Returns the reason if this fails: the result is worth more than its file."""
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        return f"{project.display_path(path.parent)} cannot be written: {error.strerror}"
    return None
