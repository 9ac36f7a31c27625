"""The tokenizers that an experiment can name are lossless, and a file that would not be is refused in one line."""

import importlib.metadata
import itertools
import json
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import damaged, oddly
from tokenizers import Tokenizer as HuggingFaceTokenizer

from gptlab.commands.train_tokenizer import train
from gptlab.data import tokens
from gptlab.data.pieces import SAFE_CUT, pieces
from gptlab.data.text import Text, locate
from gptlab.data.train_tokenizer import train_tokenizer, training_bytes
from gptlab.data.vocabularies import BYTES, GPT2, Encoder, FileTokenizer, Tokenizer, find_tokenizer, tokenizer_of
from gptlab.data.windows import validation_starts, yardstick
from gptlab.errors import BadInputError
from gptlab.spec import Experiment

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "experiments" / "tokenizers" / "pandas-docs-4096.json"
DOCUMENT: dict[str, Any] = json.loads(COMMITTED.read_text())
TEXT_OF = Callable[[bytes], Text]

FRAGMENTS = ["the", " model", "DataFrame", "'s", "'re", " ", "\n", "\r\n", "    ", "<|endoftext|>", "東", "é", "42"]
some_text = st.lists(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(FRAGMENTS),
    ),
    max_size=40,
).map("".join)
old_text = some_text.map(lambda text: "".join(c for c in text if c < "\u0378" or c in "東京"))
"""Without characters that a version of Unicode may have added: tiktoken and `tokenizers` have different ones."""


@pytest.fixture(scope="module")
def committed() -> FileTokenizer:
    return FileTokenizer("committed", COMMITTED.read_bytes())


@pytest.fixture(scope="module")
def reference() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.from_file(str(COMMITTED))


def use(document: Any) -> FileTokenizer:
    return FileTokenizer("mine.json", document if isinstance(document, bytes) else json.dumps(document).encode())


# --- Every text survives ---


@pytest.fixture(scope="module")
def encoders(committed: FileTokenizer) -> list[tuple[Tokenizer, Encoder]]:
    return [(chosen, chosen.encoders()()) for chosen in (GPT2, BYTES, committed)]


@given(text=some_text)
def test_decoding_gives_the_text_and_the_bytes_of_the_tokens_add_up(
    encoders: list[tuple[Tokenizer, Encoder]], text: str
):
    for chosen, encode in encoders:
        encoded = chosen.encode(text)
        assert chosen.decode(encoded) == text
        assert chosen.token_bytes()[np.array(encoded, int)].sum() == len(text.encode())
        assert encode(text).tolist() == encoded == chosen.encode_ordinary(text)
        assert all(0 <= token < chosen.vocab_size for token in encoded)
        assert chosen.token_bytes().shape == (chosen.vocab_size,)


@settings(max_examples=300)
@given(text=old_text)
def test_a_file_gives_the_tokens_of_hugging_face(committed: FileTokenizer, reference: HuggingFaceTokenizer, text: str):
    assert committed.encode(text) == reference.encode(text).ids


@pytest.mark.slow
def test_a_file_gives_the_tokens_of_hugging_face_in_a_real_text(
    reference: HuggingFaceTokenizer, committed: FileTokenizer
):
    sample = locate("pandas-docs").path.read_text()[-200_000:]
    assert committed.encode(sample) == reference.encode(sample).ids


@settings(max_examples=300)
@given(before=some_text, text=some_text, block_bytes=st.integers(4, 64))
def test_pieces_give_the_tokens_of_the_whole_text(
    text_of: TEXT_OF, committed: FileTokenizer, before: str, text: str, block_bytes: int
):
    start, content = len(before.encode()), (before + text).encode()
    edges = [0, *(found.start() for found in SAFE_CUT.finditer(text)), len(text)]
    longest = max(after - edge for edge, after in itertools.pairwise(edges)) or 1
    cut = list(pieces(text_of(content), start, len(content), longest, block_bytes))
    for chosen in (BYTES, committed):
        assert [token for piece in cut for token in chosen.encode(piece)] == chosen.encode(text)


def test_bytes_that_are_not_utf8_are_replaced():
    assert BYTES.decode([0x61, 0xC3, 0x62, 0xFF]) == "a\ufffdb\ufffd"
    for chosen in (GPT2, BYTES):  # as from an argument that is not UTF-8
        assert chosen.decode(chosen.encode("caf\udce9")) == "caf\ufffd"


# --- Tokens on disk ---


