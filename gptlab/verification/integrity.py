"""Check the files of a run against the digests and checksums that were recorded when they were written.

Checksums are computed anew, not taken from the cache, because a disk can damage a file without changing its times.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from gptlab.checkpoints.manifest import Checkpoint, compute_digest, damaged_manifests, list_checkpoints
from gptlab.checksums import forget_digests
from gptlab.data import vocabularies
from gptlab.digests import ALTERED, DIGEST
from gptlab.errors import GptlabError
from gptlab.explanation import stored as explanations
from gptlab.tracking import evaluations
from gptlab.tracking.history import ATTEMPTS, History
from gptlab.tracking.metrics import METRICS, ROW
from gptlab.tracking.provenance import MAX_STORED_PATCH_BYTES, patch_path
from gptlab.tracking.run import EVALUATIONS, RECORD, TOKENIZER, Run
from gptlab.tracking.verification import find_rows_problem
from gptlab.untrusted import MAX_DOCUMENT_BYTES, MAX_LINE_BYTES, open_regular, read_json_lines_from
from gptlab.verification.result import Damage

EARLIER = "an earlier version of gptlab wrote it"


@dataclass(frozen=True)
class Integrity:
    """What a check of a run's files found."""

    damage: tuple[Damage, ...]
    files: int
    """Files that are as they were written."""
    notes: tuple[str, ...]
    """What no checksum covers."""


def check_integrity(run: Run, history: History) -> Integrity:
    """Check every file of a run that has a checksum.

    Raises:
        GptlabError: A file cannot be read.
    """
    found = _Check(run.directory)
    found.record(run)
    found.attempts(run, history)
    checkpoints = list_checkpoints(run.directory)
    for name, error in sorted(damaged_manifests(run.directory).items()):
        found.damaged(run.directory / "checkpoints" / name / "manifest.json", str(error))
    for checkpoint in checkpoints:
        found.checkpoint(checkpoint)
    found.metrics(history, checkpoints)
    found.tokenizer(run)
    found.patches(history)
    found.evaluations()
    return Integrity(tuple(found.damage), found.files, tuple(found.notes))


