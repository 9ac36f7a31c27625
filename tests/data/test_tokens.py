"""A text's tokens on disk are those of the whole text, whatever it holds and however it is cut."""

import functools
import gzip
import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptlab.data import tokenizer, tokens
from gptlab.data.text import Text, locate
from gptlab.data.tokens import Split, Tokens, pieces, prepare, safe_cut, split_boundary
from gptlab.errors import BadInputError

ROOT = Path(__file__).resolve().parents[2]
TextOf = Callable[[bytes], Text]

WHITESPACE = [
    *" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000",
    "  ",
    "\n\n",
    "\r\n",
    " \n",
]
NO_WHITESPACE = ["\u180e", "\u200b", "\u200d", "\ufeff", "\0", "\x7f"]  # though they look like it
WORDS = ["a", "Z", "the", "Hello", "0", "12345", ".", "...", "!?", "(", "_", "-", "'", "<|endoftext|>"]
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "don't", "I'LL"]
OTHERS = [
    "é",
    "ß",
    "Ж",
    "東京",
    "ひ",
    "한",
    "🙂",
    "👩\u200d🚀",
    "e\u0301",
    "\u0301",
    "٣",
    "Ⅷ",
    "²",
    "—",
    "“",
    "ﬀ",
    "\U0001d7d8",
]
FRAGMENTS = [*WHITESPACE, *NO_WHITESPACE, *WORDS, *CONTRACTIONS, *OTHERS]

some_text = st.lists(
    st.one_of(st.sampled_from(WHITESPACE), st.sampled_from(FRAGMENTS), st.characters(codec="utf-8")), max_size=40
).map("".join)


def encode(text: str) -> list[int]:
    return tokenizer.gpt2().encode_ordinary(text)


def decode(split: Split) -> bytes:
    return tokenizer.gpt2().decode_bytes(split.tokens.tolist())


@pytest.fixture
def prepared(text_of: TextOf, own_cache: Path) -> Callable[..., Tokens]:
    """`prepared(content, val_fraction)` tokenises these bytes."""
    return lambda content, val_fraction=0.25: prepare(text_of(content), val_fraction)


# --- Pieces ---


@settings(deadline=None, max_examples=600)
@given(before=some_text, text=some_text, block_bytes=st.integers(4, 64))
def test_pieces_give_the_tokens_of_the_whole_text(text_of: TextOf, before: str, text: str, block_bytes: int):
    start, content = len(before.encode()), (before + text).encode()
    edges = [0, *(found.start() for found in tokens.SAFE_CUT.finditer(text)), len(text)]
    longest = max(after - edge for edge, after in itertools.pairwise(edges)) or 1
    cut = list(pieces(text_of(content), start, len(content), longest, block_bytes))
    assert "".join(cut) == text
    assert [token for piece in cut for token in encode(piece)] == encode(text)


@settings(deadline=None, max_examples=600)
@given(text=some_text, data=st.data())
def test_safe_cut_changes_no_token(text: str, data: st.DataObject):
    end = data.draw(st.integers(0, len(text)))
    begin = data.draw(st.integers(0, end))
    cut = safe_cut(text, begin, end)
    assert cut is None or begin < cut <= end
    assert encode(text[:cut]) + encode(text[cut:] if cut else "") == encode(text)


@settings(deadline=None, max_examples=300)
@given(text=some_text, longest=st.integers(1, 20), block_bytes=st.integers(4, 64))
def test_where_the_cuts_are_is_a_matter_of_the_text_alone(text_of: TextOf, text: str, longest: int, block_bytes: int):
    content = text.encode()
    cut = list(pieces(text_of(content), 0, len(content), longest, block_bytes))
    assert cut == list(pieces(text_of(content), 0, len(content), longest))
    assert "".join(cut) == text
    assert all(len(piece) <= longest for piece in cut)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("a b", 1),
        ("a b c", 3),
        ("a  b", 1),  # not between two whitespaces
        ("a\nb", 1),
        ("a\r\n", 1),
        ("a\tb", 1),
        ("a \u3000b", 1),
        ("a\u3000b", None),  # whitespace that not everybody knows
        ("\x1c b", None),  # whitespace for Python alone
        ("東京、大阪。", 5),  # no whitespace anywhere
        ("don't", 3),
        ("...a", None),  # it could be a contraction
        (" a", None),  # nothing is before it
        ("ab", None),
        ("", None),
    ],
)
def test_safe_cut_is_the_last_one(text: str, cut: int | None):
    assert safe_cut(text, 0, len(text)) == cut


