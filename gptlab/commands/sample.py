"""`gptlab sample`: continue prompts with a run's model."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.checkpoints.manifest import select_checkpoint
from gptlab.checkpoints.read import load_model
from gptlab.data.text import find_file
from gptlab.data.vocabularies import Tokenizer
from gptlab.errors import BadInputError
from gptlab.huggingface.directory import load_directory
from gptlab.model.gpt import GPT
from gptlab.model.sample import samples
from gptlab.terminal.text import printable
from gptlab.tracking.run import Run
from gptlab.training.capacity import limit_threads
from gptlab.training.run_code import changed_model
from gptlab.training.run_tokenizer import run_tokenizer

MAX_PROMPT_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Continuations of a prompt."""

    run: str
    prompt: str
    texts: list[str]
    """The new texts, without the prompt."""

    def document(self) -> dict[str, Any]:
        """Return what `gptlab sample --json` prints."""
        return {"run": self.run, "prompt": self.prompt, "texts": self.texts}


def sample(
    run: Run,
    step: int | None,
    prompt: str,
    count: int,
    *,
    max_tokens: int | None,
    temperature: float,
    top_k: int,
    seed: int,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Samples:
    """Continue one prompt; see `sample_each`."""
    (result,) = sample_each(
        run,
        step,
        [prompt],
        count,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
    )
    return result


def sample_each(
    run: Run | Path,
    step: int | None,
    prompts: list[str],
    count: int,
    *,
    max_tokens: int | None,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    stream: bool = False,
) -> list[Samples]:
    """Continue each prompt.

    Args:
        run: The run, or a directory with a model of `transformers`.
        step: The checkpoint's step; the newest for None.
        prompts: The beginnings of the texts.
        count: Number of texts per prompt.
        max_tokens: New tokens per text; as many as fit for None.
        temperature: Divides the logits; 0 always takes the most likely token.
        top_k: Sample from this many most likely tokens; 0 for all.
        top_p: Sample from the fewest most likely tokens whose probabilities add up to this; 1 for all.
        min_p: Sample from tokens at least this many times as likely as the most likely one; 0 for all.
        seed: The same seed gives the same texts.
        stream: Also print each text while its tokens are drawn. `count` must be 1.

    Raises:
        BadInputError: There is no such checkpoint, the tokenizer is gone, a prompt is empty, prompt and new tokens do
            not fit, or a probability is out of range.
        GptlabError: The checkpoint is damaged, or the model's output is not finite.
    """
    limit_threads()
    name, model, tokenizer, trained_length = _load(run, step)
    found = []
    for number, prompt in enumerate(prompts, start=1):
        with _streaming(prompt, number, len(prompts), enabled=stream) as on_text:
            texts = samples(
                model,
                prompt,
                count,
                trained_length=trained_length,
                tokenizer=tokenizer,
                max_tokens=max_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                seed=seed,
                on_text=on_text,
            )
        found.append(Samples(name, prompt, texts))
    return found


def _load(source: Run | Path, step: int | None) -> tuple[str, GPT, Tokenizer, int]:
    """Return the name, the model, the tokenizer and the number of positions that saw training.

    `transformers` does not record that number, so all positions of a directory's model count.
    """
    if isinstance(source, Path):
        loaded = load_directory(source)
        return str(source), loaded.model, loaded.tokenizer, loaded.model.spec.context_length
    spec = source.record.spec
    model = load_model(select_checkpoint(source.directory, step), spec.model)
    if problem := changed_model(source):
        logger.warning(problem)
    return source.id, model, run_tokenizer(source), spec.train.sequence_length


def read_prompt(source: str) -> str:
    """Return the text of a file without the newline at its end, which editors add.

    Raises:
        BadInputError: There is no such file, or it is too long or not UTF-8.
    """
    path = find_file(source)
    if path is None:
        raise BadInputError(f"there is no file '{source}'; give the path of a text with the prompt")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PROMPT_BYTES + 1)
    except OSError as error:
        raise BadInputError(f"'{source}' cannot be read: {error.strerror}") from error
    if len(content) > MAX_PROMPT_BYTES:
        raise BadInputError(f"'{source}' is longer than {MAX_PROMPT_BYTES:,} bytes, so it is no prompt")
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise BadInputError(f"'{source}' is not UTF-8 at byte {error.start:,}; convert it with iconv") from error


def render(results: list[Samples]) -> None:
    """Print the texts, numbered if there are several."""
    texts = [result.prompt + text for result in results for text in result.texts]
    for number, text in enumerate(texts, start=1):
        sys.stdout.write(_heading(number, len(texts)) + printable(text) + "\n")


@contextmanager
def _streaming(prompt: str, number: int, count: int, *, enabled: bool) -> Iterator[Callable[[str], object] | None]:
    """Yield a function that prints pieces of a text after its prompt, so that the result is that of `render`."""
    if not enabled:
        yield None
        return

    heading = _heading(number, count) + printable(prompt)  # with the first piece: a prompt may turn out not to fit

    def write(text: str) -> None:
        nonlocal heading
        sys.stdout.write(heading + printable(text))
        sys.stdout.flush()
        heading = ""

    try:
        yield write
    finally:
        if not heading:
            sys.stdout.write("\n")


def _heading(number: int, count: int) -> str:
    """The line above one of several texts."""
    separator = "" if number == 1 else "\n"
    return f"{separator}— {number} of {count} —\n" if count > 1 else ""
