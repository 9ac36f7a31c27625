"""Open a bundle that may be malicious.

Nothing is unpacked before the whole layout is known: `bundle.json` comes first, and names, order and sizes of the other
files follow from it, and so does the length of the tar. Then each header must be the one that gptlab writes for such a
file (`gptlab.bundles.members`), and each file must have its sha256. Nothing in a bundle is executed or applied.
"""

import hashlib
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from pydantic import ValidationError

from gptlab.bundles.contents import CONTENTS, MAX_BYTES, MAX_CONTENTS_BYTES, MAX_FILES, Contents, File
from gptlab.bundles.members import BLOCK, difference, end, first_size, header, length, member, padding
from gptlab.checkpoints.manifest import MIB
from gptlab.errors import BadInputError, GptlabError
from gptlab.interrupts import exiting_on_termination
from gptlab.temporary import temporary_directory
from gptlab.terminal.text import format_bytes, printable
from gptlab.untrusted import MAX_EXPLANATION, open_regular
from gptlab.validation import explain


@dataclass(frozen=True)
class Unpacked:
    """A bundle whose files have been checked and unpacked."""

    contents: Contents
    folder: Path
    """Where its files are."""
    bytes: int
    sha256: str
    """Of the bundle."""


@contextmanager
def unpacked(path: Path) -> Iterator[Unpacked]:
    """Check a bundle and unpack it into a temporary directory, which is removed at the end, after SIGTERM too.

    Raises:
        BadInputError: It is not a bundle, is damaged, or does not fit on the disk. The message names the bundle.
    """
    _check_filter()
    with exiting_on_termination(), temporary_directory("bundle") as folder:
        yield _unpack(path, folder)


def _unpack(path: Path, folder: Path) -> Unpacked:
    try:
        with open_regular(path) as file:
            return _Reader(file).unpack(folder)
    except FileNotFoundError:
        raise BadInputError(f"there is no file {path}") from None
    except BadInputError as error:
        raise BadInputError(f"{path} cannot be verified: {error}") from None
    except GptlabError as error:  # it is not a regular file or cannot be read
        raise BadInputError(str(error)) from None


class _Reader:
    """Reads a bundle from its beginning to its end."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        file.seek(0)
        self._digest = hashlib.sha256()

    def unpack(self, folder: Path) -> Unpacked:
        """Check and unpack everything."""
        contents, document = self._contents()
        sizes = [(CONTENTS, len(document)), *((file.name, file.bytes) for file in contents.files)]
        self._check_size(length(sizes), folder)
        for file in contents.files:
            self._unpack(file, folder)
        self._expect(end(self._file.tell()), "its end")
        return Unpacked(contents, folder, self._size, self._digest.hexdigest())

    def _contents(self) -> tuple[Contents, bytes]:
        start = self._read(BLOCK)
        size = first_size(start, CONTENTS)
        if size > MAX_CONTENTS_BYTES:
            raise BadInputError(f"{CONTENTS} has {size:,} bytes, and a list of {MAX_FILES:,} files has fewer")
        document = self._read(size)
        self._expect(padding(size), f"the bytes after {CONTENTS}")
        try:
            return Contents.from_json(document), document
        except ValidationError as error:
            raise BadInputError(f"{CONTENTS}: {printable(explain(error)):.{MAX_EXPLANATION}}") from None
        except ValueError as error:
            raise BadInputError(f"{CONTENTS}: {error}") from None

    def _check_size(self, expected: int, folder: Path) -> None:
        if self._size < expected:
            raise BadInputError(f"it is truncated: it has {self._size:,} of {expected:,} bytes")
        if self._size > expected:
            raise BadInputError(f"{self._size - expected:,} bytes follow its end, which {CONTENTS} does not list")
        if expected > MAX_BYTES:
            raise BadInputError(f"it has {format_bytes(expected)}, more than the {format_bytes(MAX_BYTES)} of a bundle")
        free = shutil.disk_usage(folder).free
        if free < expected:
            raise BadInputError(
                f"it needs {format_bytes(expected)}, but {folder.parent} has {format_bytes(free)} free; free some "
                "space, or set TMPDIR to a directory on another disk"
            )

    def _unpack(self, file: File, folder: Path) -> None:
        expected = header(file.name, file.bytes)
        found = self._read(len(expected))
        if found != expected:
            raise BadInputError(difference(found, file.name))
        target = folder / tarfile.data_filter(member(file.name, file.bytes), str(folder)).name
        if self._copy(file.bytes, target) != file.sha256:
            raise BadInputError(f"{file.name} is damaged: its sha256 is not the one in {CONTENTS}")
        self._expect(padding(file.bytes), f"the bytes after {file.name}")

    def _copy(self, size: int, target: Path) -> str:
        """Write the next bytes to a new file and return their sha256."""
        sha256 = hashlib.sha256()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                for start in range(0, size, MIB):
                    block = self._read(min(MIB, size - start))
                    sha256.update(block)
                    out.write(block)
        except OSError as error:
            raise BadInputError(
                f"{target.parent} cannot be written: {error.strerror}; free space there, or set TMPDIR to a directory "
                "on another disk"
            ) from None
        return sha256.hexdigest()

    def _expect(self, expected: bytes, what: str) -> None:
        if self._read(len(expected)) != expected:
            raise BadInputError(f"{what} is damaged" if what == "its end" else f"{what} are damaged")

    def _read(self, size: int) -> bytes:
        """Read exactly this many bytes."""
        try:
            block = self._file.read(size)
        except OSError as error:
            raise BadInputError(f"it cannot be read: {error.strerror}") from None
        if len(block) < size:
            raise BadInputError(f"it is truncated: it ends at byte {self._file.tell():,}")
        self._digest.update(block)
        return block


def _check_filter() -> None:
    if not hasattr(tarfile, "data_filter"):
        raise BadInputError("this Python's tarfile has no data filter; bundles need Python 3.11.4 or later")
