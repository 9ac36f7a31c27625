"""Checksums of files, remembered for each state of a file."""

import hashlib
import io
import os
import time
from pathlib import Path

import pytest
import xxhash

from gptlab import checksums
from gptlab.checksums import file_digest, forget_digests
from gptlab.errors import GptlabError

CONTENT = b"some words in a text"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in which checksums of small new files are remembered too."""
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "own-cache"))
    monkeypatch.setattr(checksums, "MIN_BYTES", 10)
    monkeypatch.setattr(checksums, "MIN_AGE_NS", -1)
    return tmp_path / "own-cache"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of what is computed, in order."""
    lengths: list[int] = []
    compute = checksums._compute
    monkeypatch.setattr(
        checksums, "_compute", lambda file, kind, length: lengths.append(length) or compute(file, kind, length)
    )
    return lengths


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(CONTENT)
    return path


def sha256(path: Path, length: int | None = None) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256", length)


def note(cache: Path) -> Path:
    (found,) = (cache / "checksums").iterdir()
    return found


def test_a_digest_is_that_of_the_whole_file_wherever_it_was_read_to(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 3)
    with path.open("rb") as file:
        file.seek(7)
        assert file_digest(file, "sha256") == hashlib.sha256(CONTENT).hexdigest()
        assert file_digest(file, "xxh3_128") == xxhash.xxh3_128_hexdigest(CONTENT)
        assert file_digest(file, "xxh3_128", 11) == xxhash.xxh3_128_hexdigest(CONTENT[:11])
        assert file.tell() == 7


def test_a_digest_is_computed_once_per_state_of_the_file(path: Path, own_cache: Path, computed: list[int]):
    assert sha256(path) == sha256(path)
    assert computed == [20]
    path.write_bytes(b"other words, as long")
    assert sha256(path) == hashlib.sha256(b"other words, as long").hexdigest()
    assert computed == [20, 20]


def test_a_digest_of_the_beginning_is_remembered_with_its_length(path: Path, own_cache: Path, computed: list[int]):
    for length in (12, 12, 15):
        assert sha256(path, length) == hashlib.sha256(CONTENT[:length]).hexdigest()
    assert sha256(path) == hashlib.sha256(CONTENT).hexdigest()
    assert computed == [12, 15, 20]


def test_algorithms_are_remembered_apart(path: Path, own_cache: Path):
    for _ in range(2):
        with path.open("rb") as file:
            assert file_digest(file, "xxh3_128") == xxhash.xxh3_128_hexdigest(CONTENT)
        assert sha256(path) == hashlib.sha256(CONTENT).hexdigest()


def test_any_damage_to_a_note_makes_the_digest_be_computed_again(path: Path, own_cache: Path):
    expected = sha256(path)
    whole = note(own_cache).read_bytes()
    damaged = [whole[:cut] for cut in range(0, len(whole), 7)]
    damaged += [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    damaged += [b"[]", b"null", b'"content"', b'{"digest": 1, "content": {}}', b"[" * 100_000, b"\xff"]
    for content in damaged:
        note(own_cache).write_bytes(content)
        assert sha256(path) == expected


def test_the_note_of_another_file_is_not_believed(path: Path, own_cache: Path, tmp_path: Path):
    expected = sha256(path)
    own = note(own_cache)
    other = tmp_path / "other.txt"
    other.write_bytes(b"other words, as long")
    sha256(other)
    (others,) = set((own_cache / "checksums").iterdir()) - {own}
    others.replace(own)
    assert sha256(path) == expected


def test_a_note_that_cannot_be_read_or_written_is_no_error(
    path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    own_cache.write_text("a file in place of the cache")
    monkeypatch.setattr(checksums.project, "cache_directory", lambda: own_cache)
    assert sha256(path) == hashlib.sha256(CONTENT).hexdigest()
    own_cache.unlink()
    (own_cache / "checksums").mkdir(parents=True)
    state = path.stat()
    (own_cache / "checksums" / f"{state.st_dev}-{state.st_ino}.sha256.json").mkdir()
    assert sha256(path) == hashlib.sha256(CONTENT).hexdigest()


def test_a_digest_that_proved_wrong_is_forgotten(path: Path, own_cache: Path, computed: list[int]):
    sha256(path)
    forget_digests(path)
    assert list((own_cache / "checksums").iterdir()) == []
    sha256(path)
    assert computed == [20, 20]
    forget_digests(path.with_name("missing"))  # no error


def test_a_digest_of_a_recently_modified_or_small_file_is_not_remembered(
    path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checksums, "MIN_AGE_NS", 2_000_000_000)
    sha256(path)
    monkeypatch.setattr(checksums, "MIN_AGE_NS", -1)
    monkeypatch.setattr(checksums, "MIN_BYTES", 21)
    sha256(path)
    assert not own_cache.exists()


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    compute = checksums._compute

    def change(file: io.BufferedReader, algorithm: checksums.Algorithm, length: int) -> str:
        path.write_bytes(CONTENT.upper())
        os.utime(path, ns=(time.time_ns(), 1))
        return compute(file, algorithm, length)

    monkeypatch.setattr(checksums, "_compute", change)
    sha256(path)
    assert not own_cache.exists()


def test_a_file_that_is_too_short_is_an_error(path: Path, own_cache: Path):
    with pytest.raises(GptlabError, match=r"text\.txt has only 20 of its 21 bytes"):
        sha256(path, 21)
