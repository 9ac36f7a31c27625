"""A run: its directory, its record and its history.

runs/baseline-1a2b3c4d-s0/
    run.json         written once: the resolved spec, the identity, the text
    attempts.jsonl   two rows per attempt, its start and its end
    metrics.jsonl    one row per logged step
    samples.jsonl    text that the model generated
    checkpoints/     see `gptlab.checkpoints.manifest`
    evaluations/     per-window losses from `gptlab eval`
    profile/         see `gptlab.training.profiler`
    source-*.patch   uncommitted changes of the code, by attempt
    wandb/           W&B's own files
    log.txt          what the console printed
    lock, heartbeat  see `gptlab.tracking.lock`
"""

import json
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from gptlab import project
from gptlab.checkpoints.manifest import list_checkpoints
from gptlab.errors import AmbiguousRunError, BadInputError, GptlabError
from gptlab.files import append_json_line, locked_directory, make_directory, write_durably
from gptlab.identity import Identity
from gptlab.spec import Experiment, Precision
from gptlab.tracking.lock import lock_holder
from gptlab.tracking.metrics import Row, last_value, read_metrics
from gptlab.tracking.records import ATTEMPT, SAMPLE, End, InitialWeights, Outcome, RunRecord, Sample, Start, TextRecord
from gptlab.untrusted import check_tree, read_document, read_json_lines
from gptlab.validation import did_you_mean

RECORD, ATTEMPTS, SAMPLES, EVALUATIONS = "run.json", "attempts.jsonl", "samples.jsonl", "evaluations"
LOG, TRASH = "log.txt", ".trash"

logger = logging.getLogger(__name__)

