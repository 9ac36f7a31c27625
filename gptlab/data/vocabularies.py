"""The tokenizers that an experiment can name: `gpt2`, `bytes`, or the path of a `tokenizer.json`.

All of them encode every text without loss: decoding its tokens gives the text again.
"""

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from gptlab.data import byte_pairs, tokenizer
from gptlab.data.text import find_file
from gptlab.errors import BadInputError
from gptlab.spec import VOCAB_SIZES, Experiment, check_vocab_size
from gptlab.validation import did_you_mean

if TYPE_CHECKING:
    import tiktoken

Encoder = Callable[[str], NDArray[np.integer[Any]]]
"""A function from a text to its tokens, for use by one thread."""


class Tokenizer(ABC):
    """Text to tokens and back."""

    name: str
    """As in `data.tokenizer`: a name, or the path of a file."""
    vocab_size: int
    """Number of tokens."""
    content: bytes | None = None
    """The file that defines the tokenizer; None if gptlab has it by name."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Hash of what defines the tokenizer."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text. No part of a text is special, not even `<|endoftext|>`."""

    @abstractmethod
    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """Return the bytes of tokens. A token can be part of a character."""

    @abstractmethod
    def token_bytes(self) -> NDArray[np.int64]:
        """Return the number of bytes of text of each token, `(vocab_size,)`."""

    @abstractmethod
    def encoders(self) -> Callable[[], Encoder]:
        """Load the tokenizer, and return a function that makes independent encoders, one for each thread."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode(errors="replace")

    def encode_ordinary(self, text: str) -> list[int]:
        """Return `encode(text)`, under the name that tiktoken gives it."""
        return self.encode(text)


class BytePairTokenizer(Tokenizer):
    """A byte-pair encoding, computed by tiktoken, which is imported when it is needed."""

    @abstractmethod
    def _encoding(self) -> "tiktoken.Encoding":
        """Return the encoding; a second call is fast."""

    @override
    def encode(self, text: str) -> list[int]:
        return self._encoding().encode_ordinary(text)

    @override
    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        return self._encoding().decode_bytes(tokens)

    @override
    def encoders(self) -> Callable[[], Encoder]:
        encoding = self._encoding()

        def new_encoder() -> Encoder:
            own = tokenizer.copy_encoding(encoding)
            return lambda text: own.encode_to_numpy(text, disallowed_special=())

        return new_encoder


class Gpt2Tokenizer(BytePairTokenizer):
    """GPT-2's tokenizer; see `gptlab.data.tokenizer`."""

    name = "gpt2"
    vocab_size = VOCAB_SIZES["gpt2"]

    @property
    @override
    def sha256(self) -> str:
        return tokenizer.TOKENIZER_SHA256

    @override
    def token_bytes(self) -> NDArray[np.int64]:
        return tokenizer.token_bytes()

    @override
    def _encoding(self) -> "tiktoken.Encoding":
        return tokenizer.gpt2()


class FileTokenizer(BytePairTokenizer):
    """The byte-pair encoding of a `tokenizer.json`."""

    def __init__(self, name: str, content: bytes) -> None:
        """Parse a file.

        Raises:
            BadInputError: It is not a byte-level BPE tokenizer, or one that is not supported.
        """
        self.name, self.content = name, content
        self._tokens = byte_pairs.parse(name, content)
        self.vocab_size = len(self._tokens)
        self._sha256 = hashlib.sha256(content).hexdigest()

    @property
    @override
    def sha256(self) -> str:
        return self._sha256

    @override
    def token_bytes(self) -> NDArray[np.int64]:
        return np.array([len(token) for token in self._tokens])

    @override
    def _encoding(self) -> "tiktoken.Encoding":
        return self._loaded

    @functools.cached_property
    def _loaded(self) -> "tiktoken.Encoding":
        return byte_pairs.encoding(self._tokens)


class ByteTokenizer(Tokenizer):
    """The bytes of the text in UTF-8."""

    name = "bytes"
    vocab_size = VOCAB_SIZES["bytes"]

    @property
    @override
    def sha256(self) -> str:
        return hashlib.sha256(b"bytes").hexdigest()

    @override
    def encode(self, text: str) -> list[int]:
        # Halves of surrogate pairs, as from an argument that is not UTF-8, become U+FFFD; so they do in tiktoken.
        return list(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode())

    @override
    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        return bytes(tokens)

    @override
    def token_bytes(self) -> NDArray[np.int64]:
        return np.ones(self.vocab_size, np.int64)

    @override
    def encoders(self) -> Callable[[], Encoder]:
        return lambda: lambda text: np.frombuffer(text.encode(), np.uint8)


GPT2 = Gpt2Tokenizer()
BYTES = ByteTokenizer()
NAMED: dict[str, Tokenizer] = {"gpt2": GPT2, "bytes": BYTES}


def find_tokenizer(source: str) -> Tokenizer:
    """Return a named tokenizer, or that of a file. Relative paths are resolved as those of texts.

    Raises:
        BadInputError: There is no such file, it cannot be read, or it is not a supported tokenizer.
    """
    if source in NAMED:
        return NAMED[source]
    path = find_file(source)
    if path is None:
        names = ", ".join(NAMED)
        if "/" not in source and not source.endswith(".json") and (hint := did_you_mean(source, NAMED)):
            raise BadInputError(f"there is no tokenizer '{source}'{hint}")
        raise BadInputError(
            f"there is no tokenizer file '{source}'; make one with `gptlab tokenizer train`, or give one of {names}"
        )
    return FileTokenizer(source, read(path, source))


def tokenizer_of(experiment: Experiment) -> Tokenizer:
    """Return the tokenizer that an experiment names, after checking that its model fits.

    Raises:
        BadInputError: See `find_tokenizer`; or `model.vocab_size` is not its number of tokens.
    """
    found = find_tokenizer(experiment.data.tokenizer)
    try:
        check_vocab_size(found.name, found.vocab_size, experiment.model.vocab_size)
    except ValueError as error:
        raise BadInputError(f"experiment {experiment.name}: {error}") from None
    return found


def read(path: Path, source: str) -> bytes:
    """Return the content of a tokenizer file.

    Raises:
        BadInputError: It is not a regular file, cannot be read, or is longer than any tokenizer.
    """
    if not path.is_file():
        raise BadInputError(f"'{source}' is not a regular file; give the path of a tokenizer.json")
    try:
        with path.open("rb") as file:
            content = file.read(byte_pairs.MAX_BYTES + 1)
    except OSError as error:
        raise BadInputError(f"'{source}' cannot be read: {error.strerror}") from error
    if len(content) > byte_pairs.MAX_BYTES:
        raise BadInputError(f"'{source}' is longer than {byte_pairs.MAX_BYTES:,} bytes, so it is no tokenizer.json")
    return content
