"""`gptlab watch`: runs in training as their directories show them, on terminals of all kinds and without one."""

import fcntl
import io
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from faults import in_child
from rich.console import Console as RichConsole
from support import PATIENCE_S, eventually, run_attempt

from gptlab.commands import watched_metrics
from gptlab.commands.watch import Watch, show
from gptlab.commands.watch_view import screen
from gptlab.commands.watched_metrics import WatchedMetrics
from gptlab.commands.watched_run import WatchedRun
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.terminal.look_alikes import ERRORS
from gptlab.tracking.lock import RunLock
from gptlab.tracking.metrics import METRICS, MetricsFile, Row
from gptlab.tracking.run import Run
from gptlab.training.loop import Hooks

NOW = 1_000_000.0


def row(step: int, **values: object) -> Row:
    """A row of a run that takes a second per step and is now at step 20."""
    known: Row = {"step": step, "attempt": 1, "time": NOW - 20 + step, "train/loss": 5 - step / 10}
    known["perf/tokens_per_s"] = 1234.5
    if step % 10 == 0:
        known |= {"val/loss": 5.5 - step / 10, "val/loss_se": 0.0123}
    return known | values


ROWS = [row(step) for step in range(0, 21, 5)]


def write(run: Run, rows: list[Row]) -> None:
    with MetricsFile(run.directory, 1 << 40) as metrics:
        for each in rows:
            metrics.append(each)


@pytest.fixture
def in_training(make_run: Callable[..., Run]) -> Iterator[Callable[..., Run]]:
    """`in_training(seed, rows)` makes a run that this process trains; it is asked for 100 steps."""
    locks = []

    def make(seed: int = 0, rows: list[Row] = ROWS, **options: object) -> Run:
        run = make_run(seed, **options)
        run.start_attempt(steps=100)
        write(run, rows)
        locks.append(RunLock(run.directory))
        locks[-1].__enter__()
        return run

    yield make
    for lock in locks:
        lock.__exit__(None, None, None)


