"""Read a `tokenizer.json` of Hugging Face's `tokenizers`: byte-level BPE, as `gptlab tokenizer train` makes it.

Only files whose tokens are a lossless function of the text, and whose texts can be cut for parallel encoding as those
of GPT-2 (`gptlab.data.pieces`), are supported. tiktoken encodes with them as it does for GPT-2: a test compares it with
`tokenizers`, which is therefore needed only to train.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from gptlab.errors import BadInputError
from gptlab.validation import explain

if TYPE_CHECKING:
    import tiktoken

MAX_BYTES = 1 << 25
MAX_TOKENS = 1 << 16
"""Tokens are stored in 16 bits."""
MAX_TOKEN_BYTES = 128
"""As in GPT-2. The time for checking a token grows with the square of its length."""
SUPPORTED = "only byte-level BPE as `gptlab tokenizer train` makes it is supported"

TokenId = Annotated[int, Field(ge=0, lt=MAX_TOKENS, strict=True)]
Absent = Literal[None, ""]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _ByteLevel(_Part):
    """Text as bytes, each spelled with one character."""

    type: Literal["ByteLevel"]
    add_prefix_space: bool = True
    trim_offsets: bool = True
    use_regex: bool = True


class _PreTokenizer(_ByteLevel):
    """Splits a text with GPT-2's pattern."""

    add_prefix_space: Literal[False]
    use_regex: Literal[True] = True


class _Model(_Part):
    """Byte-pair encoding."""

    type: Literal["BPE"]
    dropout: None = None
    unk_token: Absent = None
    continuing_subword_prefix: Absent = None
    end_of_word_suffix: Absent = None
    fuse_unk: Literal[False] = False
    byte_fallback: Literal[False] = False
    ignore_merges: Literal[False] = False
    vocab: dict[str, TokenId] = Field(min_length=256, max_length=MAX_TOKENS)
    merges: list[Annotated[tuple[str, str], BeforeValidator(lambda pair: _pair(pair))]]


class _File(_Part):
    """A `tokenizer.json`."""

    version: Literal["1.0"]
    truncation: None = None
    padding: None = None
    added_tokens: list[Any] = []
    normalizer: None = None
    pre_tokenizer: _PreTokenizer
    post_processor: _ByteLevel | None = None
    decoder: _ByteLevel | None = None
    model: _Model

    @field_validator("added_tokens")
    @classmethod
    def _has_none(cls, tokens: list[Any]) -> list[Any]:
        if tokens:
            raise ValueError(f"it has {len(tokens)} of them, which would match in the text")
        return tokens


def parse(source: str, content: bytes) -> list[bytes]:
    """Return the bytes of each token of a file.

    Args:
        source: The file's name, for messages.
        content: Its content.

    Raises:
        BadInputError: The file is damaged, or a tokenizer of another kind.
    """
    try:
        return _tokens(_File.model_validate_json(content).model)
    except ValidationError as error:
        raise BadInputError(f"'{source}' cannot be used as a tokenizer: {explain(error)}; {SUPPORTED}") from None
    except ValueError as error:
        raise BadInputError(f"'{source}' cannot be used as a tokenizer: {error}; {SUPPORTED}") from None


def encoding(tokens: list[bytes]) -> tiktoken.Encoding:
    """Return tiktoken's encoding with these tokens and GPT-2's pattern."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    ranks = {token: number for number, token in enumerate(tokens)}
    return tiktoken.Encoding("file", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


def byte_characters() -> dict[int, str]:
    """Return the character that spells each byte: itself if it is printable, else one from U+0100 on, as in GPT-2."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


def parts(word: str, vocabulary: dict[str, int]) -> list[str]:
    """Return the two tokens that the merge of a token joins.

    Args:
        word: The token, spelled with one character per byte.
        vocabulary: The ids of all tokens by their spelling, in the order of the merges.
    """
    return _merge(word, vocabulary, vocabulary[word])


def _tokens(model: _Model) -> list[bytes]:
    """Return the bytes of each token.

    tiktoken merges two neighbors if their bytes are a token, lowest id first; `tokenizers` merges the pairs of the
    file, first one first. Both give the same tokens if the ids have the order of the merges, and if the earlier merges
    turn the bytes of each token into its pair.

    Raises:
        ValueError: The ids have gaps, or do not have the order of the merges; a byte or a merge is missing; or a merge
            never applies.
    """
    ids, bytes_ = model.vocab, {character: byte for byte, character in byte_characters().items()}
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"the ids of its {len(ids)} tokens are not 0 to {len(ids) - 1}")
    spellings = sorted(ids, key=ids.__getitem__)
    if (strange := next((word for word in spellings if not word or not bytes_.keys() >= set(word)), None)) is not None:
        raise ValueError(f"its token {strange[:100]!r} is not spelled in bytes")
    if (missing := next((byte for character, byte in bytes_.items() if character not in ids), None)) is not None:
        raise ValueError(f"it has no token for the byte 0x{missing:02x}")
    made = [ids.get(a + b, -1) for a, b in model.merges]
    if len(ids) != 256 + len(made) or -1 in made:
        raise ValueError(f"its {len(made)} merges do not make its {len(ids)} tokens from 256 bytes")
    parts_come_first = all(
        max(ids.get(part, MAX_TOKENS) for part in pair) < token for pair, token in zip(model.merges, made, strict=True)
    )
    if not parts_come_first or made != sorted(set(made)):
        raise ValueError("the ids of its tokens do not have the order of its merges")
    if longest := next((word for word in spellings if len(word) > MAX_TOKEN_BYTES), ""):
        raise ValueError(f"its token {longest[:20]!r}… has {len(longest)} bytes, more than {MAX_TOKEN_BYTES}")
    for pair, token in zip(model.merges, made, strict=True):
        if _merge(pair[0] + pair[1], ids, token) != list(pair):
            raise ValueError(f"its merge {pair[0][:50]!r} {pair[1][:50]!r} never applies, because earlier ones do")
    return [bytes(map(bytes_.__getitem__, word)) for word in spellings]


def _merge(word: str, ids: dict[str, int], below: int) -> list[str]:
    """Return the parts of a word after all merges that make tokens with ids below a bound."""
    parts = list(word)
    while True:
        made = [ids.get(a + b, below) for a, b in pairwise(parts)]
        first = min(made, default=below)
        if first >= below:
            return parts
        place = made.index(first)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def _pair(pair: Any) -> Any:
    """Split a merge that is one string, as in files of earlier versions of `tokenizers`."""
    return tuple(pair.split(" ")) if isinstance(pair, str) else pair
