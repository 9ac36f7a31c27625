"""`gptlab.run`: train a run from Python, such as in a notebook."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

import gptlab
from gptlab import catalog
from gptlab.commands.run import Options, run_experiment
from gptlab.data.vocabularies import Tokenizer
from gptlab.errors import BadInputError
from gptlab.mirror.modes import Mode
from gptlab.model.gpt import GPT
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.tracking.history import History
from gptlab.tracking.run import load_run
from gptlab.untrusted import Count
from gptlab.validation import MAX_TAG_LENGTH, explain

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Run:
    """A run that was trained from Python. What it recorded is read when it is asked for."""

    id: str
    directory: Path

    @property
    def status(self) -> str:
        """Such as `complete`."""
        return self._history().status

    @property
    def step(self) -> int:
        """Steps done."""
        return self._history().step

    @property
    def val_loss(self) -> float | None:
        """The newest validation loss in nats per token."""
        loss: float | None = self._history().last("val/loss")
        return loss

    def metrics(self) -> "DataFrame":
        """Return the metrics, one row per logged step; see `gptlab.metrics`."""
        return gptlab.metrics(self._row())

    def samples(self) -> "DataFrame":
        """Return the samples that were generated in training, one row each; see `gptlab.samples`."""
        return gptlab.samples(self._row())

    def load(self, step: int | None = None) -> tuple[GPT, Tokenizer]:
        """Return the model of a checkpoint, by default the newest, and its tokenizer; see `gptlab.load`."""
        return gptlab.load(str(self.directory), step)

    def _history(self) -> History:
        return load_run(self.directory).history()

    def _row(self) -> "DataFrame":
        runs: DataFrame = gptlab.runs()
        return runs[runs["run"] == self.id]


class _Arguments(BaseModel):
    """The arguments that the command line checks by its options; others are checked where they are used."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    experiment: str | Experiment
    seed: Annotated[Count, BeforeValidator(lambda seed: index(seed) if hasattr(seed, "__index__") else seed)]
    """An integer of any type, such as NumPy's."""
    device: str
    wandb: Mode | None
    tags: tuple[Annotated[str, Field(min_length=1, max_length=MAX_TAG_LENGTH)], ...]


def train(
    experiment: str | Experiment, seed: int, settings: Mapping[str, Any], options: Options, *, console: Console
) -> Run:
    """Start, resume or extend a run. See `gptlab.run`.

    Raises:
        BadInputError: An argument has another type or is out of range.
    """
    try:
        known = _Arguments(
            experiment=experiment, seed=seed, device=options.device, wandb=options.wandb, tags=options.tags
        )
    except ValidationError as error:
        raise BadInputError(explain(error)) from None
    spec = catalog.find(experiment) if isinstance(experiment, str) else experiment
    result = run_experiment(spec.with_changes(settings), known.seed, options, console)
    if result.exit_code:  # a signal was handled, and would otherwise be forgotten
        raise KeyboardInterrupt(f"{result.run.id} is saved at step {result.run.history().step}; run it again to go on")
    return Run(result.run.id, result.run.directory)
