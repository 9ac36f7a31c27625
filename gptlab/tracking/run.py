"""A run: its directory, what it is, where it stands.

runs/baseline-1a2b3c4d-s0/
    run.json         written once: the resolved spec, the identity, the text
    attempts.jsonl   two rows per attempt, its start and its end
    metrics.jsonl    one row per logged step
    samples.jsonl    text that the model wrote
    checkpoints/     see `gptlab.tracking.checkpoints`
    evaluations/     losses of single validation windows
    wandb/           W&B's own files
    log.txt          what the console said
"""

import json
import logging
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gptlab import project
from gptlab.errors import BadInputError, GptlabError
from gptlab.spec import Experiment, Identity, Precision, did_you_mean, explain
from gptlab.tracking.checkpoints import list_checkpoints
from gptlab.tracking.files import append_json_line, read_json_lines, write_durably
from gptlab.tracking.lock import holder_of
from gptlab.tracking.metrics import last_value, read_metrics

RECORD, ATTEMPTS, SAMPLES, LOG, TRASH = "run.json", "attempts.jsonl", "samples.jsonl", "log.txt", ".trash"

logger = logging.getLogger(__name__)

Outcome = Literal["complete", "interrupted", "diverged", "failed"]
Status = Literal["running", "complete", "interrupted", "diverged", "failed"]


class TextRecord(BaseModel):
    """The text as it was when the run began."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    path: str
    bytes: int
    sha256: str


class InitialWeights(BaseModel):
    """Where a warm start takes its weights from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    step: int
    path: str
    sha256: str


class RunRecord(BaseModel):
    """`run.json`: what the run computes. Written once, never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    seed: int
    created: str
    spec: Experiment
    precision: Precision
    identity: dict[str, Any]
    """All that went into the hash of the run's id."""
    text: TextRecord
    tokenizer_sha256: str
    initial_weights: InitialWeights | None = None
    """None where the weights are drawn from the seed."""
    wandb_id: str
    """The run's id and a random suffix: two machines, or a deleted run, never meet in one W&B run."""


@dataclass(frozen=True)
class Run:
    """A run's directory and its record."""

    directory: Path
    record: RunRecord

    @property
    def id(self) -> str:
        """`NAME-HASH8-sSEED`."""
        return self.record.run

    def status(self) -> Status:
        """From the lock and the last attempt; never from a process id."""
        return "running" if holder_of(self.directory) else _outcome(self.attempts())

    def step(self) -> int:
        """The last step known: of the last attempt's end, else of the newest row or checkpoint."""
        attempts = self.attempts()
        if attempts and attempts[-1]["event"] == "end":
            return int(attempts[-1]["step"])
        known = [checkpoint.step for checkpoint in list_checkpoints(self.directory)]
        known += [int(row["step"]) for row in read_metrics(self.directory)]
        return max(known, default=0)

    def target(self) -> int:
        """The number of steps that the last attempt was asked for."""
        starts = [row for row in self.attempts() if row["event"] == "start"]
        return int(starts[-1]["steps"]) if starts else self.record.spec.train.steps

    def summary(self) -> dict[str, Any]:
        """As `gptlab runs --json` prints it."""
        return {
            "run": self.id,
            "name": self.record.spec.name,
            "seed": self.record.seed,
            "status": self.status(),
            "step": self.step(),
            "steps": self.target(),
            "val_loss": last_value(read_metrics(self.directory), "val/loss"),
            "directory": str(self.directory),
        }

    def attempts(self) -> list[dict[str, Any]]:
        """The rows of `attempts.jsonl`."""
        return list(read_json_lines(self.directory / ATTEMPTS))

    def start_attempt(self, **facts: Any) -> int:
        """Record that an attempt starts; returns its number, from 1."""
        number = 1 + len([row for row in self.attempts() if row["event"] == "start"])
        append_json_line(self.directory / ATTEMPTS, {"attempt": number, "event": "start", "time": _now(), **facts})
        return number

    def end_attempt(self, number: int, step: int, status: Outcome, **facts: Any) -> None:
        """Record how an attempt ended."""
        row = {"attempt": number, "event": "end", "time": _now(), "step": step, "status": status, **facts}
        append_json_line(self.directory / ATTEMPTS, row)

    def samples(self) -> list[dict[str, Any]]:
        """The rows of `samples.jsonl`."""
        return list(read_json_lines(self.directory / SAMPLES))

    def add_sample(self, step: int, prompt: str, text: str) -> None:
        """Keep a text that the model wrote."""
        append_json_line(self.directory / SAMPLES, {"step": step, "prompt": prompt, "text": text})

    def drop_samples_after(self, step: int) -> None:
        """Keep only the samples of the first `step` steps: later ones come again."""
        kept = [row for row in self.samples() if row["step"] <= step]
        if len(kept) < len(self.samples()):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
            write_durably(self.directory / SAMPLES, "".join(lines))

    def move_to_trash(self) -> Path:
        """Move the directory to `.trash/` beside it; returns where it lies now.

        Raises:
            GptlabError: A process is training the run.
        """
        if holder := holder_of(self.directory):
            raise GptlabError(f"{self.id} is being trained by process {holder.pid} on {holder.host}; stop it first")
        trash = self.directory.parent / TRASH
        trash.mkdir(exist_ok=True)
        target = trash / f"{self.directory.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        shutil.move(self.directory, target)
        return target


