"""The cached tokens are those of the text, and the cache repairs itself."""

import errno
import functools
import hashlib
import itertools
import json
import os
import signal
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
from faults import Ended, in_child
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import eventually

from gptlab.data import tokenizer, tokens
from gptlab.data.pieces import PIECE_CHARACTERS, pieces
from gptlab.data.text import Text, locate
from gptlab.data.tokens import TOKEN_DTYPE, Split, TokenFile, Tokens, prepare
from gptlab.errors import BadInputError, GptlabError
from gptlab.failures import exit_code
from gptlab.limits import Processors

ROOT = Path(__file__).resolve().parents[2]
TextOf = Callable[[bytes], Text]
some_text = st.text(st.sampled_from("aZ0.,'é東🙂 \n\r\t\u3000\0"), min_size=4, max_size=100)


def encode(text: str) -> list[int]:
    return tokenizer.gpt2().encode_ordinary(text)


def decode(split: Split) -> bytes:
    return tokenizer.gpt2().decode_bytes(split.tokens[:].tolist())


@pytest.fixture
def prepared(text_of: TextOf, own_cache: Path) -> Callable[..., Tokens]:
    """`prepared(content, val_fraction)` tokenizes these bytes."""
    return lambda content, val_fraction=0.25: prepare(text_of(content), val_fraction)


def test_a_million_spaces_can_be_tokenized(prepared: Callable[..., Tokens]):
    content = b"a word" + b" " * 1_100_000 + b"and another"
    made = prepared(content)
    assert decode(made.train) + decode(made.val) == content


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
@pytest.mark.parametrize("word", ["word ", "字"], ids=["words", "no whitespace"])
def test_a_64_mb_text_is_tokenized_in_bounded_memory(tmp_path: Path, word: str):
    """The limit is 320 MiB above an idle process; a list of all tokens would need more."""
    size = 64_000_000 if word == "word " else 24_000_000  # three tokens per character
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


def test_offset_of_bad_bytes_counts_from_the_start_of_the_file(prepared: Callable[..., Tokens]):
    content = bytearray(b"some words " * 1000)
    content[10_001] = 0xFF  # in the validation part
    with pytest.raises(BadInputError, match=r"at offset 10,001;"):
        prepared(bytes(content))


def test_text_that_is_not_utf8_leaves_no_tokens(prepared: Callable[..., Tokens], own_cache: Path):
    with pytest.raises(BadInputError):
        prepared(b"some words \xff")
    assert [path for path in (own_cache / "tokens").iterdir() if path.suffix != ".lock"] == []


# --- The split ---


