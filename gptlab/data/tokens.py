"""The token cache: a text is split and tokenized once, and training reads windows of the tokens.

The split is by bytes, so the validation text does not depend on the tokenizer. The cache key is a hash of the text, the
tokenizer, the split and the piece length. Checksums of the tokens are verified when they are opened. The files are read
and not memory-mapped, so a file that shrinks is an error: reading a mapped one would kill the process.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from gptlab import project
from gptlab.checksums import file_digest, forget_digests
from gptlab.data.pieces import PIECE_CHARACTERS, cut, pieces, split_boundary
from gptlab.data.text import Text
from gptlab.data.tokenizer import END_OF_TEXT
from gptlab.data.vocabularies import GPT2, Tokenizer
from gptlab.digests import canonical_json, check_digest, with_digest
from gptlab.errors import BadInputError, GptlabError
from gptlab.files import NOT_SUPPORTED, no_locks, writable_cache
from gptlab.interrupts import exiting_on_termination
from gptlab.limits import processors

MAX_THREADS = 16
"""The thread that reads and writes cannot keep more of them busy."""
TOKEN_DTYPE = np.dtype("<u2")  # no tokenizer has more tokens than 16 bits can number
SPLITS, META = ("train", "val"), "meta.json"
END_OF_SPLIT = ""
"""Follows the pieces of each split; no piece of a text is empty."""

logger = logging.getLogger(__name__)

_EncodedPiece = tuple[str, NDArray[np.uint16]]
"""A piece and its tokens."""


class TokenSequence(Protocol):
    """Tokens that can be read in slices: an array, or a `TokenFile`."""

    def __len__(self) -> int:
        """The number of tokens."""

    def __getitem__(self, tokens: slice, /) -> NDArray[np.uint16]:
        """The tokens of a slice without a step."""


class TokenFile:
    """A file of tokens, open for reading."""

    def __init__(self, path: Path, count: int) -> None:
        """Open a file of `count` tokens."""
        self._path, self._count = path, count
        self._file = path.open("rb", buffering=0)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, tokens: slice) -> NDArray[np.uint16]:
        """Read a slice without a step.

        Raises:
            GptlabError: The file has become shorter.
        """
        start, stop, _ = tokens.indices(self._count)
        size = max(stop - start, 0) * TOKEN_DTYPE.itemsize
        content = os.pread(self._file.fileno(), size, start * TOKEN_DTYPE.itemsize)
        if len(content) < size:
            raise GptlabError(f"{self._path} became shorter while it was in use; run the command again")
        return np.frombuffer(content, TOKEN_DTYPE)

    def checksum(self) -> str:
        """Return the xxh3_128 of the file in hexadecimal.

        Raises:
            GptlabError: The file is shorter or longer than its tokens.
        """
        size = self._count * TOKEN_DTYPE.itemsize
        if os.fstat(self._file.fileno()).st_size != size:
            raise GptlabError(f"{self._path} does not have {size:,} bytes")
        return file_digest(self._file, "xxh3_128")


@dataclass(frozen=True)
class Split:
    """The training or the validation part of a text."""

    tokens: TokenSequence
    size: int
    """Bytes of text."""
    sha256: str
    """Of these bytes."""
    tokenizer: Tokenizer = GPT2
    """What made the tokens."""


@dataclass(frozen=True)
class Tokens:
    """A text's training part, and the validation part that follows it."""

    train: Split
    val: Split
    end_of_texts: int
    """Number of literal `<|endoftext|>` in the text."""


@dataclass(frozen=True)
class _SplitRecord:
    """One split in the cache's `meta.json`."""

    count: int
    size: int
    sha256: str
    xxh3_128: str
    """Checksum of the file with the tokens."""
    end_of_texts: int


