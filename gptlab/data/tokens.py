"""The token cache: a text is split and tokenized once, then memory-mapped for training.

The split is by bytes, so the validation text does not depend on the tokenizer. The cache key is a hash of the text, the
tokenizer, the split and the piece length.
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
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from gptlab import project
from gptlab.checksums import forget_digests
from gptlab.data import tokenizer
from gptlab.data.pieces import PIECE_CHARACTERS, pieces, split_boundary
from gptlab.data.text import Text
from gptlab.errors import BadInputError
from gptlab.files import make_directory
from gptlab.identity import canonical_json

MAX_THREADS = 16
"""The thread that reads and writes cannot keep more of them busy."""
TOKEN_DTYPE = np.dtype("<u2")  # 50,257 tokens fit into 16 bits

logger = logging.getLogger(__name__)

_EncodedPiece = tuple[str, NDArray[np.uint16]]
"""A piece and its tokens."""


@dataclass(frozen=True)
class Split:
    """The training or the validation part of a text, as memory-mapped tokens."""

    tokens: NDArray[np.uint16]
    """Shape `(N,)`, read-only."""
    size: int
    """Bytes of text."""
    sha256: str
    """Of these bytes."""


@dataclass(frozen=True)
class Tokens:
    """A text's training part, and the validation part that follows it."""

    train: Split
    val: Split


@dataclass(frozen=True)
class _SplitRecord:
    """One split in the cache's `meta.json`."""

    count: int
    size: int
    sha256: str
    end_of_texts: int


def prepare(text: Text, val_fraction: float) -> Tokens:
    """The text's tokens, from the cache if it has them; of concurrent processes, one tokenizes and the others wait.

    Raises:
        BadInputError: The text is not UTF-8, or it changed while it was read.
    """
    key = [text.sha256, tokenizer.TOKENIZER_SHA256, val_fraction, str(TOKEN_DTYPE), PIECE_CHARACTERS]
    folder = project.cache_directory() / "tokens" / hashlib.sha256(canonical_json(key).encode()).hexdigest()[:32]
    make_directory(folder.parent)
    with _locked(folder.with_suffix(".lock")):
        records = _read_meta(folder)
        if records is None:
            if folder.exists():
                logger.warning("the cached tokens of %s are damaged; tokenizing it again", text.source)
                shutil.rmtree(folder)
            _tokenize(text, val_fraction, folder)
            records = _read_meta(folder)
    if records is None:
        raise OSError(f"the tokens written to {folder} cannot be read back")
    end_of_texts = sum(record.end_of_texts for record in records.values())
    if end_of_texts:
        logger.warning(
            "the text contains %d literal %s; they are tokenized as ordinary text", end_of_texts, tokenizer.END_OF_TEXT
        )
    return Tokens(*(_open(folder / f"{name}.u16", records[name]) for name in ("train", "val")))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock; log a warning if another process holds it."""
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.warning("another process is tokenizing this text; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _open(path: Path, record: _SplitRecord) -> Split:
    empty = np.empty(0, TOKEN_DTYPE)  # an empty file cannot be mapped
    tokens = np.memmap(path, TOKEN_DTYPE, mode="r") if record.count else empty
    return Split(tokens, record.size, record.sha256)


def _read_meta(folder: Path) -> dict[str, _SplitRecord] | None:
    """The records of both splits, or None if a file is missing or has another size."""
    try:
        document = json.loads((folder / "meta.json").read_text())
        records = {name: _SplitRecord(**document[name]) for name in ("train", "val")}
        sizes = {name: (folder / f"{name}.u16").stat().st_size for name in records}
        complete = all(sizes[name] == record.count * TOKEN_DTYPE.itemsize for name, record in records.items())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return records if complete else None


def _tokenize(text: Text, val_fraction: float, folder: Path) -> None:
    boundary = split_boundary(text.path, round(text.size * (1 - val_fraction)))
    text_digest, train_digest, val_digest = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    staging = folder.with_suffix(".making")
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed: we hold the lock
    staging.mkdir()
    try:
        with _progress(text) as advance, _encoder() as encode:
            train = encode(pieces(text, 0, boundary))
            val = encode(pieces(text, boundary, text.size))
            records = {
                "train": _write_split(train, staging / "train.u16", train_digest, text_digest, advance),
                "val": _write_split(val, staging / "val.u16", val_digest, text_digest, advance),
            }
        if text_digest.hexdigest() != text.sha256:
            forget_digests(text.path)  # a remembered digest may be what is wrong
            raise BadInputError(f"'{text.source}' changed while it was read; try again")
        (staging / "meta.json").write_text(json.dumps({name: asdict(record) for name, record in records.items()}))
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging)
        raise


def _write_split(
    encoded: Iterator[_EncodedPiece],
    path: Path,
    split_digest: "hashlib._Hash",
    text_digest: "hashlib._Hash",
    advance: Callable[[int], None],
) -> _SplitRecord:
    """Write one split's tokens and update both digests with its bytes."""
    count = size = end_of_texts = 0
    with path.open("wb") as file:
        for piece, tokens in encoded:
            raw = piece.encode()
            split_digest.update(raw)
            text_digest.update(raw)
            end_of_texts += piece.count(tokenizer.END_OF_TEXT)
            count += len(tokens)
            size += len(raw)
            file.write(tokens.data)
            advance(len(raw))
    return _SplitRecord(count, size, split_digest.hexdigest(), end_of_texts)


@contextmanager
def _encoder() -> Iterator[Callable[[Iterator[str]], Iterator[_EncodedPiece]]]:
    """A function that tokenizes pieces on one thread per core and yields them in order.

    At most a few pieces per thread are in memory at a time.
    """
    gpt2 = tokenizer.gpt2()  # loaded once, before the threads start
    threads, local = min(os.cpu_count() or 1, MAX_THREADS), threading.local()

    def initialize() -> None:
        local.encoding = tokenizer.copy_encoding(gpt2)

    def encode(piece: str) -> NDArray[np.uint16]:
        tokens: NDArray[np.uint32] = local.encoding.encode_to_numpy(piece, disallowed_special=())
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
