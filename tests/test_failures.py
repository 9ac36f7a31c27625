"""Every error with a cause outside of gptlab is one line and exit code 1 or 2, and every bug keeps its traceback."""

import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import BUG, Ended, in_child
from safetensors import SafetensorError

from analysis import notebooks, report
from gptlab import cli, entry
from gptlab.commands import list_experiments, list_runs
from gptlab.errors import EXPECTED_OS_ERRORS, GptlabError
from gptlab.imports import importing
from gptlab.interrupts import end_at_once, interrupts, on_interrupt

PROGRAMS = {
    "gptlab": ("gptlab.commands.list_experiments.list_experiments", cli.main),
    "report": ("analysis.load.runs_and_copies", lambda: report.main([])),
    "notebooks": ("analysis.notebooks.execute", lambda: notebooks.main([])),
}
"""For each program a function that it calls first, and how it is started."""


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """`ended(error, program="gptlab")` is how a program ends whose first call raises an error."""
    monkeypatch.setattr(sys, "argv", ["gptlab", "list"])

    def end(error: BaseException, program: str = "gptlab") -> Ended:
        def fail(*arguments: object, **options: object) -> None:
            raise error

        name, start = PROGRAMS[program]
        with monkeypatch.context() as patch:
            patch.setattr(name, fail)
            return in_child(start, tmp_path)

    return end


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


ONE_LINE = [
    (KeyboardInterrupt(), 130, "interrupted"),
    (MemoryError(), 1, "out of memory; close other programs, or raise the limit (ulimit -v) if there is one"),
    (RuntimeError("can't start new thread"), 1, "out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory"),
    (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 1, "out of memory"),
    (caused(ImportError("scipy seems to be broken"), ImportError("failed to map segment")), 1, "out of memory"),
    (ImportError("libcuda.so: no such file", name="torch._C"), 1, "torch._C cannot be imported: libcuda.so: no such"),
    (ModuleNotFoundError("No module", name="plotly.io"), 1, "the Python package 'plotly' is missing; install it with"),
    (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), 1, "No usable temporary dir"),
    (caused(RuntimeError("see above"), OSError(errno.ENOSPC, "No space left on device", "/a")), 1, "No space left on"),
    (SafetensorError("I/O error: No space left on device"), 1, "safetensors: I/O error: No space left on device"),
    (OSError(errno.ENOSPC, "No space left on device", "/a"), 1, "No space left on device: /a"),
    (OSError(errno.EROFS, "Read-only file system", b"/a\xff"), 1, "Read-only file system: /a�"),
    (GptlabError("two\nlines and \x1b[31mcolors\u202e"), 1, "two lines and �[31mcolors�"),
]


@pytest.mark.parametrize(("error", "code", "message"), ONE_LINE, ids=repr)
def test_an_error_with_a_cause_outside_is_one_line(ended, error, code, message):
    end = ended(error)
    assert (end.code, end.out) == (code, "")
    assert end.err.startswith(f"error: {message}")
    assert end.err.count("\n") == 1


@pytest.mark.parametrize("program", ["report", "notebooks"])
@pytest.mark.parametrize(("error", "code", "message"), [ONE_LINE[0], ONE_LINE[-3]], ids=repr)
def test_every_program_uses_the_same_door(ended, program, error, code, message):
    assert ended(error, program) == Ended(code, "", f"error: {message}\n")


BUGS = [
    ValueError("wrong"),
    ImportError("cannot import name 'x' from 'gptlab.cli'", name="gptlab.cli"),
    ModuleNotFoundError("No module named 'gptlab.x'", name="gptlab.x"),
    FileNotFoundError(errno.ENOENT, "No such file", "somewhere"),
    OSError(errno.EBADF, "Bad file descriptor"),
]


@pytest.mark.parametrize("error", BUGS, ids=repr)
def test_a_bug_keeps_its_traceback(ended, error):
    end = ended(error)
    assert end.code == BUG
    assert "Traceback" in end.err


def test_a_file_that_another_process_removed_is_one_line(ended, tmp_path):
    end = ended(FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "runs" / "x" / "lock")))
    assert end.code == 1
    assert end.err.endswith("/x/lock; another process may have moved or removed it\n")


def test_a_working_directory_that_was_removed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gptlab", "list"])
    (tmp_path / "gone").mkdir()

    def work() -> None:
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        cli.main()

    assert in_child(work, tmp_path) == Ended(
        1, "", "error: the working directory no longer exists; change to another one\n"
    )


def test_every_error_number_that_the_environment_causes_has_a_message():
    assert all(os.strerror(number) for number in EXPECTED_OS_ERRORS)
    assert errno.ENOENT not in EXPECTED_OS_ERRORS