def prepare(text: Text, val_fraction: float, tokenizer: Tokenizer = GPT2) -> Tokens:
    """The text's tokens, from the cache if it has them; of concurrent processes, one tokenizes and the others wait.

    Damaged tokens are replaced, with a warning.

    Raises:
        BadInputError: The text is not UTF-8, or it changed while it was read.
        GptlabError: The cache cannot be written or read.
    """
    key = [text.sha256, tokenizer.sha256, val_fraction, str(TOKEN_DTYPE), PIECE_CHARACTERS]
    folder = project.cache_directory() / "tokens" / hashlib.sha256(canonical_json(key).encode()).hexdigest()[:32]
    # First without the lock, so that a read-only cache can be used.
    tokens = _open_tokens(folder, tokenizer) or _make_tokens(text, val_fraction, tokenizer, folder)
    if tokens.end_of_texts:
        logger.warning(
            "the text contains %d literal %s; they are tokenized as ordinary text",
            tokens.end_of_texts,
            END_OF_TEXT,
        )
    return tokens


def _make_tokens(text: Text, val_fraction: float, tokenizer: Tokenizer, folder: Path) -> Tokens:
    """Tokenize the text, unless another process does so first."""
    writable_cache("tokens")
    with _locked(folder.with_suffix(".lock")), exiting_on_termination():
        tokens = _open_tokens(folder, tokenizer)
        if tokens is None:
            if folder.exists():
                reason = _why_unusable(folder)
                logger.warning("the cached tokens of %s %s; tokenizing it again", text.source, reason)
                shutil.rmtree(folder)
            _tokenize(text, val_fraction, tokenizer, folder)
            tokens = _open_tokens(folder, tokenizer)
    if tokens is None:
        raise GptlabError(f"the tokens written to {folder} cannot be read back; check the disk")
    return tokens


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock; log a warning if another process holds it."""
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=1)
    except PermissionError:
        raise GptlabError(f"{path} belongs to another user; set GPTLAB_CACHE to a directory of your own") from None
    except Timeout:
        logger.warning("another process is tokenizing this text; waiting for it")
        lock.acquire()
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        raise no_locks(path.parent, error, "GPTLAB_CACHE") from error
    try:
        yield
    finally:
        lock.release()


def _open_tokens(folder: Path, tokenizer: Tokenizer) -> Tokens | None:
    """Open the cached tokens after verifying them. None if they are missing, damaged or without a checksum."""
    try:
        document = check_digest(json.loads((folder / META).read_bytes()))
        records = [_SplitRecord(**document[name]) for name in SPLITS]
        splits = []
        for name, record in zip(SPLITS, records, strict=True):
            tokens = TokenFile(folder / f"{name}.u16", record.count)
            if tokens.checksum() != record.xxh3_128:
                return None
            splits.append(Split(tokens, record.size, record.sha256, tokenizer))
    except (OSError, ValueError, TypeError, KeyError, GptlabError):
        return None
    train, val = splits
    return Tokens(train, val, sum(record.end_of_texts for record in records))


def _why_unusable(folder: Path) -> str:
    try:
        document = json.loads((folder / META).read_bytes())
    except (OSError, ValueError):
        return "are damaged"
    old = isinstance(document, dict) and document.keys() == set(SPLITS)
    return "are from an earlier version and have no checksum" if old else "are damaged"


def encode(text: Text, val_fraction: float, tokenizer: Tokenizer) -> tuple[Split, Split]:
    """Return the training and the validation part of a short text, without the cache."""
    with _encoder(tokenizer) as encode_pieces:
        train, val = (
            _in_memory(encode_pieces(pieces(text, *part)), tokenizer) for part in _byte_ranges(text, val_fraction)
        )
    return train, val


def encode_string(string: str, tokenizer: Tokenizer) -> Split:
    """Return the tokens of a string, which are those of a file with the same text.

    Raises:
        BadInputError: It is empty or not UTF-8 text.
    """
    if not string:
        raise BadInputError("the text is empty; give at least two tokens, such as a sentence")
    if any("\ud800" <= character <= "\udfff" for character in string):  # such as an argument that is not UTF-8
        raise BadInputError("the text is not UTF-8; check the terminal's encoding and the locale")
    with _encoder(tokenizer) as encode_pieces:
        return _in_memory(encode_pieces(cut([string])), tokenizer)


def window_length(val: Split, sequence_length: int) -> int:
    """Return the number of tokens that a window of a text predicts: of a text shorter than a window, all but the first.

    Raises:
        BadInputError: The text has no token that can be predicted.
    """
    if len(val.tokens) < 2:
        raise BadInputError(
            "the text has only one token, and the first one cannot be predicted: give at least two, such as a sentence"
        )
    return min(sequence_length, len(val.tokens) - 1)


def _in_memory(encoded: Iterator[_EncodedPiece], tokenizer: Tokenizer) -> Split:
    parts, tokens = zip(*encoded, strict=True)
    raw = "".join(parts).encode()
    return Split(np.concatenate(tokens), len(raw), hashlib.sha256(raw).hexdigest(), tokenizer)


def _byte_ranges(text: Text, val_fraction: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the first byte and the end of the training and of the validation part."""
    boundary = split_boundary(text.path, round(text.size * (1 - val_fraction)))
    return (0, boundary), (boundary, text.size)


