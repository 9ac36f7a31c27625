"""The text that an experiment trains on: a named one, or any UTF-8 `.txt` file.

A text is its bytes. Nothing is normalized: a byte-order mark, CR LF line endings and NUL characters are tokenized as
they are.
"""

import hashlib
import http.client
import importlib.metadata
import logging
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gptlab import project
from gptlab.checksums import file_digest
from gptlab.data.encoding import control_notice
from gptlab.data.pandas_docs import pandas_docs
from gptlab.errors import BadInputError
from gptlab.files import atomic_write, writable_cache
from gptlab.validation import did_you_mean

NAMED = ("pandas-docs", "shakespeare")

PANDAS_VERSION = "3.1.1"
PANDAS_DOCS_SHA256 = "24d7b6578989cb289e5843917ff6daeba241ea1bc9d90391465ea1ace7d062c5"

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_BYTES = 1_115_394

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Text:
    """A text file and the hash of its content."""

    source: str
    """The name or path given in the spec."""
    path: Path
    size: int
    """Bytes."""
    sha256: str


def locate(source: str) -> Text:
    """Find a text by name or path; a named text that is not in the cache is created or downloaded.

    Relative paths are resolved against the working directory, then against the project's root.

    Raises:
        BadInputError: The text does not exist, or cannot be read, created or downloaded.
    """
    if source == "pandas-docs":
        path = _pandas_docs_file()
    elif source == "shakespeare":
        path = _shakespeare_file()
    else:
        path = _user_file(source)
    try:
        if source not in NAMED and (notice := control_notice(path)):
            logger.warning(notice)
        return Text(source, path, path.stat().st_size, sha256_of(path))
    except OSError as error:
        raise BadInputError(f"'{source}' cannot be read: {error.strerror}") from error


def sha256_of(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return file_digest(file, "sha256")


def find_file(source: str) -> Path | None:
    """Return the file or folder of a path, relative to the working directory or the project's root; None if neither."""
    try:
        given = Path(source).expanduser()
        folders = [folder for folder in (Path.cwd(), project.find_root()) if folder]
        return next((folder / given for folder in folders if (folder / given).exists()), None)
    except (OSError, RuntimeError, ValueError):  # a name that is too long, an unknown user's home, a NUL
        return None


def _user_file(source: str) -> Path:
    path = find_file(source)
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
        raise BadInputError("the text 'pandas-docs' needs pandas: pip install pandas") from None
    path = project.cache_directory() / "texts" / f"pandas-docs-{version}.txt"
    expected = PANDAS_DOCS_SHA256 if version == PANDAS_VERSION else None
    if not path.is_file() or (expected and sha256_of(path) != expected):
        with atomic_write(writable_cache("texts") / path.name) as file:
            file.write(pandas_docs().encode())
        if expected and sha256_of(path) != expected:
            path.unlink()
            raise BadInputError(
                f"the installed pandas {version} was modified: its docstrings differ from the release; "
                f"reinstall it: pip install --force-reinstall --no-deps pandas=={version}"
            )
    if expected is None:
        logger.warning(
            "pandas-docs of pandas %s differs from that of pandas %s: runs on it have different ids",
            version,
            PANDAS_VERSION,
        )
    return path


def _shakespeare_file() -> Path:
    path = project.cache_directory() / "texts" / "shakespeare.txt"
    if path.is_file() and sha256_of(path) == SHAKESPEARE_SHA256:
        return path
    writable_cache("texts")
    try:
        with atomic_write(path) as file:
            if _download(SHAKESPEARE_URL, file) != SHAKESPEARE_SHA256:
                raise BadInputError(
                    f"{SHAKESPEARE_URL} is not the expected text (its sha256 differs); "
                    "pass the path of your own copy: --text shakespeare.txt"
                )
    except (OSError, http.client.HTTPException) as error:
        raise BadInputError(
            f"the text 'shakespeare' could not be downloaded from {SHAKESPEARE_URL} ({str(error).strip()}); "
            "pass the path of a copy instead: --text path/to/shakespeare.txt"
        ) from error
    return path


def _download(url: str, file: BinaryIO) -> str:
    """Download the URL into the file and return the sha256 of the content."""
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
