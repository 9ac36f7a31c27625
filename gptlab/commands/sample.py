"""`gptlab sample`: continue a prompt with a run's model."""

import logging
import sys
from dataclasses import dataclass
from typing import Any

from gptlab.checkpoints.manifest import select_checkpoint
from gptlab.checkpoints.read import load_model
from gptlab.model.sample import samples
from gptlab.terminal.text import printable
from gptlab.tracking.run import Run
from gptlab.training.capacity import limit_threads
from gptlab.training.run_code import changed_model
from gptlab.training.run_tokenizer import run_tokenizer

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
) -> Samples:
    """Continue a prompt.

    Args:
        run: The run.
        step: The checkpoint's step; the newest for None.
        prompt: The beginning of each text.
        count: Number of texts.
        max_tokens: New tokens per text; as many as fit for None.
        temperature: Divides the logits; 0 always takes the most likely token.
        top_k: Sample from this many most likely tokens; 0 for all.
        seed: The same seed gives the same texts.

    Raises:
        BadInputError: There is no such checkpoint, the tokenizer is gone, the prompt is empty, or prompt and new tokens
            do not fit.
        GptlabError: The checkpoint is damaged, or the model's output is not finite.
    """
    limit_threads()
    spec = run.record.spec
    model = load_model(select_checkpoint(run.directory, step), spec.model)
    if problem := changed_model(run):
        logger.warning(problem)
    texts = samples(
        model,
        prompt,
        count,
        trained_length=spec.train.sequence_length,
        tokenizer=run_tokenizer(run),
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    return Samples(run.id, prompt, texts)


def render(result: Samples) -> None:
    """Print the texts, numbered if there are several."""
    count = len(result.texts)
    for number, text in enumerate(result.texts, start=1):
        if count > 1:
            separator = "" if number == 1 else "\n"
            sys.stdout.write(f"{separator}— {number} of {count} —\n")
        sys.stdout.write(printable(result.prompt + text) + "\n")
