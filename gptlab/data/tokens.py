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
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from gptlab import project
from gptlab.data import tokenizer
from gptlab.data.text import Text
from gptlab.errors import BadInputError
from gptlab.spec import canonical_json

PIECE_BYTES = 1 << 20
TOKEN_DTYPE = np.dtype("<u2")  # 50,257 tokens fit into 16 bits

logger = logging.getLogger(__name__)


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
    key = [text.sha256, tokenizer.TOKENIZER_SHA256, val_fraction, str(TOKEN_DTYPE)]
    folder = project.cache_directory() / "tokens" / hashlib.sha256(canonical_json(key).encode()).hexdigest()[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
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
    digest = hashlib.sha256()
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        parts = {
            "train": _tokenise_part(text, 0, boundary, staging / "train.u16", digest),
            "val": _tokenise_part(text, boundary, text.size, staging / "val.u16", digest),
        }
        if digest.hexdigest() != text.sha256:
            raise BadInputError(f"'{text.source}' changed while it was read; try again")
        (staging / "meta.json").write_text(json.dumps({name: asdict(part) for name, part in parts.items()}))
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging)
        raise


def _tokenise_part(text: Text, start: int, end: int, path: Path, whole: "hashlib._Hash") -> _Part:
    encoding, threads = tokenizer.gpt2(), os.cpu_count() or 1
    count = end_of_texts = 0
    digest = hashlib.sha256()
    remaining = pieces(text, start, end)
    with path.open("wb") as file:
        while group := list(islice(remaining, 2 * threads)):
            encodings = encoding.encode_ordinary_batch(group, num_threads=threads)
            for piece, tokens in zip(group, encodings, strict=True):
                digest.update(piece.encode())
                whole.update(piece.encode())
                end_of_texts += piece.count(tokenizer.END_OF_TEXT)
                count += len(tokens)
                file.write(np.array(tokens, TOKEN_DTYPE).tobytes())
    return _Part(count, end - start, digest.hexdigest(), end_of_texts)


def split_boundary(path: Path, target: int) -> int:
    """The first byte offset from `target` on where whitespace follows a printable ASCII character.

    Where the next MiB has none, the first character boundary.
    """
    if target < 1:
        return 0
    with path.open("rb") as file:
        file.seek(target - 1)
        ahead = file.read(PIECE_BYTES)
    if found := re.search(rb"[!-~](?=[ \t\r\n])", ahead):
        return target - 1 + found.end()
    continuation = re.match(rb"[\x80-\xbf]*", ahead[1:])
    return target + (continuation.end() if continuation else 0)


def pieces(text: Text, start: int, end: int, piece_bytes: int = PIECE_BYTES) -> Iterator[str]:
    """The text between two byte offsets, in pieces whose tokens are the whole's tokens.

    Raises:
        BadInputError: The bytes are not UTF-8; the message names the offset of the first bad one.
    """
    with text.path.open("rb") as file:
        file.seek(start)
        position, undecoded, uncut = start, b"", ""
        while position < end:
            block = file.read(min(piece_bytes, end - position))
            if not block:
                raise BadInputError(f"'{text.source}' became shorter while it was read; try again")
            position += len(block)
            raw = undecoded + block
            decoded, undecoded = _decode(raw, position - len(raw), text, last=position == end)
            uncut += decoded
            cut = safe_cut(uncut)
            if cut:
                yield uncut[:cut]
                uncut = uncut[cut:]
        if uncut:
            yield uncut


def _decode(raw: bytes, offset: int, text: Text, *, last: bool) -> tuple[str, bytes]:
    """The decoded characters, and the bytes of a character that the next block completes."""
    try:
        return raw.decode(), b""
    except UnicodeDecodeError as error:
        if not last and error.reason == "unexpected end of data":
            return raw[: error.start].decode(), raw[error.start :]
        raise BadInputError(
            f"'{text.source}' is not UTF-8: byte 0x{raw[error.start]:02x} at offset {offset + error.start:,}; "
            "convert it first, for instance: iconv -f LATIN1 -t UTF-8"
        ) from None


def safe_cut(piece: str) -> int:
    """The last index before which `piece` can be cut without changing its tokens; 0 where there is none.

    GPT-2's pattern starts a match at any whitespace that follows non-whitespace and looks at nothing before it, so a
    cut there changes nothing on either side. Only characters that Python and tiktoken agree upon are used.
    """
    for index in range(len(piece) - 1, 0, -1):
        if piece[index] in " \t\r\n" and not piece[index - 1].isspace():
            return index
    return 0
