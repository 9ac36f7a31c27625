"""`gptlab gc` empties the trash and removes nothing else."""

import io
import json
import sys
from pathlib import Path

import pytest

from gptlab import cli


@pytest.fixture
def trash(tmp_path: Path) -> Path:
    """A trash with two entries: a run, and a link to a folder outside of the trash."""
    folder = tmp_path / "runs" / ".trash"
    (folder / "old-run" / "checkpoints").mkdir(parents=True)
    (folder / "old-run" / "checkpoints" / "weights").write_bytes(b"0" * 3 * 2**20)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    (folder / "link").symlink_to(tmp_path / "precious")
    return folder


def gc(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["gptlab", "gc", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_gc_lists_the_entries_and_removes_nothing_else(trash, monkeypatch, capsys):
    assert gc(monkeypatch, "--yes") == 0
    printed = capsys.readouterr().out
    assert "3.0 MiB  old-run" in printed
    assert "link" in printed
    assert not list(trash.iterdir())
    assert (trash.parent.parent / "precious" / "thesis.txt").read_text() == "mine"


def test_gc_without_a_terminal_needs_yes(trash, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", (trash / "old-run" / "checkpoints" / "weights").open())
    assert gc(monkeypatch) == 2
    assert "--yes" in capsys.readouterr().err
    assert len(list(trash.iterdir())) == 2


def test_gc_prints_one_json_document(trash, monkeypatch, capsys):
    assert gc(monkeypatch, "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out)["removed"] == ["link", "old-run"]


def test_an_empty_trash_is_reported(monkeypatch, capsys):
    assert gc(monkeypatch) == 0
    assert "empty" in capsys.readouterr().out


def test_a_trash_that_is_a_link_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".trash").symlink_to(tmp_path / "precious")
    assert gc(monkeypatch, "--yes") == 0
    assert (tmp_path / "precious" / "thesis.txt").exists()


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 2)])
def test_gc_asks_on_a_terminal(trash, monkeypatch, answer, left):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert gc(monkeypatch) == 0
    assert len(list(trash.iterdir())) == left