def test_each_tokenizer_has_tokens_and_a_yardstick_of_its_own(
    text_of: TEXT_OF, committed: FileTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "own-cache"))
    content = "Return the DataFrame, or its index. 東京\n".encode() * 50
    text, yardsticks = text_of(content), set()
    for _ in range(2):
        for chosen in (GPT2, BYTES, committed):
            made = tokens.prepare(text, 0.25, chosen)
            parts = [split.tokens[:].tolist() for split in (made.train, made.val)]
            assert "".join(map(chosen.decode, parts)).encode() == content
            assert made.val.tokenizer is chosen
            yardsticks.add(yardstick(made.val, validation_starts(made.val, 4, 1), 4))
    assert len(yardsticks) == 3
    assert len([path for path in (tmp_path / "own-cache" / "tokens").iterdir() if path.is_dir()]) == 3


def test_gpt2_keeps_its_hash_and_its_yardsticks(text_of: TEXT_OF):
    assert GPT2.sha256 == "5017ee91df94fa6a7c8c9db991e071b925123e943485c234ec9bed1199e522c6"
    assert BYTES.sha256 == "277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9"
    val = tokens.Split(np.zeros(9, np.uint16), 9, "ab" * 32)
    assert yardstick(val, np.array([0, 4]), 4) == "eb1ef1fa"


# --- What is refused ---


def changed(**parts: Any) -> dict[str, Any]:
    return {**DOCUMENT, **parts}


def changed_model(**parts: Any) -> dict[str, Any]:
    return changed(model={**DOCUMENT["model"], **parts})


def renamed(vocab: dict[str, int], token: int, word: str) -> dict[str, Any]:
    return changed_model(vocab={(word if number == token else old): number for old, number in vocab.items()})


VOCAB, MERGES = DOCUMENT["model"]["vocab"], DOCUMENT["model"]["merges"]
LAST = list(VOCAB)[-1]
BYTE_LEVEL = DOCUMENT["pre_tokenizer"]


def merged_from_other_parts() -> list[list[str]]:
    """The merges, of which one makes its token from two tokens that are never left of its bytes."""
    for number, (a, b) in enumerate(MERGES):
        word = a + b
        for place in range(1, len(word)):
            parts = [word[:place], word[place:]]
            if parts != [a, b] and all(VOCAB.get(part, len(VOCAB)) < VOCAB[word] for part in parts):
                return [*MERGES[:number], parts, *MERGES[number + 1 :]]
    raise AssertionError("every token has one way to be made")


def doubled(times: int) -> dict[str, Any]:
    """A tokenizer with tokens of 2, 4, 8, … times the letter a."""
    vocab, word, merges = dict(list(VOCAB.items())[:256]), "a", []
    for _ in range(times):
        merges.append([word, word])
        word += word
        vocab[word] = len(vocab)
    return changed_model(vocab=vocab, merges=merges)


