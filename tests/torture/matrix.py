"""Every command under every condition."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from torture import full_disk, process, system
from torture.place import TRAIN, Place
from torture.process import REPORT, Outcome, check_manners, open_streams
from torture.trial import PromiseBrokenError, SkipError, Trial, require

COMMANDS: dict[str, list[str]] = {
    "list": ["list"],
    "list json": ["list", "--json"],
    "show": ["show", "{micro}"],
    "show experiment": ["show", "micro", "--json"],
    "plan": ["plan", "micro", "--gpus", "2", "--json"],
    "check": ["check", "relu", "--json"],
    "runs": ["runs"],
    "runs json": ["runs", "--json"],
    "watch": ["watch", "{micro}"],
    "watch json": ["watch", "{micro}", "--json"],
    "sample": ["sample", "{micro}", "--tokens", "8"],
    "eval": ["eval", "{micro}", "--json"],
    "eval explain": ["eval", "{micro}", "{micro 1}", "--explain", "--json"],
    "batch": ["batch", "{micro}@3"],
    "tokens": ["tokens", "{micro}", "--tokens", "40", "--json"],
    "export": ["export", "{micro}", "{folder}/export", "--json"],
    "bundle": ["bundle", "{micro}", "-o", "{folder}/results.tar", "--json"],
    "verify": ["verify", "{micro}", "--to", "10"],
    "diff": ["diff", "{micro}", "{micro 1}"],
    "diff now": ["diff", "{micro}", "--json"],
    "sync": ["sync"],
    "rm": ["rm", "{micro 1}"],
    "gc": ["gc", "--yes"],
    "gc optimizer": ["gc", "--optimizer", "--snapshots", "--yes", "{micro 1}"],
    "text": ["text", "{text}", "--out", "{folder}/joined.txt", "--force"],
    "tokenizer": ["tokenizer", "train", "{text}", "--vocab-size", "300", "--out", "{folder}/tokenizer.json"],
    "report": [REPORT],
    "run": ["run", "micro", "--seed", "2", "--steps", "21", *TRAIN],
    "run complete": ["run", "micro", *TRAIN],
    "resume": ["resume", "{other}", *TRAIN],
    "resume json": ["resume", "{other}", *TRAIN, "--json"],
    "fresh": ["run", "micro", "--fresh", "--steps", "11", *TRAIN],
}
"""Not among them: `dashboard`, which needs a terminal and W&B's file, and `decide` and `sweep`, which train as `run`
does."""

READ_ONLY = {
    "list",
    "list json",
    "show",
    "show experiment",
    "plan",
    "check",
    "runs",
    "runs json",
    "watch",
    "watch json",
    "sample",
    "eval",
    "eval explain",
    "batch",
    "diff",
    "diff now",
}
"""Commands that need to write nothing to say what they have to say."""

PAGE = 4096
ANOTHER = "*-s1"
LISTS = {"runs", "runs json", "report"}
LAST_STEPS = {"run": 21, "resume": 40, "resume json": 40, "fresh": 11}
"""The last step of each command that trains. The two that are unlike the others cannot be those of another run."""

Change = Callable[[Path, Random], None]


def _no_change(copied: Path, random: Random) -> None:
    pass


@dataclass(frozen=True)
class Condition:
    """What a command finds when it starts.

    Attributes:
        name: What it is called.
        arrange: Changes the copy of the runs, and this process's environment, before the child is forked.
        enter: Changes the child itself.
        script: A shell script that starts a fresh process instead of a forked one, for what only that can show. `KIB`
            stands for a random number of KiB.
        needs_mounts: Whether a file system is mounted.
        silent: Whether an error may be silent, because stderr cannot be written.
        reads: Whether commands that only read must succeed and say the same as without the condition.
        trains: Whether training must reach its last step.
        names: A directory, or `ANOTHER`, that `runs` and `report` must list, or say why they do not.
        codes: The exit codes that fit.
    """

    name: str
    arrange: Change = _no_change
    enter: Change = _no_change
    script: str | None = None
    needs_mounts: bool = False
    silent: bool = False
    reads: bool = True
    trains: bool = True
    names: str | None = None
    codes: frozenset[int] = frozenset({0, 1, 2})


def _read_only_disk(part: str) -> Change:
    def arrange(copied: Path, random: Random) -> None:
        system.enter_namespace()
        system.mount_read_only(copied / part)

    return arrange


def _no_permission(part: str) -> Change:
    def arrange(copied: Path, random: Random) -> None:
        for path in [copied / part, *(copied / part).rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)

    return arrange


def _unprivileged(copied: Path, random: Random) -> None:
    system.drop_privileges()


def _full(part: str) -> Change:
    def arrange(copied: Path, random: Random) -> None:
        kept = copied.with_name("kept")
        shutil.move(copied / part, kept)
        (copied / part).mkdir()
        system.enter_namespace()
        files = [path.stat().st_size for path in kept.rglob("*") if path.is_file()]
        system.mount_small_disk(copied / part, sum(files) + PAGE * len(files) + full_disk.SPARE_BYTES)
        shutil.copytree(kept, copied / part, dirs_exist_ok=True)
        full_disk.fill(copied / part / ".filler", 0)

    return arrange


def _close(*descriptors: int) -> Change:
    def enter(copied: Path, random: Random) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        open_streams()

    return enter


def _stdout_to(path: str) -> Change:
    def enter(copied: Path, random: Random) -> None:
        os.dup2(os.open(path, os.O_WRONLY), 1)

    return enter


def _no_reader(copied: Path, random: Random) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)


def _encoding(name: str) -> Change:
    return lambda copied, random: open_streams(name)


def _little_memory(copied: Path, random: Random) -> None:
    system.limit_memory(int(2 ** random.uniform(20, 29)))


def _few_kib(random: Random) -> str:
    return str(int(2 ** random.uniform(17, 23)))  # 128 MiB to 8 GiB: from too little for Python to enough


def _unreadable(part: str) -> Change:
    return lambda copied, random: (_another(copied) / part).chmod(0)


def _damaged(copied: Path, random: Random) -> None:
    path = _another(copied) / random.choice(("run.json", "attempts.jsonl", "metrics.jsonl"))
    path.write_bytes(random.choice((b"\xff\xfe\n", b'{"step": \n', b"[]\n", b"\0" * 5000 + b"\n")))


def _renamed_copy(copied: Path, random: Random) -> None:
    shutil.copytree(_another(copied), copied / "runs" / "backup")


def _terminal_codes(copied: Path, random: Random) -> None:
    name = random.choice(("run.json", "attempts.jsonl", "metrics.jsonl", "samples.jsonl"))
    row = {"\x1b[31mred\x1b]0;title\x07": 1, "event": "\x1b[31m", "step": "\x1b[2J"}
    (_another(copied) / name).write_text(json.dumps(row, ensure_ascii=False) + "\n")


def _another(copied: Path) -> Path:
    """A run that few commands name, if any."""
    return max((copied / "runs").glob(ANOTHER))


CONDITIONS = [
    Condition("nothing special"),
    Condition("read-only disk with the runs", _read_only_disk("runs"), needs_mounts=True, trains=False),
    Condition("runs without permission to write", _no_permission("runs"), _unprivileged, trains=False),
    Condition("read-only disk with the cache", _read_only_disk("cache"), needs_mounts=True, trains=False),
    Condition("cache without permission to write", _no_permission("cache"), _unprivileged, trains=False),
    Condition("full disk with the runs", _full("runs"), needs_mounts=True, trains=False),
    Condition("full disk with the cache", _full("cache"), needs_mounts=True, trains=False),
    Condition("closed stdout", enter=_close(1), reads=False),
    Condition("closed stderr", enter=_close(2), silent=True),
    Condition("closed stdin, stdout and stderr", enter=_close(0, 1, 2), silent=True, reads=False),
    Condition("stdout that nobody reads", enter=_no_reader, silent=True, reads=False),
    Condition("stdout on a full disk", enter=_stdout_to("/dev/full"), reads=False),
    Condition("ASCII", enter=_encoding("ascii")),
    Condition("Latin-1", enter=_encoding("latin-1")),
    Condition("a Japanese encoding", enter=_encoding("shift_jis")),
    Condition(
        "little memory", enter=_little_memory, reads=False, trains=False, codes=frozenset({0, 1, 2, -signal.SIGABRT})
    ),
    Condition("an unreadable run", _unreadable("."), _unprivileged, names=ANOTHER),
    Condition("an unreadable record", _unreadable("run.json"), _unprivileged, names=ANOTHER),
    Condition("unreadable metrics", _unreadable("metrics.jsonl"), _unprivileged, names=ANOTHER),
    Condition("unreadable checkpoints", _unreadable("checkpoints"), _unprivileged, names=ANOTHER),
    Condition("a damaged run among good ones", _damaged, names=ANOTHER),
    Condition("a renamed copy of a run", _renamed_copy, names="backup"),
    Condition("terminal codes in a run", _terminal_codes, names=ANOTHER),
    Condition(
        "little memory from the start",
        script='ulimit -v KIB; exec "$@"',
        reads=False,
        trains=False,
        codes=frozenset({0, 1, 2, -signal.SIGABRT}),
    ),
    Condition("C locale", script='LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 exec "$@"'),
    Condition("`| head -c 1`", script='"$@" | head -c 1; exit "${PIPESTATUS[0]}"', silent=True, reads=False),
]

CELLS = [(command, condition) for command in COMMANDS for condition in CONDITIONS]


def attempt(place: Place, trial: Trial) -> None:
    """Run one command under one condition; successive trials go through all pairs, in an order that the seed draws."""
    order = Random(trial.seed).sample(CELLS, len(CELLS))
    run_cell(place, trial, *order[trial.turn % len(CELLS)])


def run_cell(place: Place, trial: Trial, name: str, condition: Condition) -> None:
    """Run one command under one condition."""
    if condition.needs_mounts and not place.mounts:
        raise SkipError("a file system cannot be mounted here (unshare -rm)")
    random, copied = trial.random(), place.copy("finished", trial.folder)
    words = command(name, place, copied)
    prepare(name, place, copied)
    true = process.run(*words) if condition.reads and name in READ_ONLY else None
    listed = _another(copied).name if condition.names == ANOTHER else condition.names
    condition.arrange(copied, random)
    if condition.script:
        outcome = process.start_fresh(*words, script=condition.script.replace("KIB", _few_kib(random))).wait()
    else:
        outcome = process.run(*words, prepare=lambda: condition.enter(copied, random))
    try:
        check_manners(outcome, set(condition.codes), silent=condition.silent)
        if true or condition.name == "nothing special":
            require(outcome.code == 0, f"exit code {outcome.code}: {outcome}")
        if true and "--json" in words:
            _check_document(outcome, true, listed)
        if listed and name in LISTS:
            require(listed in outcome.out + outcome.err, f"{listed} is not mentioned: {outcome}")
        if condition.trains and name in LAST_STEPS:
            step = f"*/checkpoints/step-{LAST_STEPS[name]:08d}/manifest.json"
            require(list((copied / "runs").glob(step)), f"no checkpoint of the last step: {outcome}")
    except PromiseBrokenError as failure:
        raise PromiseBrokenError(f"{name}, {condition.name}: {failure}") from None


def command(name: str, place: Place, folder: Path) -> list[str]:
    """Return the words of a command that is to use a folder of the trial."""
    return [word.format(**place.ids, text=place.root / "words.txt", folder=folder) for word in COMMANDS[name]]


def prepare(name: str, place: Place, copied: Path) -> None:
    """Give a command something to do: a run that was killed, or something in the trash."""
    runs, killed = copied / "runs", place.ids[place.experiments[-1]]
    if name.startswith("resume"):
        shutil.rmtree(runs / killed)
        shutil.copytree(place.root / "killed" / "runs" / killed, runs / killed)
    if name == "gc":
        shutil.copytree(runs / killed, runs / ".trash" / f"{killed}-20200101T000000000000")


def _check_document(outcome: Outcome, true: Outcome, listed: str | None) -> None:
    """Check that a document, or each item of a list but for one run, is the same as without the condition."""
    try:
        ours, theirs = json.loads(outcome.out), json.loads(true.out)
    except ValueError:
        raise PromiseBrokenError(f"stdout is not one JSON document: {outcome}") from None
    if isinstance(theirs, list):
        same = all(item in ours for item in theirs if item.get("run") != listed)
    else:
        same = ours == theirs
    require(same, f"the document is not the same: {outcome}\n--- without the condition\n{true.out}")