@pytest.mark.parametrize(
    "content",
    [b"x" + b" " * 1_200_000 + b"x", b"a" * 1_200_000, "漢".encode() * 600_000, b"\n" * 600_000],
    ids=["spaces", "letters", "kanji", "newlines"],
)
def test_a_stretch_without_a_safe_cut_has_the_tokens_of_its_shorter_pieces(text_of: TextOf, content: bytes):
    cut = list(pieces(text_of(content), 0, len(content)))
    assert "".join(cut).encode() == content
    assert all(len(piece) <= tokens.PIECE_CHARACTERS for piece in cut)
    assert all(len(piece) == tokens.PIECE_CHARACTERS for piece in cut[1:-1])
    assert b"".join(tokenizer.gpt2().decode_bytes(encode(piece)) for piece in cut) == content


def test_a_million_spaces_train(prepared: Callable[..., Tokens]):
    content = b"a word" + b" " * 1_100_000 + b"and another"
    made = prepared(content)
    assert decode(made.train) + decode(made.val) == content


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
@pytest.mark.parametrize("word", ["word ", "字"], ids=["words", "no whitespace"])
def test_a_text_of_64_mb_is_tokenised_in_bounded_memory(tmp_path: Path, word: str):
    """A limit of 320 MiB above an idle process: all of the text's tokens as a list would need more."""
    size = 64_000_000 if word == "word " else 24_000_000  # three tokens for each of its characters
    path = tmp_path / "big.txt"
    path.write_bytes((word * (size // len(word.encode()))).encode())
    script = """
import resource, sys
from gptlab.data import tokenizer
from gptlab.data.text import locate
from gptlab.data.tokens import prepare
import rich.progress
tokenizer.gpt2()
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 320 * 2**20,) * 2)
made = prepare(locate(sys.argv[1]), 0.1)
print(len(made.train.tokens) + len(made.val.tokens))
"""
    environment = {**os.environ, "GPTLAB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 12_000_000


def test_pieces_of_no_bytes_are_none(text_of: TextOf):
    assert list(pieces(text_of(b"a b"), 1, 1)) == []


@pytest.mark.parametrize("block_bytes", range(4, 12))
def test_character_across_two_pieces_is_whole(text_of: TextOf, block_bytes: int):
    text = "é東🙂 " * 10
    content = text.encode()
    assert "".join(pieces(text_of(content), 0, len(content), block_bytes=block_bytes)) == text


@pytest.mark.parametrize(
    ("beginning", "remedy"),
    [
        (gzip.compress(b"some words"), "gunzip"),
        (b"PK\x03\x04\x14\0\0\0\xff\xff", "ZIP"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "pdftotext"),
        ("words".encode("utf-16"), "UTF-16"),
        (b"caf\xe9", "LATIN1"),
    ],
    ids=["gzip", "zip", "pdf", "utf-16", "latin-1"],
)
def test_a_file_that_is_no_text_is_recognised(prepared: Callable[..., Tokens], beginning: bytes, remedy: str):
    with pytest.raises(BadInputError, match=remedy):
        prepared(beginning)


def test_text_that_becomes_shorter_while_it_is_read_is_refused(text_of: TextOf):
    text = text_of(b"some words that were here a moment ago")
    with pytest.raises(BadInputError, match="became shorter"):
        list(pieces(text, 0, text.size + 1, block_bytes=8))


# --- UTF-8 ---


BAD = [
    (b"\xff", 0),
    (b"\x80", 0),  # a continuation that continues nothing
    (b"\xc3(", 0),  # a character that is not continued
    (b"\xe6\x9d", 0),  # one that breaks off
    (b"\xf0\x9f\x99 ", 0),
    (b"\xc0\xaf", 0),  # longer than it needs to be
    (b"\xed\xa0\x80", 0),  # a surrogate
    (b"\xf4\x90\x80\x80", 0),  # beyond Unicode
    (b"\xe9\xff", 0),
    ("é".encode() + b"\xff", 2),
]


@pytest.mark.parametrize(("bad", "within"), BAD, ids=[repr(bad) for bad, _ in BAD])
@pytest.mark.parametrize("after", [b"", b" and so on", "東京".encode()], ids=["end", "ascii", "cjk"])
def test_bad_bytes_are_named_by_their_offset_wherever_the_pieces_end(
    text_of: TextOf, bad: bytes, within: int, after: bytes
):
    for length in range(20):
        before = ("é" + "some words, and more.")[:length].encode()
        content = before + bad + after
        offset = len(before) + within
        for block_bytes in (4, 5, 7, 1 << 20):
            with pytest.raises(BadInputError) as caught:
                list(pieces(text_of(content), 0, len(content), block_bytes=block_bytes))
            assert f"byte 0x{content[offset]:02x} at offset {offset:,};" in str(caught.value)


@settings(deadline=None, max_examples=300)
@given(content=st.binary(max_size=40), start=some_text, block_bytes=st.integers(4, 64))
def test_any_bytes_are_judged_as_by_a_decoder_of_the_whole(
    text_of: TextOf, content: bytes, start: str, block_bytes: int
):
    content = start.encode() + content
    try:
        expected = content.decode()
    except UnicodeDecodeError as error:
        with pytest.raises(BadInputError, match=f"at offset {error.start:,};"):
            list(pieces(text_of(content), 0, len(content), block_bytes=block_bytes))
    else:
        assert "".join(pieces(text_of(content), 0, len(content), block_bytes=block_bytes)) == expected


def test_bad_bytes_are_said_in_one_line_that_names_the_text_and_a_remedy(text_of: TextOf):
    text = text_of("Müller".encode("latin-1"))
    with pytest.raises(BadInputError) as caught:
        list(pieces(text, 0, text.size))
    message = str(caught.value)
    assert message.startswith(f"'{text.source}' is not UTF-8: byte 0xfc at offset 1;")
    assert "iconv" in message
    assert "\n" not in message


def test_offset_of_bad_bytes_counts_from_the_start_of_the_file(
    prepared: Callable[..., Tokens], monkeypatch: pytest.MonkeyPatch
):
    content = bytearray(b"some words " * 1000)
    content[10_001] = 0xFF  # in the validation part
    with pytest.raises(BadInputError, match=r"at offset 10,001;"):
        prepared(bytes(content))


def test_text_that_is_not_utf8_leaves_no_tokens(prepared: Callable[..., Tokens], own_cache: Path):
    with pytest.raises(BadInputError):
        prepared(b"some words \xff")
    assert [path for path in (own_cache / "tokens").iterdir() if path.suffix != ".lock"] == []


# --- The split ---


@settings(deadline=None, max_examples=300)
@given(text=some_text.filter(bool), share=st.floats(0, 1))
def test_split_lies_before_the_first_ascii_whitespace_after_a_printable_character(
    text_of: TextOf, text: str, share: float
):
    content = text.encode()
    target = max(1, round(share * len(content)))
    boundary = split_boundary(text_of(content).path, target)
    printable = range(ord("!"), ord("~") + 1)
    fitting = (i for i in range(target, len(content)) if content[i] in b" \t\r\n" and content[i - 1] in printable)
    characters = (i for i in range(target, len(content) + 1) if i == len(content) or content[i] & 0xC0 != 0x80)
    assert boundary == next(fitting, next(characters))
    assert target <= boundary <= len(content)
    content[:boundary].decode()
    content[boundary:].decode()


def test_split_lies_before_whitespace_where_there_is_some(text_of: TextOf):
    path = text_of(b"one two three").path
    assert [split_boundary(path, target) for target in range(13)] == [0, 3, 3, 3, 7, 7, 7, 7, 8, 9, 10, 11, 12]


def test_split_far_from_any_whitespace_lies_between_characters(text_of: TextOf):
    content = "é".encode() * tokens.BLOCK_BYTES + b" and more"
    assert [split_boundary(text_of(content).path, target) for target in (1000, 1001, 1002)] == [1000, 1002, 1002]


def test_split_at_the_very_start_lies_between_characters(text_of: TextOf):
    assert split_boundary(text_of("東京".encode()).path, 0) == 0


@settings(deadline=None, max_examples=60)
@given(text=some_text.filter(lambda text: len(text) > 3), val_fraction=st.floats(0.05, 0.6))
def test_both_parts_together_are_the_text(
    text_of: TextOf, tmp_path_factory: pytest.TempPathFactory, text: str, val_fraction: float
):
    content = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        split = prepare(text_of(content), val_fraction)
    assert decode(split.train) + decode(split.val) == content
    assert split.train.size + split.val.size == len(content)
    for part, expected in ((split.train, content[: split.train.size]), (split.val, content[split.train.size :])):
        assert part.sha256 == hashlib.sha256(expected).hexdigest()
        assert part.tokens.tolist() == encode(expected.decode())


@pytest.mark.parametrize("val_fraction", [0.01, 0.1, 0.5, 0.99])
def test_validation_part_is_the_share_at_the_end(prepared: Callable[..., Tokens], val_fraction: float):
    content = b"some words, " * 1000
    split = prepared(content, val_fraction)
    assert split.val.size == pytest.approx(val_fraction * len(content), abs=len("some words, "))
    assert decode(split.val) == content[-split.val.size :]


def test_validation_text_is_the_same_whatever_the_tokenizer(
    prepared: Callable[..., Tokens], monkeypatch: pytest.MonkeyPatch
):
    class Bytes:
        """A tokenizer with a token for each byte."""

        def encode_to_numpy(self, text: str, disallowed_special: tuple[str, ...]) -> NDArray[np.uint32]:
            return np.frombuffer(text.encode(), np.uint8).astype(np.uint32)

    content = "Some wörds in a text. ".encode() * 50
    gpt2 = prepared(content)
    monkeypatch.setattr(tokenizer, "TOKENIZER_SHA256", "bytes")
    monkeypatch.setattr(tokenizer, "gpt2", Bytes)
    monkeypatch.setattr(tokenizer, "duplicate", lambda encoding: encoding)
    by_bytes = prepared(content)
    assert len(by_bytes.val.tokens) > len(gpt2.val.tokens), "one of them was cached as the other"
    assert (by_bytes.val.size, by_bytes.val.sha256) == (gpt2.val.size, gpt2.val.sha256)


# --- What a text may hold ---


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa text with a byte-order mark",
        b"lines\r\nthat end\r\nas on Windows\r\n",
        b"a NUL \0 and\0 more",
        b"\n\n \t  only at the edges \n \n",
        " no-break\u2028and\u3000wide\x85spaces ".encode(),
        b"no-whitespace-at-all",
        "東京特許許可局".encode(),
    ],
)
def test_bytes_are_kept_as_they_stand(prepared: Callable[..., Tokens], content: bytes):
    split = prepared(content)
    assert decode(split.train) + decode(split.val) == content


def test_literal_end_of_text_is_counted_and_is_ordinary_text(
    prepared: Callable[..., Tokens], caplog: pytest.LogCaptureFixture
):
    content = b"one <|endoftext|> two <|endoftext|> three and some more words <|endoftext|>"
    for _ in range(2):  # also where the tokens come from the cache
        caplog.clear()
        split = prepared(content)
        assert "the text holds 3 literal <|endoftext|>" in caplog.text
    assert 50256 not in split.train.tokens
    assert 50256 not in split.val.tokens


def test_text_without_end_of_text_needs_no_warning(prepared: Callable[..., Tokens], caplog: pytest.LogCaptureFixture):
    prepared(b"<|endoftext|end> " * 10)
    assert not caplog.records


def test_part_without_a_token_is_an_empty_array(prepared: Callable[..., Tokens]):
    split = prepared(b"word", 0.1)
    assert (len(split.val.tokens), split.val.size) == (0, 0)
    assert split.val.tokens.dtype == np.uint16
    assert decode(split.train) == b"word"


def test_tokens_are_mapped_read_only_in_16_bits(prepared: Callable[..., Tokens]):
    split = prepared(b"some words " * 10)
    for part in (split.train, split.val):
        assert isinstance(part.tokens, np.memmap)
        assert part.tokens.dtype == np.dtype("<u2")
        with pytest.raises(ValueError, match="read-only"):
            part.tokens[0] = 1


def test_many_pieces_in_many_batches_give_the_tokens_of_the_whole_part(
    prepared: Callable[..., Tokens], text_file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tokens, "pieces", functools.partial(pieces, longest=100))
    content = text_file.read_bytes()
    split = prepared(content)
    assert split.train.tokens.tolist() == encode(content[: split.train.size].decode())
    assert split.val.tokens.tolist() == encode(content[split.train.size :].decode())


def test_the_vocabulary_is_loaded_before_there_are_threads(
    prepared: Callable[..., Tokens], monkeypatch: pytest.MonkeyPatch
):
    threads = set()
    load = tokenizer.gpt2

    def loading() -> tiktoken.Encoding:
        threads.add(threading.current_thread())
        return load()

    monkeypatch.setattr(tokenizer, "gpt2", loading)
    prepared(b"some words " * 10)
    assert threads == {threading.main_thread()}


def test_no_two_threads_share_an_encoding(prepared: Callable[..., Tokens], monkeypatch: pytest.MonkeyPatch):
    users: dict[int, set[threading.Thread]] = {}
    two_at_work = threading.Event()

    class Watched(tiktoken.Encoding):
        def encode_to_numpy(self, text: str, **options: tuple[str, ...]) -> NDArray[np.uint32]:
            users.setdefault(id(self), set()).add(threading.current_thread())
            if len(set().union(*users.values())) == 2:
                two_at_work.set()
            assert two_at_work.wait(60)
            return super().encode_to_numpy(text, **options)

    gpt2 = tokenizer.gpt2()
    watched = Watched("gpt2", pat_str=gpt2._pat_str, mergeable_ranks=gpt2._mergeable_ranks, special_tokens={})
    monkeypatch.setattr(tokenizer, "gpt2", lambda: watched)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    prepared(b"some words, " * (3 * tokens.PIECE_CHARACTERS // 12))
    assert [len(threads) for threads in users.values()] == [1, 1]


def test_shakespeare_has_338_025_tokens(own_cache: Path, shakespeare_file: Path):
    text = locate(str(shakespeare_file))
    whole = shakespeare_file.read_text(encoding="utf-8")
    assert len(encode(whole)) == 338_025
    cut = [token for piece in pieces(text, 0, text.size, 10_000) for token in encode(piece)]
    assert cut == encode(whole)
    split = prepare(text, 0.1)
    assert (split.train.size, split.val.size) == (1_003_855, 111_539)
    assert len(split.train.tokens) + len(split.val.tokens) == 338_025, "the cut between the parts changes no token"


# --- The cache ---


def refuse(*arguments: object) -> None:
    raise AssertionError("tokenised again")


def test_cached_tokens_are_not_made_again(prepared: Callable[..., Tokens], monkeypatch: pytest.MonkeyPatch):
    first = prepared(b"some words " * 10)
    monkeypatch.setattr(tokens, "pieces", refuse)
    second = prepared(b"some words " * 10)
    assert second.train.tokens.tolist() == first.train.tokens.tolist()
    assert (second.val.size, second.val.sha256) == (first.val.size, first.val.sha256)


def test_the_same_bytes_under_another_name_are_not_made_again(
    text_of: TextOf, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    text = text_of(b"some words " * 10)
    prepare(text, 0.1)
    (tmp_path / "copy.txt").write_bytes(text.path.read_bytes())
    monkeypatch.setattr(tokens, "pieces", refuse)
    prepare(locate(str(tmp_path / "copy.txt")), 0.1)


@pytest.mark.parametrize("change", ["text", "split", "tokenizer"])
def test_another_text_split_or_tokenizer_has_tokens_of_its_own(
    prepared: Callable[..., Tokens], monkeypatch: pytest.MonkeyPatch, change: str
):
    prepared(b"some words " * 10, 0.25)
    monkeypatch.setattr(tokens, "pieces", refuse)
    if change == "tokenizer":
        monkeypatch.setattr(tokenizer, "TOKENIZER_SHA256", "another")
    with pytest.raises(AssertionError, match="tokenised again"):
        prepared(b"some words " * (11 if change == "text" else 10), 0.2 if change == "split" else 0.25)


def cached_file(cache: Path, name: str) -> Path:
    (found,) = (cache / "tokens").glob(f"*/{name}")
    return found


@pytest.mark.parametrize("name", ["train.u16", "val.u16", "meta.json"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "removed"])
def test_damaged_tokens_are_made_anew_with_a_notice(
    prepared: Callable[..., Tokens], own_cache: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
):
    expected = prepared(b"some words " * 10).train.tokens.tolist()
    file = cached_file(own_cache, name)
    content = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(content[:-2] if damage == "truncated" else content + b"\0\0")
    assert not caplog.records
    assert prepared(b"some words " * 10).train.tokens.tolist() == expected
    assert "damaged and are made anew" in caplog.text
    assert cached_file(own_cache, name).read_bytes() == content


@pytest.mark.parametrize("document", [[], {}, {"train": {}, "val": {}}, {"train": 1, "val": 2}, "x"])
def test_nonsense_in_the_cache_is_made_anew(prepared: Callable[..., Tokens], own_cache: Path, document: object):
    expected = prepared(b"some words " * 10).val.tokens.tolist()
    cached_file(own_cache, "meta.json").write_text(json.dumps(document))
    assert prepared(b"some words " * 10).val.tokens.tolist() == expected


def test_tokenising_that_breaks_off_leaves_nothing_behind(
    prepared: Callable[..., Tokens], own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    def break_off(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tokens, "asdict", break_off)  # when both parts are written
    with pytest.raises(KeyboardInterrupt):
        prepared(b"some words " * 10)
    assert [path for path in (own_cache / "tokens").iterdir() if path.suffix != ".lock"] == []


TWO_AT_ONCE = """
import sys
import threading
from gptlab.data import tokens
from gptlab.data.text import locate

times = []
original = tokens._tokenise
tokens._tokenise = lambda *arguments: times.append(original(*arguments))
text = locate(sys.argv[1])
print("ready", flush=True)
split = tokens.prepare(text, 0.1)
print(len(times), int(split.train.tokens.sum(dtype="int64")), len(split.val.tokens), split.val.sha256)
"""


def test_two_processes_at_once_make_the_tokens_once(own_cache: Path, text_file: Path):
    folder = own_cache / "tokens"
    folder.mkdir(parents=True)
    text = locate(str(text_file))
    key = tokens.canonical_json(
        [text.sha256, tokenizer.TOKENIZER_SHA256, 0.1, str(tokens.TOKEN_DTYPE), tokens.PIECE_CHARACTERS]
    )
    lock = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.lock"
    command = [sys.executable, "-c", TWO_AT_ONCE, str(text_file)]
    with FileLock(lock):
        both = [
            subprocess.Popen(command, cwd=ROOT, env=os.environ.copy(), stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        ready = [process.stdout.readline() for process in both if process.stdout]
        assert not list(folder.glob("*/")), "the lock is not the one that the processes wait for"
    printed = [process.communicate()[0].split() for process in both]
    assert ready == ["ready\n"] * 2
    assert sorted(int(words[0]) for words in printed) == [0, 1], "one makes them, the other finds them"
    assert printed[0][1:] == printed[1][1:]
    assert len(printed[0]) == 4


def test_a_text_that_changes_while_it_is_read_is_refused_and_nothing_is_cached(text_of: TextOf, own_cache: Path):
    text = text_of(b"some words that are here\n" * 50)
    text.path.write_bytes(b"other words of same size\n" * 50)
    with pytest.raises(BadInputError, match="changed while it was read"):
        prepare(text, 0.25)
    assert not list((own_cache / "tokens").glob("*/"))


def test_a_split_at_the_very_start_leaves_nothing_before_it(text_of: TextOf):
    assert split_boundary(text_of(b"Hello brave new world").path, 0) == 0


def test_who_waits_for_another_process_says_so(
    prepared: Callable[..., Tokens], own_cache: Path, caplog: pytest.LogCaptureFixture
):
    prepared(b"some words in a text " * 20)
    (lock,) = (own_cache / "tokens").glob("*.lock")
    with ThreadPoolExecutor(1) as pool, FileLock(lock):
        waiting = pool.submit(prepared, b"some words in a text " * 20)
        while not caplog.records and not waiting.done():
            time.sleep(0.05)
        assert not waiting.done()
        assert "waiting" in caplog.text


def test_what_a_killed_process_left_half_made_goes(text_of: TextOf, own_cache: Path):
    text = text_of(b"some words in a text " * 20)
    prepare(text, 0.25)
    (folder,) = (own_cache / "tokens").glob("*/")
    folder.rename(folder.with_suffix(".making"))
    (folder.with_suffix(".making") / "train.u16").write_bytes(b"half")
    made = prepare(text, 0.25)
    assert decode(made.train) + decode(made.val) == text.path.read_bytes()
    assert list((own_cache / "tokens").glob("*/")) == [folder]
