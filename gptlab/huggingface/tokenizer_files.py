"""The tokenizer files of a directory: write them so that `transformers` finds the same tokens, and read them.

`<|endoftext|>` is ordinary text for every tokenizer of gptlab, so the files that are written declare no special token.
A file of GPT-2's own tokenizer that declares it is recognized.
"""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from gptlab.data import byte_pairs, tokenizer
from gptlab.data.byte_pairs import byte_characters
from gptlab.data.vocabularies import BYTES, GPT2, FileTokenizer, Tokenizer
from gptlab.errors import BadInputError
from gptlab.huggingface.layout import MERGES, TOKENIZER, TOKENIZER_CONFIG, VOCABULARY
from gptlab.untrusted import open_regular

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

SEQUENCE_A = {"Sequence": {"id": "A", "type_id": 0}}
TEMPLATES = [
    {"type": "TemplateProcessing", "single": [SEQUENCE_A], "pair": [SEQUENCE_A, second], "special_tokens": {}}
    for second in ({"Sequence": {"id": "B", "type_id": number}} for number in (0, 1))
]
"""Templates that add no token to a text."""


def tokenizer_files(found: Tokenizer, context_length: int) -> dict[str, bytes]:
    """Return the files of a tokenizer by name."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    content = found.content if found.content is not None else _content(found)
    return {TOKENIZER: content, TOKENIZER_CONFIG: _json(config)}


def read_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of a directory. Without files it is GPT-2's, if the model has that many embeddings.

    Raises:
        BadInputError: The files are damaged or of a tokenizer that gptlab does not have, or there are none.
    """
    content = _read_content(directory)
    if content is None:
        if vocab_size < GPT2.vocab_size:
            raise BadInputError(
                f"{directory} has no {TOKENIZER}, and {vocab_size:,} embeddings are too few for GPT-2's tokenizer; "
                f"copy the model's {TOKENIZER} there"
            )
        return GPT2
    found = _recognize(str(directory / TOKENIZER), content)
    if found.vocab_size > vocab_size:
        raise BadInputError(
            f"{directory} has a tokenizer of {found.vocab_size:,} tokens, but a model of {vocab_size:,} embeddings"
        )
    return found


def _read_content(directory: Path) -> bytes | None:
    """Return the content of `tokenizer.json`, or what `vocab.json` and `merges.txt` say in its format."""
    if (whole := _read(directory / TOKENIZER)) is not None:
        return whole
    vocabulary, merges = _read(directory / VOCABULARY), _read(directory / MERGES)
    if vocabulary is None or merges is None:
        return None
    try:
        lines = merges.decode().splitlines()
        pairs = [line for line in lines if line and not line.startswith("#version")]
        return _json(_document(json.loads(vocabulary), pairs))
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{directory / VOCABULARY} and {MERGES} are damaged: {error!s:.200}") from None


def _read(path: Path) -> bytes | None:
    """Return the content of a file; None if it does not exist."""
    try:
        with open_regular(path) as file:
            content = file.read(byte_pairs.MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(content) > byte_pairs.MAX_BYTES:
        raise BadInputError(f"{path} is longer than {byte_pairs.MAX_BYTES:,} bytes, so it is no tokenizer's file")
    return content


def _recognize(source: str, content: bytes) -> Tokenizer:
    """Return GPT-2's tokenizer or the bytes if a file defines them, else the tokenizer of the file.

    Whatever the file declares besides, such as special tokens, would match in a text, so it is refused.
    """
    content = _simplified(content)
    tokens = byte_pairs.parse(source, content)
    if tokens == [bytes([byte]) for byte in range(256)]:
        return BYTES
    if len(tokens) == GPT2.vocab_size - 1 and tokens == _gpt2_tokens():
        return GPT2
    return FileTokenizer(source, content)


def _simplified(content: bytes) -> bytes:
    """Return a `tokenizer.json` without GPT-2's special token, and without a template that adds nothing.

    Any other file is returned unchanged; `byte_pairs.parse` says what is wrong with it.
    """
    try:
        document = json.loads(content)
        simple = {**document, "model": {**document["model"], "vocab": {**document["model"]["vocab"]}}}
        if document.get("post_processor") in TEMPLATES:
            simple["post_processor"] = None
        if _has_only_end_of_text(document):
            simple["added_tokens"] = []
            del simple["model"]["vocab"][tokenizer.END_OF_TEXT]
            if document["model"].get("unk_token") == tokenizer.END_OF_TEXT:  # it never occurs: each byte has a token
                simple["model"]["unk_token"] = None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return content
    return content if simple == document else _json(simple)


def _has_only_end_of_text(document: dict[str, Any]) -> bool:
    """Return whether the last token is `<|endoftext|>`, as in GPT-2's vocabulary, and no other token is special."""
    vocabulary = document["model"]["vocab"]
    last = GPT2.vocab_size - 1
    return (
        len(vocabulary) == GPT2.vocab_size
        and vocabulary.get(tokenizer.END_OF_TEXT) == last
        and all((token["content"], token["id"]) == (tokenizer.END_OF_TEXT, last) for token in document["added_tokens"])
    )


def _gpt2_tokens() -> list[bytes]:
    """Return the bytes of GPT-2's tokens, without `<|endoftext|>`, which no text is encoded to."""
    encoding = tokenizer.gpt2()
    return [encoding.decode_single_token_bytes(token) for token in range(GPT2.vocab_size - 1)]


def _content(named: Tokenizer) -> bytes:
    """Return the `tokenizer.json` of a tokenizer that gptlab has by name."""
    if named is BYTES:
        return _json(_document(_vocabulary([bytes([byte]) for byte in range(256)]), []))
    vocabulary = _vocabulary(_gpt2_tokens())
    merges = [byte_pairs.parts(word, vocabulary) for word in islice(vocabulary, 256, None)]
    return _json(_document({**vocabulary, tokenizer.END_OF_TEXT: len(vocabulary)}, merges))


def _vocabulary(tokens: list[bytes]) -> dict[str, int]:
    characters = byte_characters()
    return {"".join(map(characters.__getitem__, token)): number for number, token in enumerate(tokens)}


def _document(vocabulary: Any, merges: list[Any]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _json(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"