REFUSED = {
    "empty": (b"", "Invalid JSON"),
    "not JSON": (b"a text", "Invalid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "Invalid JSON"),
    "torn": (COMMITTED.read_bytes()[:-100], "Invalid JSON"),
    "deeply nested": (b"[" * 100_000, "Invalid JSON"),
    "a list": ([], "should be an object"),
    "something else": ({"a": 1}, "is required"),
    "another version": (changed(version="2.0"), "version: input should be '1.0'"),
    "added tokens": (changed(added_tokens=[{"id": 0, "content": "<|endoftext|>"}]), "added_tokens: it has 1 of them"),
    "a normalizer": (changed(normalizer={"type": "NFC"}), "normalizer: "),
    "truncation": (changed(truncation={"max_length": 4}), "truncation: "),
    "padding": (changed(padding={}), "padding: "),
    "no pre-tokenizer": (changed(pre_tokenizer=None), "pre_tokenizer: "),
    "another pre-tokenizer": (changed(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer.type: "),
    "a prefix space": (changed(pre_tokenizer={**BYTE_LEVEL, "add_prefix_space": True}), "add_prefix_space: "),
    "no pattern": (changed(pre_tokenizer={**BYTE_LEVEL, "use_regex": False}), "use_regex: "),
    "a template": (changed(post_processor={"type": "TemplateProcessing"}), "post_processor.type: "),
    "another decoder": (changed(decoder={"type": "WordPiece"}), "decoder.type: "),
    "unigrams": (changed_model(type="Unigram"), "model.type: input should be 'BPE'"),
    "dropout": (changed_model(dropout=0.1), "model.dropout: "),
    "an unknown token": (changed(model={**DOCUMENT["model"], "unk_token": "?"}), "model.unk_token: "),
    "a prefix": (changed_model(continuing_subword_prefix="##"), "model.continuing_subword_prefix: "),
    "byte fallback": (changed_model(byte_fallback=True), "model.byte_fallback: "),
    "a gap": (changed_model(vocab={**VOCAB, LAST: 9999}), "are not 0 to 4095"),
    "the same id twice": (changed_model(vocab={**VOCAB, LAST: 7}), "are not 0 to 4095"),
    "a negative id": (changed_model(vocab={**VOCAB, LAST: -1}), "greater than or equal to 0"),
    "an id beyond 16 bits": (changed_model(vocab={**VOCAB, LAST: 65536}), "less than 65536"),
    "an id that is no number": (changed_model(vocab={**VOCAB, LAST: "4095"}), "valid integer"),
    "too many tokens": (changed_model(vocab={str(n): n for n in range(65537)}), "less than 65536"),
    "too few tokens": (changed_model(vocab={"a": 0}), "at least 256"),
    "a token of characters": (renamed(VOCAB, 9, "é東"), "spelled in bytes"),
    "an empty token": (renamed(VOCAB, 300, ""), "spelled in bytes"),
    "no token for a byte": (renamed(VOCAB, VOCAB["Ā"], "abc~"), "no token for the byte 0x00"),
    "a missing merge": (changed_model(merges=MERGES[:-1]), "3839 merges do not make its 4096 tokens"),
    "merges that make nothing": (changed_model(merges=[*MERGES[:-1], ["zz", "zz"]]), "do not make its 4096 tokens"),
    "merges in another order": (changed_model(merges=[*MERGES[1:], MERGES[0]]), "the order of its merges"),
    "a merge twice": (changed_model(merges=[MERGES[0], *MERGES[:-1]]), "the order of its merges"),
    "a merge of three": (changed_model(merges=[*MERGES[:-1], ["a", "b", "c"]]), "model.merges.3839: "),
    "a merge that never applies": (changed_model(merges=merged_from_other_parts()), "never applies, because earlier"),
    "a long token": (doubled(8), "has 256 bytes, more than 128"),
    "an endless token": (doubled(20), "has 256 bytes, more than 128"),
    "a merge of unknown parts": (changed_model(merges=[*MERGES[:-1], [LAST, ""]]), "the order of its merges"),
}


@pytest.mark.parametrize(("document", "answer"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_not_supported_is_refused_in_one_line(document: Any, answer: str):
    with pytest.raises(BadInputError) as caught:
        use(document)
    message = str(caught.value)
    assert message.startswith("'mine.json' cannot be used as a tokenizer: ")
    assert message.endswith("; only byte-level BPE as `gptlab tokenizer train` makes it is supported")
    assert answer in message
    assert "\n" not in message
    assert len(message) < 1000


def check_lossless_or_refused(content: Any) -> None:
    with suppress(BadInputError):
        found = use(content)
        assert found.decode(found.encode("Return é\n")) == "Return é\n"


SMALL = {**DOCUMENT, "model": {**DOCUMENT["model"], "vocab": dict(list(VOCAB.items())[:256]), "merges": []}}


@settings(max_examples=50)
@given(document=oddly(SMALL))
def test_any_document_is_a_lossless_tokenizer_or_refused(document: Any):
    check_lossless_or_refused(document)


@settings(max_examples=25)
@given(content=damaged(COMMITTED.read_bytes()))
def test_damaged_bytes_are_a_lossless_tokenizer_or_refused(content: bytes):
    check_lossless_or_refused(content)


def test_repeated_letters_are_tokenized_as_by_the_library():
    from tokenizers import Tokenizer

    document = doubled(7)
    theirs, ours = Tokenizer.from_str(json.dumps(document)), use(document)
    for length in (1, 2, 3, 7, 128, 129, 255, 1000):
        assert ours.encode("a" * length) == theirs.encode("a" * length).ids


def test_files_of_other_versions_of_the_library_are_read(committed: FileTokenizer):
    joined = [f"{a} {b}" for a, b in MERGES]
    older = use(changed(model={"type": "BPE", "vocab": VOCAB, "merges": joined}, post_processor=BYTE_LEVEL))
    assert older.encode("Return the DataFrame") == committed.encode("Return the DataFrame")


def test_a_place_without_a_tokenizer_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    for source, answer in {
        "byte": "there is no tokenizer 'byte'; did you mean 'bytes'?",
        "missing.json": "there is no tokenizer file 'missing.json'; make one with `gptlab tokenizer train`, or give",
        "~nobody-of-that-name/x.json": "there is no tokenizer file",
        "x" * 5000: "there is no tokenizer file",
        "a\0b": "there is no tokenizer file",
        str(tmp_path): "is not a regular file",
        "/dev/zero": "is not a regular file",
        str(huge): "is longer than",
    }.items():
        with pytest.raises(BadInputError, match=re.escape(answer)) as caught:
            find_tokenizer(source)
        assert "\n" not in str(caught.value)


def test_a_relative_path_is_resolved_as_that_of_a_text(project: Path, monkeypatch: pytest.MonkeyPatch):
    (project / "mine.json").write_bytes(COMMITTED.read_bytes())
    (project / "below").mkdir()
    monkeypatch.chdir(project / "below")
    assert find_tokenizer("mine.json").sha256 == find_tokenizer(str(COMMITTED)).sha256


# --- The model fits ---


def test_a_mismatch_names_the_right_number(gpt2_micro: Experiment):
    for changes, answer in [
        ({"data.tokenizer": "bytes"}, "model.vocab_size 50257 does not fit data.tokenizer 'bytes', .*=256$"),
        ({"data.tokenizer": "bytes", "model.vocab_size": 257}, "which has 256 tokens; set model.vocab_size=256$"),
        ({"model.vocab_size": 256}, "model.vocab_size: .* greater than or equal to 50257, not 256: "),
        ({"model.vocab_size": 50256}, "model.vocab_size: .* greater than or equal to 50257, not 50256: "),
    ]:
        with pytest.raises(BadInputError, match=answer):
            gpt2_micro.with_changes(changes)
    for size in (4095, 4097, 50257):
        other = gpt2_micro.with_changes({"data.tokenizer": str(COMMITTED), "model.vocab_size": size})
        with pytest.raises(BadInputError, match=f"vocab_size {size} does not fit .* has 4096 .*model.vocab_size=4096$"):
            tokenizer_of(other)
    assert tokenizer_of(gpt2_micro.with_changes({"model.vocab_size": 50304})) is GPT2


# --- Training ---


@pytest.mark.slow
def test_the_committed_tokenizer_can_be_made_again():
    assert train_tokenizer(locate("pandas-docs"), 4096) == COMMITTED.read_bytes()


def test_the_validation_text_is_not_used(text_of: TEXT_OF):
    start = b"the a model learns to read one token after another\n" * 99
    ends = (b"zebras quietly vexed a fox jumping over their barn\n", b"." * 51)
    one, other = (text_of(start + end * 9) for end in ends)
    assert training_bytes(one) == training_bytes(other) <= len(start)
    assert train_tokenizer(one, 300) == train_tokenizer(other, 300)


def test_every_byte_has_a_token_whatever_the_text(text_of: TEXT_OF):
    found = FileTokenizer("x", train_tokenizer(text_of(b"ab " * 100), 258))
    assert found.decode(found.encode("Ünïcode \0 東京")) == "Ünïcode \0 東京"


def test_training_writes_a_file_once_and_replaces_no_other(project: Path, text_file: Path):
    shutil.copy(text_file, project / "words.txt")
    made = train("words.txt", 300, None)
    path = project / made.path
    assert made.path == "experiments/tokenizers/words-300.json"
    assert (made.vocab_size, made.existed) == (300, False)
    assert find_tokenizer(made.path).sha256 == made.sha256
    before = path.stat()
    assert train("words.txt", 300, made.path).existed
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(BadInputError, match=r"words-300.json exists and differs; remove it, or pass another .*--out"):
        train("words.txt", 290, made.path)
    with pytest.raises(BadInputError, match="which cannot be a file"):
        train("words.txt", 300, str(project))
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["words-300.json"]


def test_a_short_text_gives_fewer_tokens_or_none(project: Path, text_file: Path):
    shutil.copy(text_file, project / "words.txt")
    made = train("words.txt", 65536, None)
    assert 257 < made.vocab_size < 1000
    assert made.path == f"experiments/tokenizers/words-{made.vocab_size}.json"
    assert find_tokenizer(made.path).vocab_size == made.vocab_size
    (project / "short.txt").write_text("abc")
    with pytest.raises(BadInputError, match="'short.txt' is too short for a tokenizer"):
        train("short.txt", 300, None)


def test_without_its_package_training_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, text_file: Path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    version = importlib.metadata.version("tokenizers")
    with pytest.raises(BadInputError, match=f"pip install --no-deps tokenizers=={version}$"):
        train(str(text_file), 300, None)
