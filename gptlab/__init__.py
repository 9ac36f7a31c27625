"""Named GPT pretraining experiments on one `.txt` file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tiktoken

    from gptlab.model.gpt import GPT


def load(run: str, step: int | None = None) -> tuple[GPT, tiktoken.Encoding]:
    """A run's model, on the CPU and in evaluation mode, and its tokenizer.

    Args:
        run: A run's id, a unique prefix of one, or its directory.
        step: Of a checkpoint that the run keeps; the newest by default.

    Raises:
        BadInputError: There is no such run or checkpoint.
    """
    from gptlab.data.tokenizer import gpt2
    from gptlab.tracking.checkpoints import pick
    from gptlab.tracking.run import find
    from gptlab.training.restore import load_model

    found = find(run)
    return load_model(pick(found.directory, step), found.record.spec.model), gpt2()