Status = Literal["running", "complete", "interrupted", "diverged", "failed"]
SourceT = TypeVar("SourceT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Run:
    """A run's directory and its record."""

    directory: Path
    record: RunRecord

    @property
    def id(self) -> str:
        """`NAME-HASH8-sSEED`."""
        return self.record.run

    def history(self) -> "History":
        """Return what the run has recorded so far."""
        return History(self)

    def start_attempt(self, **facts: Any) -> int:
        """Record the start of an attempt. Returns its number, from 1."""
        number = 1 + len(self.history().starts)
        append_json_line(self.directory / ATTEMPTS, {"attempt": number, "event": "start", "time": _now(), **facts})
        return number

    def end_attempt(self, number: int, step: int, status: Outcome, **facts: Any) -> None:
        """Record the end of an attempt."""
        row = {"attempt": number, "event": "end", "time": _now(), "step": step, "status": status, **facts}
        append_json_line(self.directory / ATTEMPTS, row)

    def samples(self) -> list[Sample]:
        """Return the rows of `samples.jsonl`."""
        return list(read_json_lines(self.directory / SAMPLES, SAMPLE))

    def add_sample(self, step: int, prompt: str, text: str) -> None:
        """Append a generated text."""
        append_json_line(self.directory / SAMPLES, {"step": step, "prompt": prompt, "text": text})

    def drop_samples_after(self, step: int) -> None:
        """Remove the samples of later steps, which will be generated again."""
        samples = self.samples()
        kept = [row for row in samples if row["step"] <= step]
        if len(kept) < len(samples):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
            write_durably(self.directory / SAMPLES, "".join(lines))

    def move_to_trash(self) -> Path:
        """Move the directory to `.trash/` beside it. Returns its new path.

        Raises:
            GptlabError: A process is training the run, or the trash is a symbolic link.
        """
        if holder := lock_holder(self.directory):
            raise GptlabError(f"{self.id} is being trained by process {holder.pid} on {holder.host}; stop it first")
        trash = self.directory.parent / TRASH
        if trash.is_symlink():
            raise GptlabError(f"{trash} is a symbolic link; remove it")
        make_directory(trash)
        try:
            return self.directory.rename(trash / f"{self.directory.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
        except FileNotFoundError:
            raise GptlabError(f"{self.directory} is gone; another process has moved or removed it") from None


class History:
    """What a run has recorded. Each file is read once, so later rows do not appear."""

    def __init__(self, run: Run) -> None:
        """Read `attempts.jsonl`; the metrics are read on first use."""
        self._run = run
        self.attempts: list[Start | End] = list(read_json_lines(run.directory / ATTEMPTS, ATTEMPT))

    @property
    def starts(self) -> list[Start]:
        """The rows that record the start of an attempt."""
        return [row for row in self.attempts if row["event"] == "start"]

    @property
    def _end(self) -> End | None:
        """The end of the last attempt, if it has been recorded."""
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and last["event"] == "end" else None

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of metrics."""
        return read_metrics(self._run.directory)

    @property
    def outcome(self) -> Outcome:
        """How the last attempt ended; `interrupted` if no end is recorded, as while it runs."""
        return self._end["status"] if self._end else "interrupted"

    @cached_property
    def status(self) -> Status:
        """`running` while a process holds the run's lock, else the outcome."""
        return "running" if lock_holder(self._run.directory) else self.outcome

    @cached_property
    def step(self) -> int:
        """The last known step: that of the last attempt's end, else of the newest row or checkpoint."""
        if self._end:
            return self._end["step"]
        checkpoints = [checkpoint.step for checkpoint in list_checkpoints(self._run.directory)]
        return max([*checkpoints, *(row["step"] for row in self.rows)], default=0)

    @property
    def target(self) -> int:
        """The total number of steps that the last attempt was asked for; before the first attempt, the spec's."""
        return self.starts[-1]["steps"] if self.starts else self._run.record.spec.train.steps

    def last(self, column: str) -> Any:
        """Return the newest value of a column of the metrics, or None."""
        return last_value(self.rows, column)


def create_run(
    experiment: Experiment,
    identity: Identity,
    seed: int,
    precision: Precision,
    text: TextRecord,
    initial_weights: InitialWeights | None = None,
) -> Run:
    """Create a run's directory and record, or load the run if it exists.

    Raises:
        GptlabError: The directory is damaged or holds another run.
    """
    make_directory(project.runs_directory())
    with locked_directory(project.runs_directory()):  # of two processes that begin the same run, one creates it
        return _create_or_load(experiment, identity, seed, precision, text, initial_weights)


def _create_or_load(
    experiment: Experiment,
    identity: Identity,
    seed: int,
    precision: Precision,
    text: TextRecord,
    initial_weights: InitialWeights | None,
) -> Run:
    run_id = identity.run_id(seed)
    directory = project.runs_directory() / run_id
    if (directory / RECORD).exists():
        run = load_run(directory)
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
    make_directory(directory)
    check_tree(directory)
    write_durably(directory / RECORD, record.model_dump_json(indent=2) + "\n")
    return Run(directory, record)


def load_run(directory: Path) -> Run:
    """Load the run in a directory.

    Raises:
        GptlabError: `run.json` is missing or invalid, or the directory holds a link, pipe or device.
    """
    check_tree(directory)
    try:
        return Run(directory, read_document(directory / RECORD, RunRecord))
    except FileNotFoundError:
        raise GptlabError(f"{directory / RECORD} is missing") from None


def all_runs() -> list[Run]:
    """Load every run in the runs directory, by id. Unreadable ones are skipped with a warning."""
    return list(skip_unreadable(load_run, run_directories()))


def skip_unreadable(read: Callable[[SourceT], ResultT], sources: Iterable[SourceT]) -> Iterator[ResultT]:
    """Yield `read(source)` for each source; one that cannot be read is skipped with a warning."""
    for source in sources:
        try:
            yield read(source)
        except GptlabError as error:
            logger.warning("%s; this run is skipped", error)


def find_run(reference: str) -> Run:
    """Return the run with an id, a unique prefix of an id, or a path.

    Raises:
        BadInputError: No run or several runs match.
        GptlabError: The run cannot be loaded.
    """
    if "/" in reference or reference in {".", ".."}:
        try:
            directory = Path(reference).expanduser().resolve()
            found = (directory / RECORD).exists()
        except (OSError, RuntimeError, ValueError):  # too long, an unknown user's home, circular links, a NUL
            found = False
        if not found:
            raise BadInputError(f"there is no run in '{reference}': it has no {RECORD}")
        return load_run(directory)
    known = {directory.name: directory for directory in run_directories()}
    matches = [name for name in known if name.startswith(reference)] if reference else []
    if reference in known:
        matches = [reference]
    if not matches:
        runs = project.display_path(project.runs_directory())
        hint = did_you_mean(reference, known) or "; `gptlab runs` lists them"
        raise BadInputError(f"there is no run '{reference}' in {runs}{hint}")
    if len(matches) > 1:
        raise AmbiguousRunError(f"'{reference}' matches {', '.join(sorted(matches))}; give more of the id")
    return load_run(known[matches[0]])


def run_directories() -> list[Path]:
    """Return the run directories by id, without reading a file in them."""
    return sorted(path.parent for path in project.runs_directory().glob(f"*/{RECORD}") if path.parent.name != TRASH)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
