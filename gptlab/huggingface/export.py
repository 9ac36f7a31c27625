"""Write a directory that `GPT2LMHeadModel.from_pretrained` loads. It appears whole or not at all."""

import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISDIR

from gptlab.checkpoints.tensors import Tensors, write_tensors
from gptlab.errors import BadInputError, GptlabError
from gptlab.files import fsync_directory, fsync_file, make_directory, write_durably
from gptlab.huggingface.layout import WEIGHTS
from gptlab.interrupts import exiting_on_termination


def find_target(name: str) -> Path:
    """Return the absolute path of a directory that is to be written.

    Raises:
        BadInputError: It cannot be a directory, or exists and is not an empty one.
    """
    try:
        directory = Path(name).expanduser().absolute() if name else Path()
    except RuntimeError as error:  # there is no such user
        raise BadInputError(f"DIR is '{name}', which cannot be a directory: {error}") from error
    if not directory.name:
        raise BadInputError(f"DIR is '{name}', which cannot be a new directory; give a path such as exports/tiny")
    _check_free(directory)
    return directory


def _check_free(directory: Path) -> None:
    try:
        is_free = S_ISDIR(directory.lstat().st_mode) and not any(directory.iterdir())
    except FileNotFoundError:
        is_free = True
    except OSError as error:
        raise BadInputError(f"{directory!s:.200} cannot be written: {error.strerror}") from error
    except ValueError as error:  # a NUL
        raise BadInputError(f"{str(directory)!a} cannot be a directory: {error}") from error
    if not is_free:
        raise BadInputError(f"{directory} exists and is not an empty directory; remove it, or choose another one")


def write_directory(directory: Path, weights: Tensors, files: Mapping[str, bytes]) -> int:
    """Write the weights and the other files of a directory. Returns the number of bytes.

    They are written beside it under a temporary name, flushed to the disk, and renamed.

    Raises:
        BadInputError: See `find_target`.
        GptlabError: A file cannot be written.
    """
    make_directory(directory.parent)
    staging = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.tmp")
    try:
        staging.mkdir()
    except OSError as error:  # such as a name that is too long, or a folder in /proc
        raise GptlabError(f"{directory!s:.200} cannot be written: {error.strerror}") from error
    try:
        with exiting_on_termination():
            size = write_tensors(staging / WEIGHTS, weights, {"format": "pt"}).bytes  # transformers wants to know it
            fsync_file(staging / WEIGHTS)
            for name, content in files.items():
                write_durably(staging / name, content)
            _publish(staging, directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    fsync_directory(directory.parent)
    return size + sum(map(len, files.values()))


def _publish(staging: Path, directory: Path) -> None:
    try:
        staging.rename(directory)  # replaces an empty directory
    except OSError:
        _check_free(directory)  # another process may have written it meanwhile
        raise


def document(content: object) -> bytes:
    """Return a JSON file's content."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
