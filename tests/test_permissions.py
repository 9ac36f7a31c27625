"""The permissions of what commands create, for umasks from careless to private, and caches that several users share."""

import os
import shutil
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from analysis import report
from gptlab import cli
from gptlab.data import tokenizer
from gptlab.data.text import locate
from gptlab.data.tokens import prepare

GROUP = 54321


def in_child(work: Callable[[], object]) -> str:
    """Call `work` in a forked child; return the error that ended it, or an empty string."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:
            os.write(writer, "".join(traceback.format_exception(error)).encode()[-4000:])
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def modes(folder: Path) -> Iterator[tuple[str, int]]:
    for path in folder.rglob("*"):
        if not path.is_symlink():
            yield str(path.relative_to(folder)), stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o002])
def test_everything_has_the_permissions_of_the_umask_and_is_never_writable_for_everybody(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch, umask: int
):
    (project / "new.py").write_text("1\n")  # so that there is a patch
    made = tmp_path / "made"
    made.mkdir()
    monkeypatch.setenv("GPTLAB_RUNS", str(made / "runs"))
    monkeypatch.setenv("GPTLAB_CACHE", str(made / "cache"))

    def work() -> None:
        os.umask(umask)
        for arguments in ("run micro --steps 5 --wandb off", "eval micro"):
            sys.argv = ["gptlab", *arguments.split(), "--json"]
            with suppress(SystemExit):
                cli.main()
        report.main([])

    assert in_child(work) == ""
    found = dict(modes(made))
    assert {"runs/report.html", "cache/tokens"} < set(found)
    assert len([path for path in found if "/micro-" in path]) > 12
    assert found == {path: (0o666 if (made / path).is_file() else 0o777) & ~(umask | stat.S_IWOTH) for path in found}


def as_user(number: int, umask: int, work: Callable[[], object]) -> str:
    def drop() -> None:
        os.setgroups([])
        os.setgid(GROUP)
        os.setuid(number)
        os.umask(umask)
        work()

    return in_child(drop)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that other users can reach, with a text and a cache of the group."""
    if os.getuid() != 0:
        pytest.skip("needs root, to act as other users")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "a.txt").write_text("some words in a text\n" * 50)
        (folder / "cache").mkdir()
        os.chown(folder / "cache", 0, GROUP)
        (folder / "cache").chmod(0o2775)
        monkeypatch.setenv("GPTLAB_CACHE", str(folder / "cache"))
        monkeypatch.chdir(folder)
        yield folder


def test_a_group_shares_a_cache(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def work() -> None:
        assert prepare(locate(str(shared / "a.txt")), 0.1).train.size

    with monkeypatch.context() as patch:  # import everything: other users may not be able to
        patch.setenv("GPTLAB_CACHE", str(tmp_path))
        work()
    assert as_user(12345, 0o002, work) == ""
    assert as_user(12346, 0o002, work) == ""


def test_tokens_in_a_cache_that_cannot_be_written_are_used(shared: Path):
    def work() -> None:
        assert prepare(locate(str(shared / "a.txt")), 0.1).train.size

    work()
    for folder in (shared / "cache", shared / "cache" / "tokens"):
        folder.chmod(0o755)
    assert as_user(12345, 0o022, work) == ""
    shutil.rmtree(next((shared / "cache" / "tokens").glob("*/")))
    error = as_user(12345, 0o022, work)
    assert f"{shared}/cache/tokens cannot be written: no permission, or it is read-only; set GPTLAB_CACHE" in error
    (shared / "cache" / "tokens").chmod(0o777)
    assert ".lock belongs to another user; set GPTLAB_CACHE to a directory of your own" in as_user(12345, 0o022, work)


def test_a_cache_that_cannot_be_written_is_named(shared: Path):
    (shared / "cache").chmod(0o755)
    error = as_user(12345, 0o022, lambda: locate("pandas-docs"))
    assert f"{shared}/cache/texts cannot be written: " in error
    assert "set GPTLAB_CACHE to a directory that can" in error
    (shared / "cache" / "texts").mkdir()
    error = as_user(12345, 0o022, lambda: locate("shakespeare"))
    assert f"{shared}/cache/texts cannot be written: no permission, or it is read-only; set GPTLAB_CACHE" in error
    assert as_user(12345, 0o022, lambda: locate(str(shared / "a.txt"))) == ""
    load_vocabulary = tokenizer.gpt2.__wrapped__  # without this process's cache
    load_vocabulary()
    assert as_user(12345, 0o022, load_vocabulary) == ""
    shutil.rmtree(shared / "cache" / "tiktoken")
    assert as_user(12345, 0o022, load_vocabulary) == ""