def create(
    experiment: Experiment,
    identity: Identity,
    seed: int,
    precision: Precision,
    text: TextRecord,
    initial_weights: InitialWeights | None = None,
) -> Run:
    """A new run's directory with its record, or the one that is there already."""
    run_id = identity.run_id(seed)
    directory = project.runs_directory() / run_id
    if (directory / RECORD).is_file():
        return load(directory)
    record = RunRecord(
        run=run_id,
        seed=seed,
        created=_now(),
        spec=experiment,
        precision=precision,
        identity=identity.content,
        text=text,
        tokenizer_sha256=identity.content["tokenizer_sha256"],
        initial_weights=initial_weights,
        wandb_id=f"{run_id}-{secrets.token_hex(4)}",
    )
    directory.mkdir(parents=True, exist_ok=True)
    write_durably(directory / RECORD, record.model_dump_json(indent=2) + "\n")
    return Run(directory, record)


def load(directory: Path) -> Run:
    """The run in a directory.

    Raises:
        GptlabError: Its `run.json` cannot be read; the message names it.
    """
    path = directory / RECORD
    try:
        return Run(directory, RunRecord.model_validate_json(path.read_bytes()))
    except OSError as error:
        raise GptlabError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise GptlabError(f"{path} is not a run's record: {explain(error)}") from None


def all_runs() -> list[Run]:
    """Every run in the runs directory, by id; one whose record is damaged is left out with a warning."""
    found = []
    for directory in _directories():
        try:
            found.append(load(directory))
        except GptlabError as error:
            logger.warning("%s; this run is left out", error)
    return found


def find(reference: str) -> Run:
    """The run of an id, a unique prefix of one, or a path.

    Raises:
        BadInputError: There is none, or several.
    """
    if "/" in reference or reference in {".", ".."}:
        directory = Path(reference).expanduser().absolute()
        if not (directory / RECORD).is_file():
            raise BadInputError(f"there is no run in '{reference}': it has no {RECORD}")
        return load(directory)
    directories = {directory.name: directory for directory in _directories()}
    matches = [name for name in directories if name.startswith(reference)] if reference else []
    if reference in directories:
        matches = [reference]
    if not matches:
        runs = project.shown(project.runs_directory())
        hint = did_you_mean(reference, list(directories)) or "; `gptlab runs` lists them"
        raise BadInputError(f"there is no run '{reference}' in {runs}{hint}")
    if len(matches) > 1:
        raise BadInputError(f"'{reference}' could be {' or '.join(sorted(matches))}: give more of the id")
    return load(directories[matches[0]])


def _directories() -> list[Path]:
    return sorted(path.parent for path in project.runs_directory().glob(f"*/{RECORD}") if path.parent.name != TRASH)


def _outcome(attempts: list[dict[str, Any]]) -> Outcome:
    if attempts and attempts[-1]["event"] == "end":
        outcome: Outcome = attempts[-1]["status"]
        return outcome
    return "interrupted"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
