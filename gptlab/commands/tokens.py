"""`gptlab tokens`: look at the single tokens of a passage, as one model or two predict them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.progress import Progress

from gptlab import project
from gptlab.checkpoints.manifest import select_checkpoint
from gptlab.checkpoints.read import load_model
from gptlab.commands.passage import Passage, Reader
from gptlab.compiler import keep_kernels
from gptlab.data import text as texts
from gptlab.data import tokens
from gptlab.data.tokens import Split
from gptlab.errors import BadInputError
from gptlab.huggingface.directory import load_directory
from gptlab.terminal.console import Console
from gptlab.terminal.text import one_line, plural, printable
from gptlab.tracking.run import Run
from gptlab.training.capacity import limit_threads
from gptlab.training.memory import explain_out_of_memory
from gptlab.training.run_code import changed_model
from gptlab.training.run_text import stored_text
from gptlab.training.run_tokenizer import run_tokenizer
from gptlab.training.settings import Available, resolve_settings
from gptlab.training.token_scores import score_tokens

SURPRISING = 3
"""How many tokens the terminal shows."""
AROUND = 24
"""Characters of context that it shows on each side of one."""


def open_reader(source: Run | Path, step: int | None) -> Reader:
    """Return a run's checkpoint, or a directory's model, ready to be loaded.

    Raises:
        BadInputError: There is no such checkpoint, the tokenizer is gone, or gptlab cannot represent the model.
    """
    if isinstance(source, Path):
        loaded = load_directory(source)
        length = loaded.model.spec.context_length
        return Reader(str(source), None, loaded.tokenizer, length, "auto", lambda: loaded.model)
    record = source.record
    checkpoint = select_checkpoint(source.directory, step)
    return Reader(
        source.id,
        checkpoint.step,
        run_tokenizer(source),
        record.spec.train.sequence_length,
        record.precision,
        lambda: load_model(checkpoint, record.spec.model),
        source,
    )


def read_passage(
    readers: Sequence[Reader],
    *,
    text: str | None,
    string: str | None,
    first: int,
    count: int,
    device: str,
    console: Console,
) -> Passage:
    """Score each token of a passage with one or two models.

    Args:
        readers: The models.
        text: A named text or a path; None for the first run's validation split.
        string: A text to take instead.
        first: Index of the passage's first token in the text.
        count: Number of tokens; fewer if the text ends before.
        device: `auto`, `cpu`, `cuda` or `mps`.
        console: Where to show progress.

    Raises:
        BadInputError: The models have different tokenizers; there is no such text, token or device; or the text has
            changed.
        GptlabError: A checkpoint is damaged, a model's output is not finite, or memory runs out.
    """
    limit_threads()
    _check_tokenizers(readers)
    settings = [resolve_settings(device, reader.precision, Available.here()) for reader in readers]
    source, name = _find_text(readers, text, string)
    tokens.window_length(source, 1)  # it must have a token that can be predicted
    available = len(source.tokens)
    if first >= available:
        raise BadInputError(
            f"--from-token is {first}, but {name} has {plural(available, 'token')}; give at most {available - 1}"
        )
    count = min(count, available - first)
    keep_kernels()
    scores = []
    with console.surviving(), explain_out_of_memory(), _progress(console) as advance:
        for reader, how in zip(readers, settings, strict=True):
            model = reader.load().to(how.device)
            length = reader.sequence_length
            scores.append(
                score_tokens(model, source, first, count, sequence_length=length, settings=how, advance=advance)
            )
    ids = source.tokens[first : first + count].astype(np.int64)
    notes = list(_notes(readers, is_own_text=text is None and string is None))
    return Passage(name, first, available, ids, source.tokenizer, readers, scores, notes)


def render(passage: Passage, page: Path, console: Console) -> None:
    """Print the losses, the most surprising tokens and where the page is."""
    last = passage.first + len(passage.ids) - 1
    console.print(f"tokens {passage.first:,} to {last:,} of {printable(passage.text)}", style="bold")
    for number, reader in enumerate(passage.readers):
        at = "" if reader.step is None else f" at step {reader.step}"
        loss, bits = passage.loss(number), passage.bits_per_byte(number)
        console.fact("loss", f"{loss:.4f} nats/token · {bits:.4f} bits/byte · {printable(reader.name)}{at}")
    if found := passage.difference():
        interval = "" if found.low is None else f" · 95% interval {found.low:+.4f} to {found.high:+.4f}"
        console.fact("difference", f"{found.mean:+.4f} nats/token{interval}")
    label = "largest"
    for number in passage.most_surprising(SURPRISING):
        value = passage.surprise[number]
        console.fact(label, f"{value:{'+' if found else ''}.2f} nats · {_in_context(passage, number)}")
        label = ""
    for note in passage.notes:
        console.notice(printable(note))
    console.fact("page", project.display_path(page))


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; yields a function that takes the windows done and in all."""
    bar = Progress(console=console.rich, transient=True, disable=not console.rich.is_terminal)
    with bar:
        task = bar.add_task("  windows", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _in_context(passage: Passage, number: int) -> str:
    """A token between quotation marks, with some of the text around it, on one line."""
    decode, ids = passage.tokenizer.decode, passage.ids.tolist()
    before, after = decode(ids[max(number - AROUND, 0) : number]), decode(ids[number + 1 : number + 1 + AROUND])
    token = decode([ids[number]]).replace("\n", "↵").replace("\t", "⇥")
    return one_line(before[-AROUND:]) + printable(f" «{token}» ") + one_line(after[:AROUND])


def _check_tokenizers(readers: Sequence[Reader]) -> None:
    """Check that all models have the same tokens.

    Raises:
        BadInputError: They do not.
    """
    if len({reader.tokenizer.sha256 for reader in readers}) > 1:
        names = " and ".join(reader.name for reader in readers)
        raise BadInputError(
            f"{names} have different tokenizers, so their losses per token are of different pieces of text; compare "
            "them in bits per byte: `gptlab eval` with --text or --string"
        )


def _find_text(readers: Sequence[Reader], text: str | None, string: str | None) -> tuple[Split, str]:
    """Return the tokens of the text to show, and its name.

    Raises:
        BadInputError: There is no such text, or it has changed.
    """
    tokenizer = readers[0].tokenizer
    if string is not None:
        return tokens.encode_string(string, tokenizer), "the string"
    if text is not None:
        return tokens.prepare(texts.locate(text), 1.0, tokenizer).val, text
    run = next((reader.run for reader in readers if reader.run), None)
    if run is None:
        raise BadInputError(
            f"{readers[0].name} holds a model without a text of its own; give one to look at: --text FILE, or --string"
        )
    split = tokens.prepare(stored_text(run), run.record.spec.data.val_fraction, tokenizer).val
    return split, f"the validation split of {run.id}"


def _notes(readers: Sequence[Reader], is_own_text: bool) -> Iterator[str]:
    """What to know about the losses: code that has changed, and text that a model may have been trained on."""
    runs = [reader.run for reader in readers if reader.run]
    for run in {run.id: run for run in runs}.values():
        if problem := changed_model(run):
            yield problem
    for run in runs[1:] if is_own_text else ():
        first, second = ((each.record.text.sha256, each.record.spec.data.val_fraction) for each in (runs[0], run))
        if first != second:
            yield f"{run.id} was trained on another text or part of it, so it may have seen this passage"
    for reader in readers:
        if reader.run is None and is_own_text:
            yield f"what {reader.name} was trained on is unknown: it may have seen this passage"
