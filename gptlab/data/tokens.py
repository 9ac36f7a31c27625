"""A text's tokens on disk: split, tokenised once, memory-mapped for training.

The text is split by bytes (the same validation text whatever the tokenizer), each part is tokenised in pieces, and the
result lies in the cache under a key of the text's and the tokenizer's hashes.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from gptlab import project
from gptlab.data import tokenizer
from gptlab.data.text import Text
from gptlab.errors import BadInputError
from gptlab.spec import canonical_json

BLOCK_BYTES = 1 << 20
PIECE_CHARACTERS = 1 << 18
"""The longest stretch that is tokenised at once; tiktoken gives up on a million spaces in a row."""
MOST_THREADS = 16
"""The thread that reads and writes keeps no more of them busy."""
TOKEN_DTYPE = np.dtype("<u2")  # 50,257 tokens fit into 16 bits

_WORD = "0-9A-Za-z\u3041-\u3093\u30a1-\u30f6\u4e00-\u9fa5\uac00-\ud7a3"  # letters and digits
_PUNCTUATION = "!-/:-@\\[-`{-~\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"
SAFE_CUT = re.compile(rf"(?<=[{_WORD}])(?=[{_PUNCTUATION}])|(?<=\S)(?=[ \t\r\n])")
CUT_LOOK = 256  # characters looked at in one go, from the end: a cut is nearly always among the first

REMEDIES = {
    b"\x1f\x8b": "it is compressed by gzip: unpack it first with gunzip",
    b"BZh": "it is compressed by bzip2: unpack it first with bunzip2",
    b"\xfd7zXZ": "it is compressed by xz: unpack it first with unxz",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd: unpack it first with unzstd",
    b"PK\x03\x04": "it is a ZIP archive (or an office document): unpack it, or save it as plain text",
    b"%PDF": "it is a PDF: extract its text first, for instance with pdftotext",
    b"\xff\xfe": "it looks like UTF-16: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "it looks like UTF-16: iconv -f UTF-16 -t UTF-8",
}
"""What files that are no UTF-8 begin with, and what to do about them."""

logger = logging.getLogger(__name__)

_Encoded = tuple[str, NDArray[np.uint16]]
"""A piece and its tokens."""


@dataclass(frozen=True)
class Split:
    """One part of a text, in tokens; `tokens` has shape `(count,)`, dtype uint16, and is memory-mapped."""

    tokens: NDArray[np.uint16]
    size: int
    """Bytes of text."""
    sha256: str
    """Of those bytes."""


@dataclass(frozen=True)
class Tokens:
    """A text's training part and the validation part after it."""

    train: Split
    val: Split


@dataclass(frozen=True)
class _Part:
    """What the cache's `meta.json` records of one part."""

    count: int
    size: int
    sha256: str
    end_of_texts: int


