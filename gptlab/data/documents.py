"""The documents of text files: a file is one document, a line of a `.jsonl` is one, and `.gz` files are unpacked.

Documents are read in pieces, so that memory does not grow with a file.
"""

import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from gptlab import project
from gptlab.data.encoding import COMPRESSED, MARKED, OTHER_FORMATS, guess_encodings
from gptlab.errors import BadInputError
from gptlab.validation import listed

BLOCK_BYTES = 1 << 20
MAX_LINE_CHARACTERS = 1 << 28
"""A longer line of a `.jsonl` would fill the memory; it is probably no `.jsonl`."""
HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: no character, so UTF-8 has no bytes for it."""
JSON_LINES = (".jsonl", ".ndjson")
BEGINNING_BYTES = 1 << 13
BINARY_FORMATS = OTHER_FORMATS | {
    **{magic: f"compressed with {name}" for magic, (name, _) in COMPRESSED.items()},
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive or an office document",
}


class Piece(NamedTuple):
    """A part of a document."""

    begins: bool
    """Whether it is the first part of its document."""
    text: str


@dataclass(frozen=True)
class Skipped:
    """A file of a folder that is not a text."""

    path: Path
    reason: str


def find_files(sources: list[str], out: Path) -> tuple[list[Path], list[Skipped]]:
    """Return the files of all sources in sorted order, each once, and what is left out in folders.

    In folders, hidden files, the file `out` and links to folders are left out.

    Raises:
        BadInputError: A source does not exist, cannot be read or is the file `out`.
    """
    found: dict[Path, Path] = {}
    skipped: list[Skipped] = []
    for source in sources:
        given = given_path(source)
        if given.is_file() and given.resolve() == out.resolve():
            raise BadInputError(f"'{source}' is the output itself; leave it out, or write to another file")
        for file in [given] if given.is_file() else _files_below(given, skipped):
            found.setdefault(file.resolve(), file)
    found.pop(out.resolve(), None)
    return sorted(found.values(), key=lambda file: file.parts), skipped


def given_path(source: str) -> Path:
    """Return the file or folder that a source names.

    Raises:
        BadInputError: There is none.
    """
    try:
        path = Path(source).expanduser()
        usable, exists = path.is_file() or path.is_dir(), os.path.lexists(path)
    except (OSError, RuntimeError, ValueError):  # a name that is too long, an unknown user's home, a NUL
        usable = exists = False
    if exists and not usable:
        raise BadInputError(f"'{source}' is not a regular file or a folder; give files and folders with texts")
    if not usable:
        raise BadInputError(f"there is no file or folder '{source}'")
    return path


def _files_below(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """Yield the files in a folder and its folders; add what is left out to `skipped`."""

    def fail(error: OSError) -> None:
        raise BadInputError(f"'{error.filename}' cannot be read: {error.strerror}") from None

    for where, folders, names in os.walk(folder, onerror=fail):
        here = Path(where)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        skipped += [Skipped(here / name, "a link to a folder") for name in folders if (here / name).is_symlink()]
        for name in sorted(name for name in names if not name.startswith(".")):
            if (here / name).is_file():
                yield here / name
            else:
                skipped.append(Skipped(here / name, "not a regular file"))


def why_no_text(path: Path, encoding: str | None) -> str | None:
    """Return what a file is by its beginning if it is certainly no text, else None. A `.gz` is looked into."""
    with _reading(path), _open(path) as file:
        beginning = file.read(BEGINNING_BYTES)
    if _mark(beginning):
        return None
    for magic, name in BINARY_FORMATS.items():
        if beginning.startswith(magic):
            return name
    return "a binary file" if encoding is None and b"\0" in beginning else None


def documents(path: Path, encoding: str | None, text_key: str) -> tuple[str, Iterator[Piece]]:
    """Return the encoding of a file, and its documents in pieces. Empty documents are left out.

    Args:
        path: The file.
        encoding: The encoding of a file without a byte-order mark; UTF-8 for None.
        text_key: The key of the text in the lines of a `.jsonl`.

    Raises:
        BadInputError: The file cannot be read or decoded, or a line is not an object with such a text.
    """
    with _reading(path), _open(path) as file:
        marked = _mark(file.read(4))
    chosen = marked or codecs.lookup(encoding or "utf-8").name
    blocks = _decoded(path, chosen, certain=bool(marked or encoding))
    lines = Path(path.name.removesuffix(".gz")).suffix.lower() in JSON_LINES
    return chosen.removesuffix("-sig"), _texts_of_lines(path, blocks, text_key) if lines else _whole(blocks)


def _whole(blocks: Iterator[str]) -> Iterator[Piece]:
    begins = True
    for block in blocks:
        if block:
            yield Piece(begins, block)
            begins = False


def _texts_of_lines(path: Path, blocks: Iterator[str], text_key: str) -> Iterator[Piece]:
    for number, line in enumerate(_lines(path, blocks), start=1):
        if line.strip() and (text := _text_of(line, f"{project.display_path(path)} line {number:,}", text_key)):
            yield Piece(True, text)


def _lines(path: Path, blocks: Iterator[str]) -> Iterator[str]:
    parts: list[str] = []
    for block in blocks:
        first, *others = block.split("\n")
        parts.append(first)
        for other in others:
            yield "".join(parts)
            parts = [other]
        if sum(map(len, parts)) > MAX_LINE_CHARACTERS:
            raise BadInputError(
                f"{project.display_path(path)} has a line of more than {MAX_LINE_CHARACTERS:,} characters"
            )
    yield "".join(parts)


def _text_of(line: str, where: str, text_key: str) -> str:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadInputError(f'{where} is not a JSON object; each line must be like {{"{text_key}": "…"}}')
    if text_key not in document:
        keys = listed(document) or "none"
        raise BadInputError(f"{where} has no key '{text_key}'; its keys are: {keys}; choose one with --text-key")
    text = document[text_key]
    if not isinstance(text, str):
        raise BadInputError(f"{where}: the value of '{text_key}' is not a string; choose another key with --text-key")
    if HALF.search(text):
        raise BadInputError(f"{where}: the text has half of a surrogate pair, which is no character")
    return text


def _decoded(path: Path, encoding: str, *, certain: bool) -> Iterator[str]:
    """Yield the text of a file, block by block. `certain`: the encoding was given or has a mark."""
    decoder = codecs.getincrementaldecoder(encoding)()
    position = 0
    with _reading(path), _open(path) as file:
        while True:
            block = file.read(BLOCK_BYTES)
            position += len(block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                offset = position - len(error.object) + error.start
                raise _wrong_encoding(path, offset, error, encoding, certain) from None
            except UnicodeError as error:  # such as UTF-16 without a mark: which byte comes first?
                raise BadInputError(f"'{project.display_path(path)}' is not {encoding.upper()}: {error}") from None
            if HALF.search(text):  # some decoders make it
                raise BadInputError(f"'{project.display_path(path)}' is not {encoding.upper()}: half a surrogate pair")
            yield text
            if not block:
                return


def _wrong_encoding(path: Path, offset: int, error: UnicodeDecodeError, encoding: str, certain: bool) -> BadInputError:
    shown = project.display_path(path)
    problem = f"'{shown}' is not {encoding.removesuffix('-sig').upper()}: its byte {offset:,} cannot be decoded"
    if certain:
        return BadInputError(f"{problem}; pass the file's own encoding with --encoding")
    guesses = guess_encodings(error.object[max(error.start - BEGINNING_BYTES, 0) :])
    if not guesses:
        return BadInputError(f"{problem}, and no known encoding fits; is it a text?")
    first, *others = guesses
    otherwise = f" (or {' or '.join(others)})" if others else ""
    remedy = f"pass --encoding {first}, and check that the result reads well"
    return BadInputError(f"{problem}; it looks like {first}{otherwise}: {remedy}")


def _mark(beginning: bytes) -> str | None:
    """Return the encoding of a byte-order mark; decoding with it leaves the mark out."""
    if beginning.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    return next((encoding.lower() for mark, encoding in MARKED.items() if beginning.startswith(mark)), None)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb"))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into one line that names it."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadInputError(f"'{project.display_path(path)}' is not a complete gzip file: {error}") from None
    except OSError as error:
        raise BadInputError(f"'{project.display_path(path)}' cannot be read: {error.strerror}") from None