class _Check:
    """Collects damage, the number of intact files, and notes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.damage: list[Damage] = []
        self.files = 0
        self.notes: list[str] = []

    def damaged(self, path: Path, problem: str) -> None:
        """Add a damaged file. Its path is removed from the beginning of the problem, where errors have it."""
        name = str(path.relative_to(self.directory))
        if "\n" in problem or not name.isprintable():
            name, problem = ascii(name), " ".join(problem.split())
        self.damage.append(Damage(name, problem.removeprefix(str(path)).lstrip(": ")))

    def _count(self, path: Path, problem: str | None) -> None:
        if problem:
            self.damaged(path, problem)
        else:
            self.files += 1

    def record(self, run: Run) -> None:
        """Check `run.json`."""
        path = self.directory / RECORD
        if run.record.altered:
            self.damaged(path, "has changed since it was written")
            return
        with open_regular(path) as file:
            content = json.loads(file.read(MAX_DOCUMENT_BYTES))
        if isinstance(content, dict) and DIGEST in content:
            self.files += 1
        else:
            self.notes.append(f"{RECORD} has no digest: {EARLIER}")

    def attempts(self, run: Run, history: History) -> None:
        """Check `attempts.jsonl`."""
        path = self.directory / ATTEMPTS
        altered = [row for row in history.attempts if ALTERED in row]
        problem = _surplus(path)
        if altered:
            problem = f"has changed since it was written, in {len(altered)} of its {len(history.attempts)} rows"
        elif not history.is_complete:
            problem = "has lost rows: an attempt is missing"
        digests = [(str(row.get("attempt")), DIGEST in row) for row in _raw_rows(path)]
        if any(had and not has for (_, had), (_, has) in pairwise(digests)) or len(set(digests)) > len(dict(digests)):
            problem = problem or "has changed since it was written: a row has lost its digest"
        self._count(path, problem)
        if not all(has for _, has in digests):
            self.notes.append(f"{ATTEMPTS} has rows without a digest: an earlier version of gptlab wrote them")

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Check the files of a checkpoint; its manifest has a digest and has been read."""
        self.files += 1
        for name, expected in checkpoint.manifest.files.items():
            path = checkpoint.directory / name
            try:
                with open_regular(path) as file:
                    size = os.fstat(file.fileno()).st_size
                if size != expected.bytes:  # a sparse file of any size is not read
                    self.damaged(path, f"has {size:,} bytes, not {expected.bytes:,}")
                    continue
                digest = compute_digest(path)
            except FileNotFoundError:
                self.damaged(path, "is missing")
            except (GptlabError, OSError) as error:
                self.damaged(path, str(error))
            else:
                self._count(path, "has changed since it was written" if digest != expected else None)

    def metrics(self, history: History, checkpoints: list[Checkpoint]) -> None:
        """Check `metrics.jsonl` against the end of the last attempt and every manifest that counts its rows."""
        path = self.directory / METRICS
        forget_digests(path)
        counting = [
            each.manifest for each in checkpoints if each.manifest.progress.metrics_xxh3 and history.is_current(each)
        ]
        problems = [history.damage, *(find_rows_problem(self.directory, manifest) for manifest in counting)]
        found = [problem for problem in problems if problem]
        recorded = history.recorded_rows()
        if found:
            self.damaged(path, found[0])
        elif recorded is None:
            if path.exists():
                killed = bool(history.attempts) and history.attempts[-1]["event"] == "start"
                current = all(each.manifest.progress.metrics_xxh3 for each in checkpoints)
                why = "the run was killed, and no checkpoint of it is here" if killed and current else EARLIER
                self.notes.append(
                    f"no checksum covers {METRICS}: {why}, so that only what the replay reproduces is verified, and "
                    "not its times and speeds"
                )
        else:
            self.files += 1
            self._unrecorded_rows(path, recorded.bytes)

    def _unrecorded_rows(self, path: Path, start: int) -> None:
        try:
            steps = [row["step"] for row, _ in read_json_lines_from(path, start, ROW)]
        except GptlabError as error:
            self.damaged(path, str(error))
            return
        if steps:
            self.notes.append(
                f"no checksum covers the rows of {METRICS} from step {steps[0]} on, after which the run was killed, so "
                "that only what the replay reproduces is verified there, and not their times and speeds"
            )
        elif problem := _surplus(path):
            self.notes.append(f"{METRICS} {problem}")

    def tokenizer(self, run: Run) -> None:
        """Check the run's copy of its tokenizer."""
        if run.record.spec.data.tokenizer not in vocabularies.NAMED:
            path = self.directory / TOKENIZER
            self._count(path, _sha256_problem(path, run.record.tokenizer_sha256))

    def patches(self, history: History) -> None:
        """Check the patches of uncommitted changes."""
        for sha256 in dict.fromkeys(start.get("diff_sha256") for start in history.starts):
            if sha256:
                path = patch_path(self.directory, sha256)
                self._count(path, _sha256_problem(path, sha256))

    def evaluations(self) -> None:
        """Check the losses that `gptlab eval` stored, and their explanations."""
        for path in sorted((self.directory / EVALUATIONS).glob("*.safetensors")):
            try:
                if path.name.startswith(explanations.PREFIX):
                    explanations.read(path)
                else:
                    evaluations.read(path)
            except GptlabError as error:
                self.damaged(path, str(error))
            else:
                self.files += 1


def _sha256_problem(path: Path, expected: str) -> str | None:
    try:
        with open_regular(path) as file:
            found = hashlib.sha256(file.read(MAX_STORED_PATCH_BYTES)).hexdigest()
    except FileNotFoundError:
        return "is missing"
    except GptlabError as error:
        return str(error)
    return None if found == expected else "has changed since it was written"


def _surplus(path: Path) -> str | None:
    """Return what is wrong with the end of a JSON Lines file: a row whose newline has changed.

    A line that a crash tore is part of a row, so that no JSON object ends in it.
    """
    with suppress(FileNotFoundError, ValueError), open_regular(path) as file:
        rest = _last_bytes(file.seek, file.read).decode(errors="replace")
        if rest:
            json.JSONDecoder().raw_decode(rest)
            return "has changed since it was written: its last row does not end with a newline"
    return None


def _last_bytes(seek: Callable[[int, int], int], read: Callable[[int], bytes]) -> bytes:
    """The bytes after the last newline."""
    size = seek(0, 2)
    seek(max(size - MAX_LINE_BYTES, 0), 0)
    return read(MAX_LINE_BYTES).rpartition(b"\n")[2]


def _raw_rows(path: Path) -> Iterator[dict[str, object]]:
    """Yield the rows with their digests."""
    with suppress(FileNotFoundError), open_regular(path) as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row
