"""`gptlab gc` empties the trash and removes nothing else."""

import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from faults import in_child
from support import run_attempt

from gptlab import cli
from gptlab.commands.trash import list_trash
from gptlab.tracking.lock import RunLock
from gptlab.tracking.run import Run
from gptlab.training.initial import find_branch


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


def test_concurrent_commands_empty_the_trash_together(trash, tmp_path, monkeypatch):
    for number in range(300):
        (trash / "old-run" / f"file-{number}").touch()
    monkeypatch.setattr(sys, "argv", ["gptlab", "gc", "--yes"])
    children = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        children.append(os.fork())
        if children[-1] == 0:
            end = in_child(cli.main, tmp_path / str(number))
            os._exit(end.code or len(end.err))
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert not list(trash.iterdir())


@pytest.mark.parametrize("how", ["rmtree", "unlink"])
def test_an_entry_that_another_command_removes_first_is_gone(trash, monkeypatch, capsys, how):
    def remove_twice(remove):
        def removed_before(path, *arguments, **options):
            remove(path, *arguments, **options)
            remove(path, *arguments, **options)

        return removed_before

    owner = {"rmtree": shutil, "unlink": Path}[how]
    monkeypatch.setattr(owner, how, remove_twice(getattr(owner, how)))
    assert gc(monkeypatch, "--yes") == 0
    assert capsys.readouterr().err == ""
    assert not list(trash.iterdir())


def test_an_entry_that_vanishes_while_it_is_listed_has_no_size(trash, monkeypatch):
    monkeypatch.setattr(os, "walk", lambda path: [(str(path), [], ["vanished"])])
    assert [entry.bytes for entry in list_trash() if entry.path.name == "old-run"] == [0]


def test_an_entry_that_cannot_be_deleted_is_one_line_and_the_others_are_deleted(trash, monkeypatch, capsys):
    def fail(path, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        assert gc(monkeypatch, "--yes") == 1
    assert capsys.readouterr().err == f"error: {trash / 'old-run'} cannot be deleted: Permission denied\n"
    assert [path.name for path in trash.iterdir()] == ["old-run"]


@pytest.fixture
def family(train, micro) -> tuple[Run, Run]:
    """A run, and a branch that starts from it."""
    parent = train(micro, steps=2).run
    child = micro.vary("cooldown", why="Who needs whom?", **{"train.steps": 3})
    return parent, train(child, initial_weights=find_branch(parent.id, child)).run


def gptlab(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["gptlab", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_rm_names_the_runs_that_start_from_a_run_and_needs_yes(family, monkeypatch, capsys):
    parent, child = family
    monkeypatch.setattr("sys.stdin", io.StringIO())
    capsys.readouterr()
    assert gptlab(monkeypatch, "rm", parent.id) == 2
    printed = capsys.readouterr()
    assert f"{child.id} (from step 2) started from {parent.id}" in printed.out
    assert f"gptlab rm {parent.id} --yes" in printed.err
    assert parent.directory.is_dir()
    assert gptlab(monkeypatch, "rm", child.id) == 0, "nobody depends on it"
    assert gptlab(monkeypatch, "rm", parent.id) == 0, "its child is in the trash"


def test_a_removed_parent_can_be_restored_from_the_trash(family, monkeypatch, capsys):
    parent, child = family
    assert gptlab(monkeypatch, "rm", parent.id, "--yes") == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert gc(monkeypatch) == 2
    assert f"(needed by {child.id} (from step 2))" in capsys.readouterr().out
    (removed,) = (parent.directory.parent / ".trash").iterdir()
    removed.rename(parent.directory)
    shutil.rmtree(child.directory)
    again = child.record.spec
    assert run_attempt(again, initial_weights=find_branch(parent.id, again)).run.id == child.id


def test_a_copy_of_a_parent_is_removed_without_a_question(family, monkeypatch):
    parent, _ = family
    copy = shutil.copytree(parent.directory, parent.directory.with_name("backup"))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert gptlab(monkeypatch, "rm", "backup") == 0
    assert not copy.exists()


@pytest.fixture
def three(make_run) -> list[Run]:
    """Three seeds of one experiment."""
    return [make_run(seed) for seed in (0, 1, 10)]


def trashed(run: Run) -> list[str]:
    folder = run.directory.parent / ".trash"
    return sorted(path.name.rpartition("-")[0] for path in folder.iterdir()) if folder.exists() else []


def test_rm_takes_several_runs_and_patterns_and_lists_what_it_moves(three, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    first, second, third = three
    capsys.readouterr()
    assert gptlab(monkeypatch, "rm", "micro-*-s1*", second.id, first.id, "--yes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:3]] == [second.id, third.id, first.id]
    assert all("MiB" in line for line in lines[:3])
    assert len(lines) == 6
    assert trashed(first) == sorted(run.id for run in three)


def test_rm_with_a_pattern_needs_yes_without_a_terminal(three, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert gptlab(monkeypatch, "rm", "micro-*-s10") == 2
    assert "pass --yes to confirm: gptlab rm 'micro-*-s10' --yes" in capsys.readouterr().err
    assert trashed(three[0]) == []
    assert gptlab(monkeypatch, "rm", *(run.id for run in three)) == 0, "they were named"


@pytest.mark.parametrize(("answer", "removed"), [("y\n", 3), ("n\n", 0)])
def test_rm_asks_once_where_a_pattern_selects_several_runs(three, monkeypatch, answer, removed):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert gptlab(monkeypatch, "rm", "micro-*") == 0
    assert len(trashed(three[0])) == removed


@pytest.mark.parametrize("wrong", ["nothing", "micro-*-s7", "micro"])
def test_rm_moves_nothing_where_one_argument_is_wrong(three, monkeypatch, capsys, wrong):
    assert gptlab(monkeypatch, "rm", three[0].id, wrong, "--yes") == 2
    assert wrong in capsys.readouterr().err
    assert trashed(three[0]) == []


def test_rm_moves_nothing_where_one_run_is_in_training(three, monkeypatch, capsys):
    with RunLock(three[1].directory):
        assert gptlab(monkeypatch, "rm", "micro-*", "--yes") == 1
    assert f"{three[1].id} is being trained" in capsys.readouterr().err
    assert trashed(three[0]) == []


def test_runs_that_start_from_each_other_are_removed_together_without_a_warning(family, monkeypatch, capsys):
    parent, child = family
    monkeypatch.setattr("sys.stdin", io.StringIO())
    capsys.readouterr()
    assert gptlab(monkeypatch, "rm", parent.id, child.id) == 0
    assert "started from" not in capsys.readouterr().out
