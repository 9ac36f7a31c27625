"""Where a text is cut: into a training and a validation part, and into pieces that tokenize independently."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from gptlab.data.encoding import advice
from gptlab.data.text import Text
from gptlab.errors import BadInputError

BLOCK_BYTES = 1 << 20
PIECE_CHARACTERS = 1 << 18
"""Maximum length of a piece; tiktoken fails on a million consecutive spaces."""

_WORD = "0-9A-Za-z\u3041-\u3093\u30a1-\u30f6\u4e00-\u9fa5\uac00-\ud7a3"  # letters and digits
_PUNCTUATION = "!-/:-@\\[-`{-~\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"
SAFE_CUT = re.compile(rf"(?<=[{_WORD}])(?=[{_PUNCTUATION}])|(?<=\S)(?=[ \t\r\n])")
CUT_SEARCH_CHARACTERS = 256
"""Characters searched at a time, backwards from the end: the first stretch nearly always has a cut."""


def split_boundary(path: Path, target: int) -> int:
    """The byte offset at which validation begins: the first from `target` on with whitespace after printable ASCII.

    If the next MiB has no such place, the first character boundary from `target` on.
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
    """The text between two byte offsets, in the pieces of `cut`.

    Raises:
        BadInputError: The text is not UTF-8 (the message has the offset of the first bad byte), or it was truncated.
    """
    yield from cut(_decoded_blocks(text, start, end, block_bytes), longest)


def cut(blocks: Iterable[str], longest: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a text into pieces of at most `longest` characters.

    The tokens of the pieces, joined, are the tokens of the whole text. The exception is a stretch of more than
    `longest` characters without a safe cut: it is cut every `longest` characters from its beginning. The cuts depend
    on the text and on `longest` only, not on the blocks in which it comes.
    """
    rest = ""
    for block in blocks:
        rest += block
        begin = 0
        while len(rest) - begin > longest:  # one character more than a piece: a cut depends on the character after it
            end = safe_cut(rest, begin, begin + longest) or begin + longest
            yield rest[begin:end]
            begin = end
        rest = rest[begin:]
    if rest:
        yield rest


def safe_cut(text: str, begin: int, end: int) -> int | None:
    """The last index in `(begin, end]` at which cutting `text` does not change its tokens, or None.

    GPT-2's pattern never matches a letter or digit together with punctuation after it, nor either of them together
    with whitespace after it, and it has no lookbehind. So a cut there changes no token on either side. Only characters
    whose category is the same in all versions of Unicode count.
    """
    for high in range(end, begin, -CUT_SEARCH_CHARACTERS):
        low = max(high - CUT_SEARCH_CHARACTERS, begin)
        cuts = [found.start() for found in SAFE_CUT.finditer(text, low + 1, high + 1)]
        if cuts:
            return cuts[-1]
    return None


def _decoded_blocks(text: Text, start: int, end: int, block_bytes: int) -> Iterator[str]:
    with text.path.open("rb") as file:
        file.seek(start)
        position, undecoded = start, b""
        while position < end:
            block = file.read(min(block_bytes, end - position))
            if not block:
                raise BadInputError(f"'{text.source}' was truncated while it was read; try again")
            position += len(block)
            raw = undecoded + block
            decoded, undecoded = _decode(raw, position - len(raw), text, last=position == end)
            yield decoded


def _decode(raw: bytes, offset: int, text: Text, *, last: bool) -> tuple[str, bytes]:
    """The decoded characters, and the bytes of an incomplete character at the end, for the next block."""
    try:
        return raw.decode(), b""
    except UnicodeDecodeError as error:
        if not last and error.reason == "unexpected end of data":
            return raw[: error.start].decode(), raw[error.start :]
        raise BadInputError(
            f"'{text.source}' is not UTF-8: byte 0x{raw[error.start]:02x} at offset {offset + error.start:,}; "
            f"{advice(text.path, offset + error.start)}"
        ) from None