def drawn(runs: list[WatchedRun], width: int, height: int, encoding: str = "utf-8") -> list[str]:
    """What a terminal of this size shows, line by line."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors=ERRORS, write_through=True)
    console = RichConsole(file=file, width=width, height=height, color_system=None)
    console.print(screen(runs, NOW, width, height, "12:00:00"))
    return raw.getvalue().decode(encoding).splitlines()


# --- what is read ---


def test_a_run_in_training_has_its_newest_losses_speed_and_eta(in_training):
    run = in_training()
    document = WatchedRun(run).document(NOW)
    assert document == {
        "run": run.id,
        "name": "micro",
        "seed": 0,
        "status": "running",
        "step": 20,
        "steps": 100,
        "train_loss": 3.0,
        "val_loss": 3.5,
        "val_loss_se": 0.0123,
        "val_step": 20,
        "tokens_per_s": 1234.5,
        "eta_s": 80.0,
        "elapsed_s": None,
        "sample": None,
        "note": f"process {os.getpid()} on {os.uname().nodename}",
        "directory": str(run.directory),
    }
    assert WatchedRun(run).eta_s(NOW + 30) == 50, "time passes between two rows"
    assert WatchedRun(run).eta_s(NOW + 1000) == 0
    assert WatchedRun(run).eta_s(NOW - 1000) == 80, "the clock of another machine may be wrong"
    assert WatchedRun(run).note(NOW + 100) == "no row for 1 min 40 s"


def test_only_new_rows_are_read_and_a_torn_one_when_it_is_complete(make_run, monkeypatch):
    run = make_run()
    write(run, ROWS)
    metrics = WatchedMetrics(run.directory)
    metrics.read()
    parsed = []
    monkeypatch.setattr(
        "gptlab.untrusted.parse_row", lambda where, line, kind: parsed.append(line) or kind.validate_json(line)
    )
    metrics.read()
    assert (parsed, len(metrics.train)) == ([], 5)
    line = json.dumps(row(25)) + "\n"
    with (run.directory / METRICS).open("a") as file:
        for part in (line[:30], line[30:]):
            assert metrics.train[-1][0] == 20
            file.write(part)
            file.flush()
            metrics.read()
    assert metrics.train[-1] == (25, 2.5)
    assert (len(parsed), metrics.problem) == (1, None)


@pytest.mark.parametrize("rest", [[row(10, **{"train/loss": 9.0})], [row(step, x=1.5) for step in range(10, 60)]])
def test_rows_that_a_resumed_run_drops_are_forgotten(make_run, rest):
    """The file becomes shorter, or is longer already when it is read again, and the position is within a row."""
    run = make_run()
    write(run, ROWS)
    metrics = WatchedMetrics(run.directory)
    metrics.read()
    (run.directory / METRICS).unlink()
    rest = [{key: value for key, value in each.items() if key != "x"} | {"optim/lr": 0.123456} for each in rest]
    write(run, [*ROWS[:2], *rest])
    metrics.read()
    assert [step for step, _ in metrics.train] == [0, 5, *(each["step"] for each in rest)]
    assert metrics.train[2][1] == rest[0]["train/loss"]


def test_an_attempt_that_begins_makes_the_rows_be_read_again(in_training):
    run = in_training()
    watched = WatchedRun(run)
    run.start_attempt(steps=200, from_step=10)
    with MetricsFile(run.directory, 0) as metrics:
        for each in [*ROWS[:3], *(row(step, attempt=3) for step in range(11, 40))]:
            metrics.append(each)
    watched.read()
    assert [step for step, _ in watched.train] == [0, 5, 10, *range(11, 40)]
    assert watched.steps == 200


def test_a_long_file_is_sampled_and_then_followed(make_run, monkeypatch):
    monkeypatch.setattr(watched_metrics, "SAMPLE_BYTES", 0)
    monkeypatch.setattr(watched_metrics, "MAX_POINTS", 4)
    monkeypatch.setattr(watched_metrics, "sample_metrics", lambda directory: iter([ROWS[0], ROWS[3]]))
    run = make_run()
    write(run, ROWS)
    metrics = WatchedMetrics(run.directory)
    metrics.read()
    assert [step for step, _ in metrics.train] == [0, 15]
    assert metrics.newest["val/loss"] == 3.5, "the newest values are not a sample"
    for step in (25, 30, 35):
        write(run, [row(step)])
        metrics.read()
    assert [step for step, _ in metrics.train] == [0, 25, 35], "a curve with too many points loses some"


@pytest.mark.parametrize("line", [b'{"step": "many"}\n', b"\xff\n", b'{"step": 5, "train/loss": {}}\n'])
def test_an_invalid_row_is_described_and_ends_nothing(in_training, line):
    run = in_training()
    watched = WatchedRun(run)
    with (run.directory / METRICS).open("ab") as file:
        file.write(line)
    for _ in range(2):
        watched.read()
    assert f"{METRICS}:6: " in watched.problem
    assert any("fix or remove this line" in text for text in drawn([watched], 300, 12))
    assert not watched.train


def test_a_run_that_is_deleted_keeps_what_was_read(in_training, make_run):
    kept, deleted = (WatchedRun(in_training(seed)) for seed in (0, 1))
    for name in ("run.json", METRICS, "attempts.jsonl"):
        (deleted.run.directory / name).unlink()
        deleted.read()
    shutil.rmtree(deleted.run.directory)
    for each in (kept, deleted):
        each.read()
    assert (kept.status, deleted.status, deleted.loss, deleted.step) == ("running", "removed", 3.0, 20)
    shown = drawn([kept, deleted], 150, 30)
    assert re.search(r"-s1 +removed +20 of 100 .* its directory is gone", "\n".join(shown))


@pytest.mark.parametrize(
    ("outcome", "facts", "note"),
    [
        ("complete", {}, "20 s of training"),
        ("interrupted", {}, "resume: gptlab resume {run}"),
        ("diverged", {"diverged": {"after_step": 12, "loss": "nan"}}, "the loss is nan after step 12"),
        ("diverged", {"diverged": ["\x1b[31m"]}, None),
        ("failed", {}, "20 s of training"),
        (None, {}, "its process was killed; resume: gptlab resume {run}"),
    ],
)
def test_a_run_that_ends_shows_how(make_run, monkeypatch, outcome, facts, note):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/gptlab")
    run = make_run()
    number = run.start_attempt(steps=100)
    write(run, [*ROWS, row(25, elapsed_s=20.0)])
    with RunLock(run.directory):
        watched = WatchedRun(run)
        assert watched.status == "running"
        if outcome:
            run.end_attempt(number, 25, outcome, **facts)
    watched.read()
    assert (watched.status, watched.step) == (outcome or "interrupted", 25)
    assert watched.note(NOW) == (note and note.format(run=run.id))


def test_the_losses_of_a_damaged_run_are_not_shown(make_run):
    run = make_run(outcome="interrupted")
    number = run.start_attempt(steps=100)
    with MetricsFile(run.directory, 0) as metrics:
        metrics.append(ROWS[0])
        run.end_attempt(number, 20, "complete", metrics_bytes=metrics.size, metrics_xxh3="0" * 32)
    document = WatchedRun(run).document(NOW)
    assert (document["train_loss"], document["val_loss"]) == (None, None)
    assert "its rows have changed since they were written" in document["note"]


# --- which runs ---


def test_without_arguments_runs_in_training_are_watched_and_new_ones_are_found(in_training, make_run):
    make_run(7)
    first = in_training(0)
    watched = Watch()
    assert [each.name for each in watched.runs] == [first.id]
    second = in_training(1)
    (in_training(2).directory / "run.json").write_text("{}")
    watched.read()
    assert [each.name for each in watched.runs] == [first.id, second.id]
    assert len(watched.unreadable) == 1
    assert not watched.is_over


def test_named_runs_are_watched_until_all_have_ended(in_training, make_run):
    ended, running = make_run(0), in_training(1)
    watched = Watch([ended.id, "micro-*-s1", ended.id])
    assert [each.name for each in watched.runs] == [ended.id, running.id]
    assert not watched.is_over
    assert Watch([ended.id]).is_over


def test_watching_changes_nothing_and_takes_no_lock(in_training, make_run, tmp_path):
    run = in_training(0)
    ended = make_run(1)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}
    watched = Watch([run.id, ended.id])
    watched.read()
    Watch().document()
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")} == before
    with RunLock(ended.directory):
        watched.read()
    assert [each.status for each in watched.runs] == ["running", "running"]


# --- how they are drawn ---


SIZES = [(120, 40), (80, 24), (40, 12), (30, 6), (20, 3), (8, 2), (1, 1), (300, 100)]


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_every_terminal_is_filled_and_no_line_is_too_long(in_training, count):
    runs = [WatchedRun(in_training(seed, **{"model.n_layer": 1 + seed % 2})) for seed in range(count)]
    for encoding in ("utf-8", "ascii"):
        for width, height in SIZES:
            lines = drawn(runs, width, height, encoding)
            assert len(lines) == max(height, min(count, 2)), (width, height)
            assert all(len(line) <= width for line in lines), (width, height)
            if width >= 80 and height > 20 and count:
                text = "\n".join(lines)
                assert re.search("[\u2801-\u28ff]" if encoding == "utf-8" else "['.:]{3}", text), "a curve"
                assert ("± " if encoding == "utf-8" else "~ ") + "0.0123" in text
                assert "?" not in text


def test_one_run_fills_the_terminal_with_its_curve(in_training):
    run = in_training()
    lines = drawn([WatchedRun(run)], 80, 24)
    assert re.sub(" +", " ", "\n".join(lines[:3])) == (
        f"{run.id} running process {os.getpid()} on {os.uname().nodename}\n"
        f"step 20 of 100 {'━' * 9}{'─' * 35} 20% · ETA 1 min 20 s\n"
        "⠒ train loss 3.0000 · ● val loss 3.5000 ± 0.0123 at step 20 · 1,234 tokens/s"
    )
    assert [line[:6] for line in lines[4:20]] == ["  5.5 ┤", *["      ┤"] * 14, "    3 ┤"] or lines[4].startswith(
        "5.5 ┤"
    )
    assert lines[-1] == "12:00:00 · Ctrl-C ends only this view"


def test_the_steep_start_of_a_long_curve_leaves_the_lines_to_the_rest(in_training):
    rows = [row(step, **{"train/loss": 11.0 if step < 5 else 4 - step / 100}) for step in range(100)]
    long, short = (WatchedRun(in_training(seed, rows[:count])) for seed, count in enumerate((100, 30)))
    tops = [next(line.split()[0] for line in drawn([each], 80, 24) if "┤" in line) for each in (long, short)]
    assert tops == ["4.5", "11"]


def test_runs_stand_in_a_table_with_what_differs_between_them(in_training):
    for seed in range(3):
        in_training(seed, **{"train.learning_rate": 10.0**-seed})
    lines = drawn(Watch().runs, 120, 40)
    assert lines[0].split()[:7] == ["run", "learning_rate", "status", "step", "train", "loss", "val"]
    assert sorted(line.split()[1] for line in lines[1:4]) == ["0.01", "0.1", "1"]
    assert sum("└" in line for line in lines) == 2, "curves below, beside each other"
    assert sum(line.count("└") for line in lines) == 3
    short = drawn(Watch().runs, 40, 4)
    assert [line.split()[1] for line in short[1:2]] == ["running"]
    assert short[2] == "2 runs not shown"


def test_without_a_terminal_each_run_is_printed_once_as_plain_text(in_training, make_run, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    run = in_training()
    make_run(1)
    run.add_sample(20, "Once ", "upon a \x1b[31mtime")
    show(Watch(), 1.0, Console())
    show(Watch(["micro-*"]), 1.0, Console())
    out = capfd.readouterr().out
    assert "\x1b" not in out
    assert out.count(f"{run.id}  running") == 2
    assert "sample at step 20\nOnce upon a �[31mtime\n" in out
    assert out.count("└") == 2


def test_no_run_in_training_is_said(capfd):
    show(Watch(), 1.0, Console())
    assert capfd.readouterr().out.startswith("no run is running; ")
    assert Watch().document() == []


# --- in a real terminal ---


def _without_size() -> dict[str, str]:
    """The environment without variables that stand for the terminal's size; other tests' libraries set them."""
    return {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}


class Terminal:
    """A pseudo terminal with `gptlab watch` in it."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._master, slave = os.openpty()
        self.resize(100, 30)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gptlab", "watch", "--interval", "0.1", *arguments],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**_without_size(), "TERM": "xterm", **environment},
        )  # fmt: skip
        os.close(slave)
        self.raw = ""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def shows(self, pattern: str) -> list[str]:
        """Wait until the newest frame matches; return its lines."""
        found: list[str] = []

        def matches() -> bool:
            self._read()
            frames = self.raw.split("\x1b[H")[2:-1]  # the last one may be incomplete
            found[:] = re.sub("\x1b[^a-zA-Z]*[a-zA-Z]", "", frames[-1]).split("\r\n") if frames else []
            return bool(re.search(pattern, "\n".join(found)))

        try:
            eventually(matches)
        except AssertionError:
            pytest.fail(f"not shown: {pattern}\nexit code {self.process.poll()}\n" + "\n".join(found) + self.raw[-500:])
        return found

    def _read(self) -> None:
        while select.select([self._master], [], [], 0)[0]:
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:  # the process has ended
                return
            if not data:
                return
            self.raw += data.decode(errors="replace")

    def close(self) -> int:
        """Close the terminal, and return the exit code."""
        os.close(self._master)
        return self.process.wait(PATIENCE_S)

    def end(self, number: signal.Signals) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self._read()
        os.close(self._master)
        return code


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    """`open_terminal(arguments, environment)` starts `gptlab watch`, which ends with the test."""
    with ExitStack() as stack:

        def start(*arguments: str, **environment: str) -> Terminal:
            terminal = Terminal(*arguments, **environment)
            stack.enter_context(terminal.process)
            stack.callback(terminal.process.kill)
            return terminal

        yield start


