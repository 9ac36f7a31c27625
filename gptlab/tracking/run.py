"""A run: its directory, its record and its history.

runs/baseline-1a2b3c4d-s0/
    run.json         written once: the resolved spec, the identity, the text
    tokenizer.json   a copy of the tokenizer, unless it has a name; see `gptlab.training.run_tokenizer`
    text.json        where the text is now, if it has moved; see `gptlab.training.run_text`
    attempts.jsonl   two rows per attempt, its start and its end
    metrics.jsonl    one row per logged step
    samples.jsonl    text that the model generated
    checkpoints/     see `gptlab.checkpoints.manifest`
    evaluations/     per-window losses from `gptlab eval`
    verifications.jsonl  what `gptlab verify` found
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
from pathlib import Path
from typing import Any, TypeVar

from gptlab import project
from gptlab.digests import with_digest
from gptlab.errors import AmbiguousRunError, BadInputError, GptlabError
from gptlab.files import append_json_line, locked_directory, make_directory, write_durably
from gptlab.identity import Identity
from gptlab.size import size_in_closed_form
from gptlab.spec import Experiment, Precision
from gptlab.tracking import lineage
from gptlab.tracking.history import ATTEMPTS, History, warn_altered
from gptlab.tracking.lineage import needed_files, places
from gptlab.tracking.lock import lock_holder
from gptlab.tracking.records import SAMPLE, Branch, InitialWeights, Outcome, RunRecord, Sample, TextRecord
from gptlab.untrusted import check_tree, read_document, read_json_lines
from gptlab.validation import did_you_mean

RECORD, SAMPLES, EVALUATIONS = lineage.RECORD, "samples.jsonl", "evaluations"
LOG, TRASH, TOKENIZER = "log.txt", lineage.TRASH, "tokenizer.json"

logger = logging.getLogger(__name__)

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

    @property
    def is_copy(self) -> bool:
        """Whether the directory has another name than the run: a copy of it, such as a backup."""
        return self.directory.absolute().name != self.id

    @property
    def reference(self) -> str:
        """What a command is given for this run: its id, the name of a copy, or the path of a run elsewhere."""
        directory = self.directory.absolute()
        return directory.name if directory.parent == project.runs_directory() else str(directory)

    def history(self) -> History:
        """Return what the run has recorded so far."""
        return History(self.directory, self.record)

    def start_attempt(self, **facts: Any) -> int:
        """Record the start of an attempt. Returns its number, from 1."""
        number = 1 + len(self.history().starts)
        self._add_attempt_row({"attempt": number, "event": "start", "time": _now(), **facts})
        return number

    def end_attempt(self, number: int, step: int, status: Outcome, **facts: Any) -> None:
        """Record the end of an attempt."""
        self._add_attempt_row(
            {"attempt": number, "event": "end", "time": _now(), "step": step, "status": status, **facts}
        )

    def _add_attempt_row(self, row: dict[str, Any]) -> None:
        append_json_line(self.directory / ATTEMPTS, with_digest(row))

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

    def check_removable(self) -> None:
        """Check that the run can be moved to the trash.

        Raises:
            GptlabError: A process is training the run, or the trash is a symbolic link.
        """
        if holder := lock_holder(self.directory):
            raise GptlabError(f"{self.id} is being trained by process {holder.pid} on {holder.host}; stop it first")
        trash = self.directory.parent / TRASH
        if trash.is_symlink():
            raise GptlabError(f"{trash} is a symbolic link; remove it")

    def move_to_trash(self) -> Path:
        """Move the directory to `.trash/` beside it. Returns its new path.

        Raises:
            GptlabError: A process is training the run, or the trash is a symbolic link.
        """
        self.check_removable()
        trash = self.directory.parent / TRASH
        make_directory(trash)
        try:
            return self.directory.rename(trash / f"{self.directory.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
        except FileNotFoundError:
            raise GptlabError(f"{self.directory} is gone; another process has moved or removed it") from None


def create_run(
    experiment: Experiment,
    identity: Identity,
    seed: int,
    precision: Precision,
    text: TextRecord,
    *,
    tokenizer: bytes | None = None,
    **more: Any,
) -> Run:
    """Create a run's directory and record, or load the run if it exists.

    Args:
        experiment: The spec.
        identity: What is computed.
        seed: The seed.
        precision: The resolved precision.
        text: The text as it is now.
        tokenizer: The content of the tokenizer file, of which the run keeps a copy; None if the tokenizer has a name.
        more: Optional fields of `RunRecord`, such as `fingerprint`. A model with parts needs `size`.

    Raises:
        BadInputError: The parent's checkpoint has been removed.
        GptlabError: The directory is damaged or holds another run.
    """
    make_directory(project.runs_directory())
    with locked_directory(project.runs_directory()):  # of two processes that begin the same run, one creates it
        if "size" not in more:
            more["size"] = size_in_closed_form(experiment)
        return _create_or_load(identity, seed, tokenizer, spec=experiment, precision=precision, text=text, **more)


def _create_or_load(identity: Identity, seed: int, tokenizer: bytes | None, **fields: Any) -> Run:
    run_id = identity.run_id(seed)
    directory = project.runs_directory() / run_id
    if (directory / RECORD).exists():
        run = load_run(directory)
        if run.id != run_id or run.record.identity != identity.content:
            raise GptlabError(f"{directory} holds another run, {run.id}; move it away")
        return run
    if parent := fields.get("branch") or fields.get("initial_weights"):
        _check_still_there(parent)
    record = RunRecord(
        run=run_id,
        seed=seed,
        created=_now(),
        identity=identity.content,
        tokenizer_sha256=identity.content["tokenizer_sha256"],
        wandb_id=f"{run_id}-{secrets.token_hex(4)}",
        **fields,
    )
    make_directory(directory)
    check_tree(directory)
    if tokenizer is not None:
        write_durably(directory / TOKENIZER, tokenizer)
    write_durably(directory / RECORD, record.to_json())
    return Run(directory, record)


def _check_still_there(parent: InitialWeights | Branch) -> None:
    """Check that retention has not removed a checkpoint since it was found; from now on it is kept for the new run.

    Raises:
        BadInputError: It has.
    """
    found = places(parent, run_directories())
    if not any(path.with_name(name).is_file() for path in found for name in needed_files(parent)[-1:]):
        raise BadInputError(f"{found[0].parent} was removed in the meantime; choose another step of {parent.run}")


def load_run(directory: Path) -> Run:
    """Load the run in a directory.

    Raises:
        GptlabError: `run.json` is missing or invalid, or the directory holds a link, pipe or device.
    """
    check_tree(directory)
    try:
        record = read_document(directory / RECORD, RunRecord)
    except FileNotFoundError:
        raise GptlabError(f"{directory / RECORD} is missing") from None
    if record.altered:
        warn_altered(directory / RECORD)
    return Run(directory, record)


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
    if len(matches) > 1:
        matches = _without_copies(matches, known)
    if not matches:
        runs = project.display_path(project.runs_directory())
        hint = did_you_mean(reference, known) or "; `gptlab runs` lists them"
        raise BadInputError(f"there is no run '{reference}' in {runs}{hint}")
    if len(matches) > 1:
        raise AmbiguousRunError(f"'{reference}' matches {', '.join(sorted(matches))}; give more of the id")
    return load_run(known[matches[0]])


def _without_copies(names: list[str], known: dict[str, Path]) -> list[str]:
    """The names of directories that hold a run under its own id; all names if none does."""

    def is_copy(name: str) -> bool:
        try:
            return load_run(known[name]).is_copy
        except GptlabError:  # a damaged run keeps its name, so that a prefix never selects another one silently
            return False

    return [name for name in names if not is_copy(name)] or names


def run_directories() -> list[Path]:
    """Return the run directories by id, without reading a file in them. Directories that cannot be opened are included.

    Raises:
        GptlabError: The runs directory cannot be read.
    """
    folder = project.runs_directory()
    try:
        return sorted(path for path in folder.iterdir() if path.name != TRASH and _may_hold_a_run(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise GptlabError(f"{folder} cannot be read: {error.strerror}") from error


def _may_hold_a_run(directory: Path) -> bool:
    try:
        (directory / RECORD).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # such as a directory without permissions, which loading reports
        pass
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