@pytest.mark.slow
@settings(max_examples=settings.default.max_examples // 3)
@given(text=some_text, val_fraction=st.floats(0.05, 0.6))
def test_both_parts_joined_are_the_text(
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
        assert part.tokens[:].tolist() == encode(expected.decode())


@pytest.mark.parametrize("val_fraction", [0.01, 0.1, 0.5, 0.99])
def test_validation_part_is_the_given_fraction_at_the_end(prepared: Callable[..., Tokens], val_fraction: float):
    content = b"some words, " * 1000
    split = prepared(content, val_fraction)
    assert split.val.size == pytest.approx(val_fraction * len(content), abs=len("some words, "))
    assert decode(split.val) == content[-split.val.size :]


def test_validation_text_does_not_depend_on_the_tokenizer(
    prepared: Callable[..., Tokens], monkeypatch: pytest.MonkeyPatch
):
    class Bytes:
        """A tokenizer with one token per byte."""

        def encode_to_numpy(self, text: str, disallowed_special: tuple[str, ...]) -> NDArray[np.uint32]:
            return np.frombuffer(text.encode(), np.uint8).astype(np.uint32)

    content = "Some wörds in a text. ".encode() * 50
    gpt2 = prepared(content)
    monkeypatch.setattr(tokenizer, "TOKENIZER_SHA256", "bytes")
    monkeypatch.setattr(tokenizer, "gpt2", Bytes)
    monkeypatch.setattr(tokenizer, "copy_encoding", lambda encoding: encoding)
    by_bytes = prepared(content)
    assert len(by_bytes.val.tokens) > len(gpt2.val.tokens), "the cache mixed them up"
    assert (by_bytes.val.size, by_bytes.val.sha256) == (gpt2.val.size, gpt2.val.sha256)


# --- Unusual content ---


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
def test_bytes_are_not_normalized(prepared: Callable[..., Tokens], content: bytes):
    split = prepared(content)
    assert decode(split.train) + decode(split.val) == content


def test_literal_end_of_text_is_ordinary_text(prepared: Callable[..., Tokens], caplog: pytest.LogCaptureFixture):
    content = b"one <|endoftext|> two <|endoftext|> three and some more words <|endoftext|>"
    for _ in range(2):  # also if the tokens come from the cache
        caplog.clear()
        split = prepared(content)
        assert "the text contains 3 literal <|endoftext|>" in caplog.text
    assert 50256 not in split.train.tokens[:]
    assert 50256 not in split.val.tokens[:]


def test_text_without_end_of_text_causes_no_warning(prepared: Callable[..., Tokens], caplog: pytest.LogCaptureFixture):
    prepared(b"<|endoftext|end> " * 10)
    assert not caplog.records


def test_part_without_a_token_is_an_empty_array(prepared: Callable[..., Tokens]):
    split = prepared(b"word", 0.1)
    assert (len(split.val.tokens), split.val.size) == (0, 0)
    assert split.val.tokens[:].dtype == np.uint16
    assert decode(split.train) == b"word"


def test_tokens_are_read_only_in_16_bits(prepared: Callable[..., Tokens]):
    split = prepared(b"some words " * 10)
    for part in (split.train, split.val):
        assert part.tokens[2:5].dtype == np.dtype("<u2")
        with pytest.raises(ValueError, match="read-only"):
            part.tokens[2:5][0] = 1


@given(start=st.integers(-40, 40), stop=st.integers(-40, 40))
def test_a_slice_of_a_file_is_that_of_an_array(tmp_path_factory: pytest.TempPathFactory, start: int, stop: int):
    path = tmp_path_factory.getbasetemp() / "slices.u16"
    array = np.arange(30, dtype=TOKEN_DTYPE)
    path.write_bytes(array.tobytes())
    assert TokenFile(path, 30)[start:stop].tolist() == array[start:stop].tolist()


def test_a_token_file_that_shrinks_while_it_is_in_use_is_an_error(prepared: Callable[..., Tokens], own_cache: Path):
    split = prepared(b"some words " * 100)
    os.truncate(cached_file(own_cache, "train.u16"), 20)
    assert len(split.train.tokens[:10]) == 10
    with pytest.raises(GptlabError, match=r"train\.u16 became shorter while it was in use"):
        split.train.tokens[5:15]


def test_many_pieces_give_the_tokens_of_the_whole_part(
    prepared: Callable[..., Tokens], text_file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tokens, "pieces", functools.partial(pieces, longest=100))
    content = text_file.read_bytes()
    split = prepared(content)
    assert split.train.tokens[:].tolist() == encode(content[: split.train.size].decode())
    assert split.val.tokens[:].tolist() == encode(content[split.train.size :].decode())


def test_vocabulary_is_loaded_in_the_main_thread(prepared: Callable[..., Tokens], monkeypatch: pytest.MonkeyPatch):
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
    both_running = threading.Event()

    class Watched(tiktoken.Encoding):
        def encode_to_numpy(self, text: str, **options: tuple[str, ...]) -> NDArray[np.uint32]:
            users.setdefault(id(self), set()).add(threading.current_thread())
            if len(set().union(*users.values())) == 2:
                both_running.set()
            assert both_running.wait(60)
            return super().encode_to_numpy(text, **options)

    gpt2 = tokenizer.gpt2()
    watched = Watched("gpt2", pat_str=gpt2._pat_str, mergeable_ranks=gpt2._mergeable_ranks, special_tokens={})
    monkeypatch.setattr(tokenizer, "gpt2", lambda: watched)
    monkeypatch.setattr(tokens, "processors", lambda: Processors(2, None))
    prepared(b"some words, " * (3 * PIECE_CHARACTERS // 12))
    assert [len(threads) for threads in users.values()] == [1, 1]


def test_shakespeare_has_338_025_tokens(own_cache: Path, shakespeare_file: Path):
    text = locate(str(shakespeare_file))
    whole = shakespeare_file.read_text(encoding="utf-8")
    assert len(encode(whole)) == 338_025
    cut = [token for piece in pieces(text, 0, text.size, 10_000) for token in encode(piece)]
    assert cut == encode(whole)
    split = prepare(text, 0.1)
    assert (split.train.size, split.val.size) == (1_003_855, 111_539)
    assert len(split.train.tokens) + len(split.val.tokens) == 338_025, "the boundary changes no token"


# --- The cache ---


def refuse(*arguments: object) -> None:
    raise AssertionError("tokenized again")


def test_cached_tokens_are_reused(prepared: Callable[..., Tokens], monkeypatch: pytest.MonkeyPatch):
    first = prepared(b"some words " * 10)
    monkeypatch.setattr(tokens, "pieces", refuse)
    second = prepared(b"some words " * 10)
    assert second.train.tokens[:].tolist() == first.train.tokens[:].tolist()
    assert (second.val.size, second.val.sha256) == (first.val.size, first.val.sha256)


def test_cached_tokens_are_reused_for_a_copy_of_the_text(
    text_of: TextOf, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    text = text_of(b"some words " * 10)
    prepare(text, 0.1)
    (tmp_path / "copy.txt").write_bytes(text.path.read_bytes())
    monkeypatch.setattr(tokens, "pieces", refuse)
    prepare(locate(str(tmp_path / "copy.txt")), 0.1)


@pytest.mark.parametrize("change", ["text", "split", "tokenizer"])
def test_another_text_split_or_tokenizer_is_tokenized_separately(
    prepared: Callable[..., Tokens], monkeypatch: pytest.MonkeyPatch, change: str
):
    prepared(b"some words " * 10, 0.25)
    monkeypatch.setattr(tokens, "pieces", refuse)
    if change == "tokenizer":
        monkeypatch.setattr(tokenizer, "TOKENIZER_SHA256", "another")
    with pytest.raises(AssertionError, match="tokenized again"):
        prepared(b"some words " * (11 if change == "text" else 10), 0.2 if change == "split" else 0.25)


def cached_file(cache: Path, name: str) -> Path:
    (found,) = (cache / "tokens").glob(f"*/{name}")
    return found


@pytest.mark.parametrize("name", ["train.u16", "val.u16", "meta.json"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "removed"])
def test_damaged_tokens_are_replaced_with_a_warning(
    prepared: Callable[..., Tokens], own_cache: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
):
    expected = prepared(b"some words " * 10).train.tokens[:].tolist()
    file = cached_file(own_cache, name)
    content = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(content[:-2] if damage == "truncated" else content + b"\0\0")
    assert not caplog.records
    assert prepared(b"some words " * 10).train.tokens[:].tolist() == expected
    assert "damaged; tokenizing it again" in caplog.text
    assert cached_file(own_cache, name).read_bytes() == content


def contents(made: Tokens) -> list[tuple[list[int], int, str]]:
    return [(part.tokens[:].tolist(), part.size, part.sha256) for part in (made.train, made.val)]


@settings(max_examples=settings.default.max_examples // 5)
@pytest.mark.parametrize("name", ["train.u16", "val.u16", "meta.json"])
@given(where=st.floats(0, 1, exclude_max=True), change=st.sampled_from(["bit", "zeros", "ones"]))
def test_any_change_in_cached_tokens_is_detected_and_mended(
    prepared: Callable[..., Tokens], own_cache: Path, name: str, where: float, change: str
):
    expected = contents(prepared(b"some words and more " * 100))
    file = cached_file(own_cache, name)
    content = bytearray(file.read_bytes())
    at = int(where * len(content))
    if change == "bit":
        content[at] ^= 1
    else:
        content[at : at + 64] = (b"\0" if change == "zeros" else b"\xff") * len(content[at : at + 64])
    file.write_bytes(content)
    assert contents(prepared(b"some words and more " * 100)) == expected


def test_tokens_of_an_earlier_version_without_a_checksum_are_replaced_with_a_notice(
    prepared: Callable[..., Tokens], own_cache: Path, caplog: pytest.LogCaptureFixture
):
    prepared(b"some words " * 10)
    file = cached_file(own_cache, "meta.json")
    document = json.loads(file.read_text())
    del document["digest"]
    for name in ("train", "val"):
        del document[name]["xxh3_128"]
    file.write_text(json.dumps(document))
    prepared(b"some words " * 10)
    assert "are from an earlier version and have no checksum; tokenizing it again" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("document", [[], {}, {"train": {}, "val": {}}, {"train": 1, "val": 2}, "x"])
def test_invalid_meta_json_is_replaced(prepared: Callable[..., Tokens], own_cache: Path, document: object):
    expected = prepared(b"some words " * 10).val.tokens[:].tolist()
    cached_file(own_cache, "meta.json").write_text(json.dumps(document))
    assert prepared(b"some words " * 10).val.tokens[:].tolist() == expected


def test_interrupted_tokenizing_leaves_nothing_behind(
    prepared: Callable[..., Tokens], own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tokens, "asdict", interrupt)  # called after both parts are written
    with pytest.raises(KeyboardInterrupt):
        prepared(b"some words " * 10)
    assert [path for path in (own_cache / "tokens").iterdir() if path.suffix != ".lock"] == []


PREPARE = """
import sys
from gptlab.data import tokens
from gptlab.data.text import locate

times = []
original = tokens._tokenize
tokens._tokenize = lambda *arguments: times.append(original(*arguments))
text = locate(sys.argv[1])
print("ready", flush=True)
split = tokens.prepare(text, 0.1)
print(len(times), int(split.train.tokens[:].sum(dtype="int64")), len(split.val.tokens), split.val.sha256)
"""


def test_two_concurrent_processes_tokenize_once(own_cache: Path, text_file: Path):
    folder = own_cache / "tokens"
    folder.mkdir(parents=True)
    text = locate(str(text_file))
    key = tokens.canonical_json(
        [text.sha256, tokenizer.TOKENIZER_SHA256, 0.1, str(tokens.TOKEN_DTYPE), PIECE_CHARACTERS]
    )
    lock = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.lock"
    command = [sys.executable, "-c", PREPARE, str(text_file)]
    with FileLock(lock):
        both = [
            subprocess.Popen(command, cwd=ROOT, env=os.environ.copy(), stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        ready = [process.stdout.readline() for process in both if process.stdout]
        assert not list(folder.glob("*/")), "the processes do not wait for this lock"
    printed = [process.communicate()[0].split() for process in both]
    assert ready == ["ready\n"] * 2
    assert sorted(int(words[0]) for words in printed) == [0, 1], "one tokenizes, the other reads the cache"
    assert printed[0][1:] == printed[1][1:]
    assert len(printed[0]) == 4


def test_a_text_that_changes_while_it_is_read_is_refused(text_of: TextOf, own_cache: Path):
    text = text_of(b"some words that are here\n" * 50)
    text.path.write_bytes(b"other words of same size\n" * 50)
    with pytest.raises(BadInputError, match="changed while it was read"):
        prepare(text, 0.25)
    assert not list((own_cache / "tokens").glob("*/"))


def test_a_cache_without_file_locks_is_named(
    prepared: Callable[..., Tokens], own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse_lock(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", refuse_lock)
    with pytest.raises(
        GptlabError, match=f"{own_cache / 'tokens'} is on a file system without file locks.*GPTLAB_CACHE"
    ):
        prepared(b"some words " * 10)


def test_cached_tokens_are_read_from_a_cache_that_cannot_be_written(
    prepared: Callable[..., Tokens], own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = contents(prepared(b"some words " * 10))
    monkeypatch.setattr(tokens, "writable_cache", refuse)
    assert contents(prepared(b"some words " * 10)) == expected


def test_waiting_for_another_process_is_logged(
    prepared: Callable[..., Tokens], own_cache: Path, caplog: pytest.LogCaptureFixture
):
    prepared(b"some words in a text " * 20)
    (lock,) = (own_cache / "tokens").glob("*.lock")
    cached_file(own_cache, "meta.json").unlink()
    with ThreadPoolExecutor(1) as pool, FileLock(lock):
        waiting = pool.submit(prepared, b"some words in a text " * 20)
        while not caplog.records and not waiting.done():
            time.sleep(0.05)
        assert not waiting.done()
        assert "waiting" in caplog.text


def test_leftovers_of_a_killed_process_are_removed(text_of: TextOf, own_cache: Path):
    text = text_of(b"some words in a text " * 20)
    prepare(text, 0.25)
    (folder,) = (own_cache / "tokens").glob("*/")
    folder.rename(folder.with_suffix(".making"))
    (folder.with_suffix(".making") / "train.u16").write_bytes(b"half")
    made = prepare(text, 0.25)
    assert decode(made.train) + decode(made.val) == text.path.read_bytes()
    assert list((own_cache / "tokens").glob("*/")) == [folder]


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "error: interrupted\n"), (signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, "")],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_a_signal_during_tokenizing_leaves_nothing_unfinished(
    text_of: Callable[[bytes], Text],
    own_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
    said: str,
):
    text = text_of(b"some words in a text")
    monkeypatch.setattr(tokens, "pieces", lambda *arguments: itertools.repeat("some words " * 1000))

    def stop(process: int) -> None:
        eventually(lambda: any(path.stat().st_size for path in (own_cache / "tokens").glob("*.making/train.u16")))
        os.kill(process, number)

    ended = in_child(lambda: exit_code(lambda: prepare(text, 0.25) and 0), tmp_path, meanwhile=stop)
    assert ended == Ended(code, "", said)
    assert [path for path in (own_cache / "tokens").iterdir() if path.suffix != ".lock"] == []