def prepare(text: Text, val_fraction: float) -> Tokens:
    """The text's tokens: from the cache, or tokenised now by whichever process comes first.

    Raises:
        BadInputError: The text is not UTF-8.
    """
    key = [text.sha256, tokenizer.TOKENIZER_SHA256, val_fraction, str(TOKEN_DTYPE), PIECE_CHARACTERS]
    folder = project.cache_directory() / "tokens" / hashlib.sha256(canonical_json(key).encode()).hexdigest()[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        parts = _read_meta(folder)
        if parts is None:
            if folder.exists():
                logger.warning("the cached tokens of %s are damaged and are made anew", text.source)
                shutil.rmtree(folder)
            _tokenise(text, val_fraction, folder)
            parts = _read_meta(folder)
    if parts is None:
        raise OSError(f"tokens written to {folder} do not read back")
    end_of_texts = sum(part.end_of_texts for part in parts.values())
    if end_of_texts:
        logger.warning("the text holds %d literal %s: they are ordinary text here", end_of_texts, tokenizer.END_OF_TEXT)
    return Tokens(*(_open(folder / f"{name}.u16", parts[name]) for name in ("train", "val")))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; who waits says so."""
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.warning("another process tokenises this text; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _open(path: Path, part: _Part) -> Split:
    empty = np.empty(0, TOKEN_DTYPE)  # an empty file cannot be mapped
    tokens = np.memmap(path, TOKEN_DTYPE, mode="r") if part.count else empty
    return Split(tokens, part.size, part.sha256)


def _read_meta(folder: Path) -> dict[str, _Part] | None:
    """The parts as recorded, or None where a file is missing or of another size."""
    try:
        document = json.loads((folder / "meta.json").read_text())
        parts = {name: _Part(**document[name]) for name in ("train", "val")}
        sizes = {name: (folder / f"{name}.u16").stat().st_size for name in parts}
        whole = all(sizes[name] == part.count * TOKEN_DTYPE.itemsize for name, part in parts.items())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return parts if whole else None


def _tokenise(text: Text, val_fraction: float, folder: Path) -> None:
    boundary = split_boundary(text.path, round(text.size * (1 - val_fraction)))
    whole, of_val = hashlib.sha256(), hashlib.sha256()
    staging = folder.with_suffix(".making")
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed: the lock is ours
    staging.mkdir()
    try:
        with _progress(text) as advance, _encoder() as encode:
            train = pieces(text, 0, boundary)
            val = pieces(text, boundary, text.size)
            parts = {
                "train": _tokenise_part(encode(train), staging / "train.u16", [whole], advance),
                "val": _tokenise_part(encode(val), staging / "val.u16", [of_val, whole], advance),
            }
        if whole.hexdigest() != text.sha256:
            raise BadInputError(f"'{text.source}' changed while it was read; try again")
        (staging / "meta.json").write_text(json.dumps({name: asdict(part) for name, part in parts.items()}))
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging)
        raise


def _tokenise_part(
    encoded: Iterator[_Encoded], path: Path, digests: "list[hashlib._Hash]", advance: Callable[[int], None]
) -> _Part:
    """Write one part's tokens; all digests go on over its bytes, and the first one is the part's."""
    count = size = end_of_texts = 0
    with path.open("wb") as file:
        for piece, tokens in encoded:
            raw = piece.encode()
            for digest in digests:
                digest.update(raw)
            end_of_texts += piece.count(tokenizer.END_OF_TEXT)
            count += len(tokens)
            size += len(raw)
            file.write(tokens.data)
            advance(len(raw))
    return _Part(count, size, digests[0].hexdigest(), end_of_texts)


@contextmanager
def _encoder() -> Iterator[Callable[[Iterator[str]], Iterator[_Encoded]]]:
    """A function that gives pieces with their tokens, in order, encoded by as many threads as there are cores to use.

    Only a few pieces per thread are in memory at a time.
    """
    gpt2 = tokenizer.gpt2()  # loaded once, before there are threads
    threads, own = min(os.cpu_count() or 1, MOST_THREADS), threading.local()

    def begin() -> None:
        own.encoding = tokenizer.duplicate(gpt2)

    def encode(piece: str) -> NDArray[np.uint16]:
        tokens: NDArray[np.uint32] = own.encoding.encode_to_numpy(piece, disallowed_special=())
        return tokens.astype(TOKEN_DTYPE)

    def encode_all(remaining: Iterator[str]) -> Iterator[_Encoded]:
        waiting: deque[tuple[str, Future[NDArray[np.uint16]]]] = deque()
        for piece in remaining:
            waiting.append((piece, pool.submit(encode, piece)))
            if len(waiting) > 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        for piece, future in waiting:
            yield piece, future.result()

    with ThreadPoolExecutor(threads, initializer=begin) as pool:
        yield encode_all


@contextmanager
def _progress(text: Text) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, on stderr; gives the function that moves it on by so many bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("  tokenising"), BarColumn(bar_width=None), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tokenising", total=text.size)
        yield lambda size: bar.update(task, advance=size)


def split_boundary(path: Path, target: int) -> int:
    """The first byte offset from `target` on where whitespace follows a printable ASCII character.

    Where the next MiB has none, the first character boundary.
    """
    if target < 1:
        return 0
    with path.open("rb") as file:
        file.seek(target - 1)
        ahead = file.read(BLOCK_BYTES)
    if found := re.search(rb"[!-~](?=[ \t\r\n])", ahead):
        return target - 1 + found.end()
    continuation = re.match(rb"[\x80-\xbf]*", ahead[1:])
    return target + (continuation.end() if continuation else 0)


def pieces(
    text: Text, start: int, end: int, longest: int = PIECE_CHARACTERS, block_bytes: int = BLOCK_BYTES
) -> Iterator[str]:
    """The text between two byte offsets, in pieces of at most `longest` characters.

    The tokens of the pieces are those of the whole, unless a stretch longer than `longest` has no place for a safe cut:
    such a stretch is cut every `longest` characters from its beginning, a matter of the text alone.

    Raises:
        BadInputError: The bytes are not UTF-8; the message names the offset of the first bad one.
    """
    rest = ""
    for block in _blocks(text, start, end, block_bytes):
        rest += block
        begin = 0
        while len(rest) - begin > longest:  # one character more than a piece: a cut looks at what follows it
            cut = safe_cut(rest, begin, begin + longest) or begin + longest
            yield rest[begin:cut]
            begin = cut
        rest = rest[begin:]
    if rest:
        yield rest


def safe_cut(text: str, begin: int, end: int) -> int | None:
    """The last index in `(begin, end]` before which `text` can be cut without changing its tokens, or None.

    GPT-2's pattern puts no letter or digit into one match with the punctuation after it, nor any of them with the
    whitespace after it, and looks at nothing before a match: a cut there changes nothing on either side. Only
    characters whose kind is the same in every version of Unicode are looked at.
    """
    for high in range(end, begin, -CUT_LOOK):
        cuts = [found.start() for found in SAFE_CUT.finditer(text, max(high - CUT_LOOK, begin) + 1, high + 1)]
        if cuts:
            return cuts[-1]
    return None


def _blocks(text: Text, start: int, end: int, block_bytes: int) -> Iterator[str]:
    with text.path.open("rb") as file:
        file.seek(start)
        position, undecoded = start, b""
        while position < end:
            block = file.read(min(block_bytes, end - position))
            if not block:
                raise BadInputError(f"'{text.source}' became shorter while it was read; try again")
            position += len(block)
            raw = undecoded + block
            decoded, undecoded = _decode(raw, position - len(raw), text, last=position == end)
            yield decoded


def _decode(raw: bytes, offset: int, text: Text, *, last: bool) -> tuple[str, bytes]:
    """The decoded characters, and the bytes of a character that the next block completes."""
    try:
        return raw.decode(), b""
    except UnicodeDecodeError as error:
        if not last and error.reason == "unexpected end of data":
            return raw[: error.start].decode(), raw[error.start :]
        raise BadInputError(
            f"'{text.source}' is not UTF-8: byte 0x{raw[error.start]:02x} at offset {offset + error.start:,}; "
            f"{_remedy(text)}"
        ) from None


def _remedy(text: Text) -> str:
    with text.path.open("rb") as file:
        beginning = file.read(8)
    for magic, remedy in REMEDIES.items():
        if beginning.startswith(magic):
            return remedy
    return "convert it first, for instance: iconv -f LATIN1 -t UTF-8"