def test_a_real_run_is_watched_from_its_start_to_its_end(open_terminal, micro: Experiment, tmp_path: Path):
    """In a terminal that becomes smaller meanwhile. Ctrl-C ends the view, and leaves the terminal as it was."""
    terminal = open_terminal()
    terminal.shows("no run is running; waiting for one to start")
    go_on = tmp_path / "go-on"

    def wait(step: int, loss: float | None) -> None:
        if step == 25:
            eventually(go_on.exists)

    def observe(child: int) -> None:
        lines = terminal.shows("step 20 of 40")
        text = "\n".join(lines)
        assert re.search(r"micro-[0-9a-f]{8}-s0  running  process " + str(child), text)
        assert re.search(r"train loss \d\.\d{4} · ● val loss \d\.\d{4} ± \d\.\d{4} at step 20", text)
        assert "tokens/s" in text
        assert re.search("[\u2801-\u28ff]", text)
        terminal.resize(40, 12)
        lines = terminal.shows(r"^micro-\S+  running *\n")
        assert (len(lines), max(map(len, lines))) == (12, 40)
        terminal.resize(100, 30)
        go_on.touch()

    trained = in_child(lambda: run_attempt(micro, hooks=Hooks(on_step=[wait])) and None, tmp_path, meanwhile=observe)
    assert trained.code == 0, trained.err
    text = "\n".join(terminal.shows("  complete  "))
    assert "step 40 of 40" in text
    assert re.search(r"micro-\S+  complete  \d+ s of training", text)
    assert "sample at step 40" in text
    assert "waiting for more" in text
    assert terminal.end(signal.SIGINT) == 0
    assert "Traceback" not in terminal.raw
    left = terminal.raw[terminal.raw.index("\x1b[?1049l") :]
    assert "\x1b[?25h" in terminal.raw[terminal.raw.rindex("\x1b[?25l") :], "the cursor is back"
    assert re.search(r"micro-\S+  .*complete", left), "a line of each run stays"


