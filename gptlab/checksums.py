"""Checksums of files, computed once per state of a file and remembered in the cache directory.

A file's state is its device, inode, size, mtime and ctime. A note in the cache holds the state, the checksum and a
digest of both, so a damaged note is not believed. Where there is no valid note, the checksum is computed. A note that
cannot be written is no error: the checksum is computed again next time.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import xxhash

from gptlab import project
from gptlab.errors import GptlabError
from gptlab.files import atomic_write

Algorithm = Literal["sha256", "xxh3_128"]

BLOCK_BYTES = 1 << 20
MIN_BYTES = 1 << 24
"""Checksums of fewer bytes are not remembered: computing them is as fast as reading a note."""
MIN_AGE_NS = 2_000_000_000
"""A file modified more recently could change again with the same mtime: file system clocks are coarse."""


def file_digest(file: BinaryIO, algorithm: Algorithm, length: int | None = None) -> str:
    """Return the checksum of an open file in hexadecimal. The file's position does not matter and does not change.

    Args:
        file: The file, open for reading.
        algorithm: The checksum's algorithm.
        length: How many bytes to read from the file's beginning; by default all. One checksum per file and algorithm
            is remembered, so ask for one length at a time.

    Raises:
        GptlabError: The file is shorter than `length`, or became shorter while it was read.
        OSError: It cannot be read.
    """
    state = _state(file)
    size = state["size"] if length is None else length
    if size < MIN_BYTES:
        return _compute(file, algorithm, size)
    note, content = _note(state, algorithm), {**state, "algorithm": algorithm, "length": size}
    remembered = _read(note)
    if remembered and remembered == {**content, "checksum": remembered.get("checksum")}:
        return str(remembered["checksum"])
    checksum = _compute(file, algorithm, size)
    age_ns = time.time_ns() - max(state["mtime_ns"], state["ctime_ns"])
    if _state(file) == state and age_ns > MIN_AGE_NS:
        _write(note, {**content, "checksum": checksum})
    return checksum


def forget_digests(path: Path) -> None:
    """Drop what is remembered of a file, because its content is not what its checksum says."""
    with suppress(OSError), path.open("rb") as file:
        state = _state(file)
        for algorithm in get_args(Algorithm):
            _note(state, algorithm).unlink(missing_ok=True)


def _state(file: BinaryIO) -> dict[str, int]:
    stat = os.fstat(file.fileno())
    return {
        "device": stat.st_dev,
        "inode": stat.st_ino,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
    }


def _compute(file: BinaryIO, algorithm: Algorithm, length: int) -> str:
    digest = hashlib.sha256() if algorithm == "sha256" else xxhash.xxh3_128()
    position = 0
    while position < length:
        block = os.pread(file.fileno(), min(BLOCK_BYTES, length - position), position)
        if not block:
            raise GptlabError(f"{file.name} has only {position:,} of its {length:,} bytes")
        digest.update(block)
        position += len(block)
    return digest.hexdigest()


def _note(state: dict[str, int], algorithm: str) -> Path:
    return project.cache_directory() / "checksums" / f"{state['device']}-{state['inode']}.{algorithm}.json"


def _read(note: Path) -> dict[str, Any] | None:
    """The content of a note; None if there is none or it is damaged."""
    try:
        document = json.loads(note.read_bytes())
        content: dict[str, Any] = document["content"]
        return content if document["digest"] == _digest_of(content) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _write(note: Path, content: dict[str, Any]) -> None:
    with suppress(OSError, GptlabError), atomic_write(note, make_parents=True) as file:  # for example a read-only cache
        file.write(json.dumps({"digest": _digest_of(content), "content": content}).encode())


def _digest_of(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()
