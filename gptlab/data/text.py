"""Which text an experiment reads: a named one, or the path of any UTF-8 `.txt`.

A text is its bytes: nothing is normalised. A byte-order mark, CR LF line ends and NUL characters are tokenised as they
stand.
"""

import hashlib
import http.client
import importlib.metadata
import json
import logging
import os
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gptlab import project
from gptlab.data.pandas_docs import pandas_docs
from gptlab.errors import BadInputError
from gptlab.spec import did_you_mean

NAMED = ("pandas-docs", "shakespeare")

PANDAS_VERSION = "3.1.1"
PANDAS_DOCS_SHA256 = "24d7b6578989cb289e5843917ff6daeba241ea1bc9d90391465ea1ace7d062c5"

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_BYTES = 1_115_394

REMEMBERED_BYTES = 1 << 24
SETTLED_NS = 2_000_000_000
"""A file that changed just now could change again without another time of change: clocks of file systems are coarse."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Text:
    """A file of text, named by its content."""

    source: str
    """As the spec names it."""
    path: Path
    size: int
    """Bytes."""
    sha256: str


def locate(source: str) -> Text:
    """The text of that name or path, made or downloaded first where it is a named one that is not there yet.

    Relative paths are looked up in the working directory, then in the project's root.

    Raises:
        BadInputError: There is no such text, or it cannot be had.
    """
    if source == "pandas-docs":
        path = _pandas_docs_file()
    elif source == "shakespeare":
        path = _shakespeare_file()
    else:
        path = _user_file(source)
    try:
        return Text(source, path, path.stat().st_size, sha256_of(path))
    except OSError as error:
        raise BadInputError(f"'{source}' cannot be read: {error.strerror}") from error


def sha256_of(path: Path) -> str:
    """The file's sha256, in hexadecimal; a big file's is remembered for as long as nothing about it changes."""
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        if facts.st_size < REMEMBERED_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        note = project.cache_directory() / "sha256" / f"{facts.st_dev}-{facts.st_ino}.json"
        state = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
        try:
            document = json.loads(note.read_bytes())
            if document["state"] == state:
                return str(document["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not remembered
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - max(state[1:]) > SETTLED_NS:
        with _published(note) as remembered:
            remembered.write(json.dumps({"state": state, "sha256": digest}).encode())
    return digest


def _user_file(source: str) -> Path:
    try:
        given = Path(source).expanduser()
        path = next((path for path in (given.absolute(), project.root() / given) if path.exists()), None)
    except (OSError, RuntimeError):  # a name that is too long, a home that nobody has
        path = None
    if path is None:
        if "/" not in source and not source.endswith(".txt") and (hint := did_you_mean(source, list(NAMED))):
            raise BadInputError(f"there is no text '{source}'{hint}")
        raise BadInputError(f"there is no file '{source}'; give the path of a .txt, or one of {', '.join(NAMED)}")
    if not path.is_file():
        raise BadInputError(f"'{source}' is not a regular file; give the path of a .txt")
    if path.stat().st_size == 0:
        raise BadInputError(f"'{source}' is empty; give a text to train on")
    return path


def _pandas_docs_file() -> Path:
    try:
        version = importlib.metadata.version("pandas")
    except importlib.metadata.PackageNotFoundError:
        raise BadInputError("the text 'pandas-docs' is made from pandas: pip install pandas") from None
    path = project.cache_directory() / "texts" / f"pandas-docs-{version}.txt"
    expected = PANDAS_DOCS_SHA256 if version == PANDAS_VERSION else None
    if not path.is_file() or (expected and sha256_of(path) != expected):
        with _published(path) as file:
            file.write(pandas_docs().encode())
        if expected and sha256_of(path) != expected:
            path.unlink()
            raise BadInputError(
                f"the installed pandas {version} has been changed: its docstrings are not the released ones; "
                f"reinstall it: pip install --force-reinstall --no-deps pandas=={version}"
            )
    if expected is None:
        logger.warning(
            "pandas %s makes another text than pandas %s: runs on it have ids of their own", version, PANDAS_VERSION
        )
    return path


def _shakespeare_file() -> Path:
    path = project.cache_directory() / "texts" / "shakespeare.txt"
    if path.is_file() and sha256_of(path) == SHAKESPEARE_SHA256:
        return path
    try:
        with _published(path) as file:
            if _download(SHAKESPEARE_URL, file) != SHAKESPEARE_SHA256:
                raise BadInputError(
                    f"{SHAKESPEARE_URL} is not the text that was expected (its sha256 differs); "
                    "pass the path of your own copy: --text shakespeare.txt"
                )
    except (OSError, http.client.HTTPException) as error:
        raise BadInputError(
            f"the text 'shakespeare' could not be downloaded from {SHAKESPEARE_URL} ({str(error).strip()}); "
            "pass the path of a copy instead: --text path/to/shakespeare.txt"
        ) from error
    return path


def _download(url: str, file: BinaryIO) -> str:
    """Write what the URL has; returns its sha256."""
    from rich.console import Console
    from rich.progress import wrap_file

    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - the URL is a constant of this module
        total = int(response.headers.get("Content-Length", SHAKESPEARE_BYTES))
        with wrap_file(response, total, description="shakespeare", console=Console(stderr=True)) as body:
            while block := body.read(1 << 16):
                digest.update(block)
                file.write(block)
    return digest.hexdigest()


@contextmanager
def _published(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under `path` at once and whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "wb") as file:
        try:
            yield file
            file.flush()
            os.replace(name, path)
        except BaseException:
            Path(name).unlink()
            raise