def test_ctrl_c_during_imports_ends_the_program_with_one_line(tmp_path, monkeypatch):
    """A library that swallows the KeyboardInterrupt cannot hide it."""
    (tmp_path / "swallowing.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    sum(range(100))\n"
        "except KeyboardInterrupt:\n"
        "    pass\n"
        "def main(): print('not interrupted')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for work in (lambda: entry.start("swallowing"), lambda: import_in_command()):
        assert in_child(work, tmp_path) == Ended(130, "", "error: interrupted\n")


def import_in_command() -> None:
    with importing():
        import swallowing  # noqa: F401 - the import is what is tested


def test_ctrl_c_after_the_work_ends_the_program_with_one_line(tmp_path):
    def work() -> None:
        with on_interrupt(end_at_once):
            try:
                cli.exit_code(lambda: 0)
            finally:
                os.kill(os.getpid(), signal.SIGINT)

    assert in_child(work, tmp_path) == Ended(130, "", "error: interrupted\n")


class Dropping:
    """Python drops and prints what its `__del__` raises, as in callbacks of weak references and at a fork."""

    def __init__(self, raise_: Callable[[], object]) -> None:
        self.raise_ = raise_

    def __del__(self) -> None:
        self.raise_()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def divide_by_zero() -> float:
    return 1 / 0


@pytest.fixture
def dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """`dropped(function, …)` ends a program whose exceptions of these functions Python drops; 3: it was interrupted."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # not pytest's

    def end(*functions: Callable[[], object]) -> Ended:
        def work() -> int:
            for function in functions:
                Dropping(function)
            return 3 if interrupts.received else 0

        return in_child(lambda: cli.exit_code(work), tmp_path)

    return end


def test_an_interrupt_that_python_drops_is_remembered_and_not_printed(dropped):
    assert dropped(interrupt) == Ended(3, "", "")


@pytest.mark.parametrize("functions", [[raise_interrupt], [interrupt, divide_by_zero]])
def test_other_exceptions_that_python_drops_are_printed(dropped, functions):
    assert dropped(*functions).err.count("Exception ignored in") == 1


def test_ctrl_c_at_a_fork_waits_until_its_callbacks_have_released_their_locks(tmp_path):
    def work() -> None:
        released = []
        os.register_at_fork(before=interrupt, after_in_parent=lambda: released.append(True))
        child = interrupts.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert released
        interrupts.check()

    assert in_child(lambda: cli.exit_code(work), tmp_path) == Ended(130, "", "error: interrupted\n")


def test_ctrl_c_that_is_ignored_stays_ignored(tmp_path):
    """As in background jobs of a script."""

    def work() -> int:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with importing():
            os.kill(os.getpid(), signal.SIGINT)
        return cli.exit_code(lambda: os.kill(os.getpid(), signal.SIGINT))

    assert in_child(work, tmp_path) == Ended(0, "", "")


def test_windows_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    end = in_child(lambda: entry.main(), tmp_path)
    assert end.code == 1
    assert end.err.startswith("error: gptlab does not run on native Windows; use Linux, macOS or WSL")
    assert end.err.count("\n") == 1


@pytest.mark.parametrize("fault", ["abort", "endless", "error"])
def test_imports_that_fail_with_little_memory_are_one_line(tmp_path, monkeypatch, fault):
    """Libraries crash, print errors of their own or try for ever."""
    monkeypatch.setattr("gptlab.imports.TIMEOUT_S", 1)

    def import_library() -> None:
        if fault == "abort":
            os.write(2, b"OpenBLAS error: Memory allocation still failed\n")
            os.abort()
        if fault == "endless":
            time.sleep(100)  # the alarm ends it
        raise ImportError("the library seems to be broken")

    def work() -> None:
        unlimited = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_AS, (1 << 40, unlimited))
        with importing("a_library"):
            import_library()

    end = in_child(lambda: cli.exit_code(work), tmp_path)
    assert end == Ended(
        1,
        "",
        "error: the memory limit of 1048576 MiB is too low to import a_library; raise it with: ulimit -v unlimited\n",
    )


def test_imports_that_succeed_with_limited_memory_are_repeated_and_the_program_goes_on(tmp_path):
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 40, resource.RLIM_INFINITY))
        with importing("a_library"):
            sys.stdout.write("imported\n")

    assert in_child(lambda: cli.exit_code(work), tmp_path) == Ended(0, "imported\n", "")


@pytest.mark.parametrize("module", ["list_runs", "list_experiments"])
def test_a_warning_is_one_printable_line(tmp_path, monkeypatch, module):
    """Also of commands that have no console."""
    command = {"list_runs": list_runs, "list_experiments": list_experiments}[module]

    def warn() -> list[object]:
        from gptlab.tracking.run import logger

        logger.warning("a\x1b[31m b\nc %s", "\u202ed")
        return []

    monkeypatch.setattr(command, module, warn)
    monkeypatch.setattr(sys, "argv", ["gptlab", {"list_runs": "runs", "list_experiments": "list"}[module], "--json"])
    assert in_child(cli.main, tmp_path) == Ended(0, "[]\n", "a�[31m b c �d\n")
