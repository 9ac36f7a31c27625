"""The bytes of a bundle besides its files: a plain tar in which no byte is free.

Owner, permissions and times are constants, so each header follows from a name and a size. A reader compares the bytes
with those that it expects instead of parsing them. So a bundle holds no links, devices, sparse files or surprises, and
a flipped bit is found wherever it is, in the padding too.
"""

import tarfile
from collections.abc import Iterable
from pathlib import Path

from gptlab.errors import BadInputError

BLOCK = tarfile.BLOCKSIZE
KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}


def is_bundle(argument: str) -> bool:
    """Return whether an argument names a bundle and not a run."""
    try:
        return argument.endswith(".tar") or Path(argument).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user's home, a NUL
        return False


def member(name: str, size: int) -> tarfile.TarInfo:
    """Return a member of a bundle: a regular file that belongs to nobody and has no time."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def header(name: str, size: int) -> bytes:
    """Return the bytes before a file's content. A size of 8 GiB or a name of more than 100 bytes adds a PAX header."""
    return member(name, size).tobuf(tarfile.PAX_FORMAT, "ascii", "strict")


def padding(size: int) -> bytes:
    """Return the bytes after a content of this size."""
    return bytes(-size % BLOCK)


def end(size: int) -> bytes:
    """Return the bytes after the last member of a tar with `size` bytes up to there."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % tarfile.RECORDSIZE)


def length(files: Iterable[tuple[str, int]]) -> int:
    """Return the length of a bundle with files of these names and sizes."""
    size = sum(len(header(name, size)) + size + len(padding(size)) for name, size in files)
    return size + len(end(size))


def first_size(start: bytes, name: str) -> int:
    """Return the size of the first file of a bundle.

    Args:
        start: The first block.
        name: The name that the file must have.

    Raises:
        BadInputError: The block does not begin a bundle; the message says what it is instead.
    """
    for magic, program in COMPRESSED.items():
        if start.startswith(magic):
            raise BadInputError(f"it is compressed with {program}, and a bundle is a plain tar; decompress it first")
    try:
        found = tarfile.TarInfo.frombuf(start, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError, ValueError):
        raise BadInputError("it is not a tar, or its beginning is damaged") from None
    if found.name != name or found.size < 0 or start != header(name, found.size):
        raise BadInputError(
            f"its first file is not {name} as gptlab writes it: it is no bundle, is damaged, or another tool packed it"
        )
    return found.size


def difference(found: bytes, name: str) -> str:
    """Return how the bytes where the header of a file should be differ from it."""
    try:
        other = tarfile.TarInfo.frombuf(found[-BLOCK:], "utf-8", "backslashreplace")
    except (tarfile.HeaderError, ValueError):
        return f"the header of {name} is damaged"
    if kind := KINDS.get(other.type):
        return f"instead of the file {name} it holds {kind}, {other.name!a}"
    if other.name != name:
        return f"it holds {other.name!a} instead of {name}"
    return f"the header of {name} is not as gptlab writes it"
