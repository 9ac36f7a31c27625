"""Temporary directories do not outlive their process for long, however it ends."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

from gptlab.temporary import temporary_directory


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The system's temporary directory, empty."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def killed_with_a_directory() -> None:
    child = os.fork()
    if child == 0:
        with temporary_directory("wandb") as directory:
            (directory / "file").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_the_directory_of_a_killed_process_is_removed_by_the_next_one(place):
    killed_with_a_directory()
    (left,) = place.iterdir()
    with temporary_directory("dashboard"):
        assert left.exists()  # each purpose for itself
    with temporary_directory("wandb") as directory:
        assert list(place.iterdir()) == [directory]
    assert not list(place.iterdir())


def test_directories_in_use_and_those_of_others_are_kept(place, monkeypatch):
    (place / "file").touch()
    (place / "gptlab-wandb-file").touch()
    (place / "gptlab-wandb-link").symlink_to(place.parent)
    with temporary_directory("wandb") as first:
        (first / "file").touch()
        with temporary_directory("wandb") as second:
            assert first != second
            assert (first / "file").exists()
    killed_with_a_directory()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # as another user sees it
    with temporary_directory("wandb"):
        assert len(list(place.iterdir())) == 5
    assert place.parent.exists()


def test_a_file_system_without_locks_means_that_nothing_is_removed(place, monkeypatch):
    def unsupported(*arguments: object) -> None:
        raise OSError("Function not implemented")

    killed_with_a_directory()
    monkeypatch.setattr("fcntl.flock", unsupported)
    with temporary_directory("wandb") as directory:
        assert directory.exists()
        assert len(list(place.iterdir())) == 2