def _tokenize(text: Text, val_fraction: float, tokenizer: Tokenizer, folder: Path) -> None:
    text_digest, val_digest = hashlib.sha256(), hashlib.sha256()
    staging = folder.with_suffix(".making")
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed: we hold the lock
    staging.mkdir()
    try:
        with _progress(text) as advance, _encoder(tokenizer) as encode:
            train, val = (chain(pieces(text, *part), [END_OF_SPLIT]) for part in _byte_ranges(text, val_fraction))
            encoded = encode(chain(train, val))  # in one go, so that no thread waits for the last piece of the first
            records = {
                "train": _write_split(encoded, staging / "train.u16", [text_digest], advance),
                "val": _write_split(encoded, staging / "val.u16", [text_digest, val_digest], advance),
            }
        if text_digest.hexdigest() != text.sha256:
            forget_digests(text.path)  # a remembered digest may be what is wrong
            raise BadInputError(f"'{text.source}' changed while it was read; try again")
        document = with_digest({name: asdict(record) for name, record in records.items()})
        (staging / META).write_text(json.dumps(document))
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging)
        raise


def _write_split(
    encoded: Iterator[_EncodedPiece],
    path: Path,
    digests: "list[hashlib._Hash]",
    advance: Callable[[int], None],
) -> _SplitRecord:
    """Write the next split's tokens and update the digests with its text. The last one is that of the split."""
    count = size = end_of_texts = 0
    checksum = xxhash.xxh3_128()
    with path.open("wb") as file:
        for piece, tokens in encoded:
            if piece == END_OF_SPLIT:
                break
            raw = piece.encode()
            for digest in digests:
                digest.update(raw)
            end_of_texts += piece.count(END_OF_TEXT)
            count += len(tokens)
            size += len(raw)
            file.write(tokens.data)
            checksum.update(tokens.data)
            advance(len(raw))
    return _SplitRecord(count, size, digests[-1].hexdigest(), checksum.hexdigest(), end_of_texts)


@contextmanager
def _encoder(tokenizer: Tokenizer) -> Iterator[Callable[[Iterator[str]], Iterator[_EncodedPiece]]]:
    """A function that tokenizes pieces on one thread per usable processor and yields them in order.

    At most a few pieces per thread are in memory at a time.
    """
    new_encoder = tokenizer.encoders()  # loaded once, before the threads start
    threads, local = min(processors().threads, MAX_THREADS), threading.local()

    def initialize() -> None:
        local.encode = new_encoder()

    def encode(piece: str) -> NDArray[np.uint16]:
        tokens: NDArray[np.integer[Any]] = local.encode(piece)
        return tokens.astype(TOKEN_DTYPE)

    def encode_all(remaining: Iterator[str]) -> Iterator[_EncodedPiece]:
        pending: deque[tuple[str, Future[NDArray[np.uint16]]]] = deque()
        for piece in remaining:
            pending.append((piece, pool.submit(encode, piece)))
            if len(pending) > 2 * threads:
                first, future = pending.popleft()
                yield first, future.result()
        for piece, future in pending:
            yield piece, future.result()

    with ThreadPoolExecutor(threads, initializer=initialize) as pool:
        yield encode_all


@contextmanager
def _progress(text: Text) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr if that is a terminal; yields a function that advances it by a number of bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("  tokenizing"), BarColumn(bar_width=None), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tokenizing", total=text.size)
        yield lambda size: bar.update(task, advance=size)
