"""`gptlab export`: write a run's model as a directory that Hugging Face's `transformers` loads."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab import project
from gptlab.checkpoints.manifest import select_checkpoint
from gptlab.checkpoints.read import load_model
from gptlab.huggingface.config import config_document
from gptlab.huggingface.export import document, find_target, write_directory
from gptlab.huggingface.layout import CARD, CONFIG, GENERATION
from gptlab.huggingface.model_card import Reference, model_card, reference
from gptlab.huggingface.tokenizer_files import tokenizer_files
from gptlab.huggingface.weights import to_theirs
from gptlab.terminal.console import Console
from gptlab.terminal.text import format_bytes
from gptlab.tracking.metrics import stream_metrics
from gptlab.tracking.run import Run
from gptlab.training.capacity import limit_threads
from gptlab.training.run_code import changed_model
from gptlab.training.run_tokenizer import run_tokenizer

LOSSES = ("val/loss", "val/loss_se")
VERSIONS = ("python", "torch", "numpy", "tiktoken")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    run: str
    step: int
    directory: Path
    files: list[str]
    bytes: int
    reference: Reference
    tied: bool

    def document(self) -> dict[str, Any]:
        """Return what `gptlab export --json` prints."""
        return {
            "run": self.run,
            "step": self.step,
            "directory": str(self.directory),
            "files": self.files,
            "bytes": self.bytes,
            "tied": self.tied,
            "reference": {"tokens": self.reference.tokens, "logits": self.reference.logits},
        }


def export_run(run: Run, directory: str, step: int | None) -> Exported:
    """Write a checkpoint of a run.

    Args:
        run: The run.
        directory: Where to write; it must not exist, or be empty.
        step: The checkpoint's step; the newest for None.

    Raises:
        BadInputError: The directory is not free, there is no such checkpoint, the tokenizer is gone, GPT-2 in
            `transformers` cannot represent the model.
        GptlabError: The checkpoint is damaged, or a file cannot be written.
    """
    limit_threads()
    target = find_target(directory)
    record = run.record
    config = config_document(record.spec.model)
    tokenizer = run_tokenizer(run)
    checkpoint = select_checkpoint(run.directory, step)
    model = load_model(checkpoint, record.spec.model)
    if problem := changed_model(run):
        logger.warning(problem)
    found = reference(model, tokenizer)
    card = model_card(record, target.name, checkpoint.step, _losses(run, checkpoint.step), _versions(run), found)
    files = {
        CONFIG: document(config),
        GENERATION: document({"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}),
        **tokenizer_files(tokenizer, record.spec.model.context_length),
        CARD: card.encode(),
    }
    size = write_directory(target, to_theirs(model.state_dict()), files)
    names = sorted(path.name for path in target.iterdir())
    return Exported(run.id, checkpoint.step, target, names, size, found, record.spec.model.tied)


def render(result: Exported, console: Console) -> None:
    """Print what was written, and what to do with it."""
    console.print(f"{result.run} at step {result.step}", style="bold")
    console.fact("written", f"{project.display_path(result.directory)} · {format_bytes(result.bytes)}")
    console.fact("files", ", ".join(result.files))
    if not result.tied:
        console.notice(
            "the output layer is untied; some readers skip it and compute other logits: check with the script in "
            "README.md"
        )


def _losses(run: Run, step: int) -> dict[str, float]:
    """Return the validation loss at a step and its standard error; nothing if the metrics are damaged."""
    if run.history().damage:
        return {}
    found: dict[str, float] = {}
    for row in stream_metrics(run.directory):
        if row["step"] == step:
            found |= {column: row[column] for column in LOSSES if column in row}
    return found


def _versions(run: Run) -> dict[str, str]:
    """Return the versions of the last attempt's Python and packages."""
    starts: list[Mapping[str, Any]] = [*run.history().starts]
    last = starts[-1] if starts else {}
    known = {"python": last.get("python"), "torch": last.get("torch"), **last.get("packages", {})}
    return {name: str(known[name]) for name in VERSIONS if known.get(name)}
