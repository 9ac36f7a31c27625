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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from gptlab import project
from gptlab.errors import AmbiguousRunError, BadInputError, GptlabError
from gptlab.spec import Experiment, Identity, Precision, did_you_mean
from gptlab.tracking.checkpoints import list_checkpoints
from gptlab.tracking.files import append_json_line, write_durably
from gptlab.tracking.lock import holder_of
from gptlab.tracking.metrics import last_value, read_metrics
from gptlab.tracking.reading import check_tree, read_document, read_json_lines
from gptlab.tracking.records import ATTEMPT, SAMPLE, End, InitialWeights, Outcome, RunRecord, Sample, Start, TextRecord

RECORD, ATTEMPTS, SAMPLES, LOG, TRASH = "run.json", "attempts.jsonl", "samples.jsonl", "log.txt", ".trash"

logger = logging.getLogger(__name__)

Status = Literal["running", "complete", "interrupted", "diverged", "failed"]
Source = TypeVar("Source")
Result = TypeVar("Result")


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
        return "running" if holder_of(self.directory) else self.outcome()

    def outcome(self) -> Outcome:
        """How the last attempt ended, as far as is known; it may still go on."""
        attempts = self.attempts()
        return attempts[-1]["status"] if attempts and attempts[-1]["event"] == "end" else "interrupted"

    def step(self) -> int:
        """The last step known: of the last attempt's end, else of the newest row or checkpoint."""
        attempts = self.attempts()
        if attempts and attempts[-1]["event"] == "end":
            return attempts[-1]["step"]
        known = [checkpoint.step for checkpoint in list_checkpoints(self.directory)]
        known += [row["step"] for row in read_metrics(self.directory)]
        return max(known, default=0)

    def target(self) -> int:
        """The number of steps that the last attempt was asked for."""
        starts = self.starts()
        return starts[-1]["steps"] if starts else self.record.spec.train.steps

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

    def attempts(self) -> list[Start | End]:
        """The rows of `attempts.jsonl`."""
        return list(read_json_lines(self.directory / ATTEMPTS, ATTEMPT))

    def starts(self) -> list[Start]:
        """The rows with which attempts started."""
        return [row for row in self.attempts() if row["event"] == "start"]

    def start_attempt(self, **facts: Any) -> int:
        """Record that an attempt starts; returns its number, from 1."""
        number = 1 + len(self.starts())
        append_json_line(self.directory / ATTEMPTS, {"attempt": number, "event": "start", "time": _now(), **facts})
        return number

    def end_attempt(self, number: int, step: int, status: Outcome, **facts: Any) -> None:
        """Record how an attempt ended."""
        row = {"attempt": number, "event": "end", "time": _now(), "step": step, "status": status, **facts}
        append_json_line(self.directory / ATTEMPTS, row)

    def samples(self) -> list[Sample]:
        """The rows of `samples.jsonl`."""
        return list(read_json_lines(self.directory / SAMPLES, SAMPLE))

    def add_sample(self, step: int, prompt: str, text: str) -> None:
        """Keep a text that the model wrote."""
        append_json_line(self.directory / SAMPLES, {"step": step, "prompt": prompt, "text": text})

    def drop_samples_after(self, step: int) -> None:
        """Keep only the samples of the first `step` steps: later ones come again."""
        samples = self.samples()
        kept = [row for row in samples if row["step"] <= step]
        if len(kept) < len(samples):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
            write_durably(self.directory / SAMPLES, "".join(lines))

    def move_to_trash(self) -> Path:
        """Move the directory to `.trash/` beside it; returns where it lies now.

        Raises:
            GptlabError: A process is training the run, or the trash is elsewhere.
        """
        if holder := holder_of(self.directory):
            raise GptlabError(f"{self.id} is being trained by process {holder.pid} on {holder.host}; stop it first")
        trash = self.directory.parent / TRASH
        if trash.is_symlink():
            raise GptlabError(f"{trash} is a link; remove it")
        trash.mkdir(exist_ok=True)
        return self.directory.rename(trash / f"{self.directory.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")


def create(
    experiment: Experiment,
    identity: Identity,
    seed: int,
    precision: Precision,
    text: TextRecord,
    initial_weights: InitialWeights | None = None,
) -> Run:
    """A new run's directory with its record, or the one that is there already.

    Raises:
        GptlabError: What is there is damaged, or another run.
    """
    run_id = identity.run_id(seed)
    directory = project.runs_directory() / run_id
    if (directory / RECORD).exists():
        run = load(directory)
        if run.id != run_id or run.record.identity != identity.content:
            raise GptlabError(f"{directory} holds another run, {run.id}; move it away")
        return run
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
    check_tree(directory)
    write_durably(directory / RECORD, record.model_dump_json(indent=2) + "\n")
    return Run(directory, record)


def load(directory: Path) -> Run:
    """The run in a directory.

    Raises:
        GptlabError: Its `run.json` cannot be read, or it holds what no run holds; the message names it.
    """
    check_tree(directory)
    try:
        return Run(directory, read_document(directory / RECORD, RunRecord))
    except FileNotFoundError:
        raise GptlabError(f"{directory / RECORD} is missing") from None


def all_runs() -> list[Run]:
    """Every run in the runs directory, by id; one that cannot be read is left out with a warning."""
    return list(each(load, directories()))


def each(read: Callable[[Source], Result], runs: Iterable[Source]) -> Iterator[Result]:
    """What `read` gives for each run; one that cannot be read is left out with a warning, and hides no other."""
    for run in runs:
        try:
            yield read(run)
        except GptlabError as error:
            logger.warning("%s; this run is left out", error)


def find(reference: str) -> Run:
    """The run of an id, a unique prefix of one, or a path.

    Raises:
        BadInputError: There is none, or several.
    """
    if "/" in reference or reference in {".", ".."}:
        try:
            directory = Path(reference).expanduser().resolve()
            found = (directory / RECORD).exists()
        except (OSError, RuntimeError, ValueError):  # too long, a home that nobody has, links in a circle, a NUL
            found = False
        if not found:
            raise BadInputError(f"there is no run in '{reference}': it has no {RECORD}")
        return load(directory)
    known = {directory.name: directory for directory in directories()}
    matches = [name for name in known if name.startswith(reference)] if reference else []
    if reference in known:
        matches = [reference]
    if not matches:
        runs = project.shown(project.runs_directory())
        hint = did_you_mean(reference, list(known)) or "; `gptlab runs` lists them"
        raise BadInputError(f"there is no run '{reference}' in {runs}{hint}")
    if len(matches) > 1:
        raise AmbiguousRunError(f"'{reference}' could be {' or '.join(sorted(matches))}: give more of the id")
    return load(known[matches[0]])


def directories() -> list[Path]:
    """Where the runs in the runs directory lie, by id; nothing of them is read yet."""
    return sorted(path.parent for path in project.runs_directory().glob(f"*/{RECORD}") if path.parent.name != TRASH)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
