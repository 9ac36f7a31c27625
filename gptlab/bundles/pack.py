"""Write a bundle. The same runs give the same bytes, and memory does not depend on their size."""

import hashlib
import importlib.metadata
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from gptlab.bundles.anonymous import without_paths
from gptlab.bundles.collect import Source, digest
from gptlab.bundles.contents import (
    CONTENTS,
    MAX_BYTES,
    MAX_CONTENTS_BYTES,
    MAX_FILES,
    BundledRun,
    Contents,
    File,
    describe,
)
from gptlab.bundles.members import end, header, length, padding
from gptlab.checkpoints.manifest import MIB
from gptlab.errors import BadInputError, GptlabError
from gptlab.files import atomic_write
from gptlab.interrupts import exiting_on_termination
from gptlab.terminal.text import format_bytes
from gptlab.tracking.metrics import METRICS
from gptlab.tracking.run import Run
from gptlab.untrusted import open_regular
from gptlab.validation import explain

MAX_RECORD_BYTES = 1 << 28
"""Bound on a file of a run that is neither weights nor metrics, which have checksums."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that was written."""

    path: Path
    bytes: int
    sha256: str
    contents: Contents


def write(path: Path, runs: Sequence[Run], sources: Sequence[Source], *, force: bool) -> Bundle:
    """Write a bundle atomically.

    Args:
        path: The file.
        runs: The runs, by id.
        sources: The files to pack, by name.
        force: Whether to replace a file that exists.

    Raises:
        BadInputError: There are too many files, or they are too large.
        GptlabError: A file cannot be read or changes meanwhile, the disk lacks space, or the path has been taken.
    """
    contents = _contents(runs, sources)
    document = contents.to_json()
    if len(document) > MAX_CONTENTS_BYTES:
        raise _too_many(sources)
    size = length([(CONTENTS, len(document)), *((file.name, file.bytes) for file in contents.files)])
    if size > MAX_BYTES:
        raise BadInputError(
            f"a bundle has at most {format_bytes(MAX_BYTES)}, not {format_bytes(size)}; pack fewer runs"
        )
    _check_space(path, size)
    with exiting_on_termination(), atomic_write(path, durable=True) as target:
        out = _Hashed(target)
        for block in _blocks(document, contents, sources):
            out.write(block)
        if not force and path.exists():  # made meanwhile
            raise GptlabError(f"{path} has appeared while the bundle was written; pass --force to replace it")
    return Bundle(path, size, out.digest.hexdigest(), contents)


class _Hashed:
    """A file that is written, and its sha256."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self._file = file

    def write(self, block: bytes) -> None:
        self.digest.update(block)
        self._file.write(block)


def _too_many(sources: Sequence[Source]) -> BadInputError:
    return BadInputError(f"a bundle holds at most {MAX_FILES:,} files, not {len(sources):,}; pack fewer runs")


def _contents(runs: Sequence[Run], sources: Sequence[Source]) -> Contents:
    if len(sources) > MAX_FILES:
        raise _too_many(sources)
    files = []
    for source in sources:
        _check_record(source)
        try:
            found = digest(source.origin)
        except FileNotFoundError:
            raise GptlabError(f"{source.origin!s} is missing") from None
        files.append(File(name=source.name, bytes=found.bytes, sha256=found.sha256))
    hashes = {file.name: file.sha256 for file in files}
    return Contents(
        gptlab=importlib.metadata.version("gptlab"),
        runs=tuple(_describe(run, hashes) for run in runs),
        files=tuple(files),
    )


def _check_record(source: Source) -> None:
    """Check that a record is not as large as no record is, such as a sparse file, before it is read."""
    is_record = not source.name.endswith((METRICS, ".safetensors", ".txt"))
    if is_record and isinstance(source.origin, Path) and source.origin.is_file():
        size = source.origin.stat().st_size
        if size > MAX_RECORD_BYTES:
            raise GptlabError(
                f"{source.origin} has {format_bytes(size)}, and a record has at most {format_bytes(MAX_RECORD_BYTES)}: "
                "it is damaged"
            )


def _describe(run: Run, hashes: Mapping[str, str]) -> BundledRun:
    try:
        return describe(without_paths(run.record), run.history().starts, hashes)
    except ValidationError as error:
        raise GptlabError(f"{run.id} cannot be bundled, because no reader would accept it: {explain(error)}") from None


def _check_space(path: Path, size: int) -> None:
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise GptlabError(f"{path.parent} cannot be written: {error.strerror}") from None
    if free < size:
        raise GptlabError(
            f"the bundle needs {format_bytes(size)}, but {path.parent} has {format_bytes(free)} free; free some space, "
            "or pass --checkpoints none"
        )


def _blocks(document: bytes, contents: Contents, sources: Sequence[Source]) -> Iterator[bytes]:
    """Yield the bytes of the tar."""
    first: tuple[str, int, Iterable[bytes]] = (CONTENTS, len(document), [document])
    others = [(file.name, file.bytes, _read(s.origin, file)) for s, file in zip(sources, contents.files, strict=True)]
    written = 0
    for name, size, content in [first, *others]:
        start, rest = header(name, size), padding(size)
        yield start
        yield from content
        yield rest
        written += len(start) + size + len(rest)
    yield end(written)


def _read(origin: Path | bytes, expected: File) -> Iterator[bytes]:
    """Yield a content, which must still be what `bundle.json` says.

    Raises:
        GptlabError: It is not.
    """
    if isinstance(origin, bytes):
        yield origin
        return
    sha256, remaining = hashlib.sha256(), expected.bytes
    try:
        with open_regular(origin) as file:
            while block := file.read(min(MIB, remaining)):
                sha256.update(block)
                remaining -= len(block)
                yield block
            changed = remaining or file.read(1) or sha256.hexdigest() != expected.sha256
    except FileNotFoundError:
        changed = True
    if changed:
        raise GptlabError(f"{origin} has changed while it was packed; try again when nothing writes to it")