def test_a_terminal_that_is_closed_ends_the_view(open_terminal):
    """Without a SIGHUP, as after `setsid`."""
    terminal = open_terminal()
    terminal.shows("no run is running")
    assert terminal.close() == 1


def state(process: int) -> str:
    """`T` if the process is stopped."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_signal_that_ends_or_stops_the_view_leaves_the_terminal_as_it_was(open_terminal, in_training):
    terminal = open_terminal(in_training().id, NO_COLOR="1", PYTHONIOENCODING="ascii")
    lines = terminal.shows("step 20 of 100")
    assert "\n".join(lines).isascii()
    assert "\x1b[3" not in terminal.raw.replace("\x1b[?", ""), "no color"
    terminal.process.send_signal(signal.SIGTSTP)
    eventually(lambda: state(terminal.process.pid) == "T")
    terminal.process.send_signal(signal.SIGCONT)
    eventually(lambda: terminal.shows("step 20") and terminal.raw.count("\x1b[?1049h") == 2)
    assert terminal.raw.count("\x1b[?1049l") == 1, "Ctrl-Z shows the shell, fg the view again"
    assert terminal.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert terminal.raw.rindex("\x1b[?1049l") > terminal.raw.rindex("\x1b[?1049h")
    assert "\x1b[?25h" in terminal.raw[terminal.raw.rindex("\x1b[?25l") :]
