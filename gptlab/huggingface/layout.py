"""The files of a directory that `transformers` loads, without torch."""

from pathlib import Path

from gptlab.errors import BadInputError
from gptlab.tracking.run import RECORD

CONFIG, GENERATION, CARD = "config.json", "generation_config.json", "README.md"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"


def find_directory(reference: str, step: int | None = None) -> Path | None:
    """Return the directory that a command was given instead of a run; None if it is none with a model.

    Raises:
        BadInputError: It is one, and a step was given.
    """
    try:
        directory = Path(reference).expanduser()
        names = {path.name for path in directory.iterdir()} if reference else set()
    except (OSError, RuntimeError, ValueError):  # no directory; too long, an unknown user's home, a NUL
        return None
    if RECORD in names or not names & {CONFIG, WEIGHTS, INDEX, *PICKLES}:
        return None
    if step is not None:
        raise BadInputError(f"--step {step} is for runs; {directory} holds one model without steps")
    return directory
