"""Runs trials, two at a time, until the time is over, and reports those that failed."""

import contextlib
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torture import concurrency, full_disk, kills, matrix, mutations, startup
from torture.place import Place
from torture.trial import KINDS, PromiseBrokenError, SkipError, Trial

ATTEMPTS: dict[str, Callable[[Place, Trial], None]] = {
    "kills": kills.attempt,
    "mutations": mutations.attempt,
    "full_disk": full_disk.attempt,
    "concurrency": concurrency.attempt,
    "matrix": matrix.attempt,
    "startup": startup.attempt,
}
ROUND = (
    *("matrix", "mutations", "matrix", "startup", "matrix", "kills", "matrix", "mutations", "matrix", "full_disk"),
    *("matrix", "concurrency", "matrix", "mutations", "matrix", "startup", "matrix", "kills", "matrix"),
)
"""The kinds of successive trials, over and over."""

PROCESSES = 2
TRIAL_S = 400
"""Seconds after which a trial hangs."""
SKIPPED = 77


@dataclass
class Tally:
    """What became of the trials of one kind."""

    trials: int = 0
    failures: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


@dataclass
class _Running:
    trial: Trial
    kind: str
    began: float


@dataclass
class Campaign:
    """A campaign.

    Attributes:
        place: The project and the undisturbed runs.
        seed: Determines all trials.
        tallies: What became of the trials, by kind.
        messages: The number of failures with the same message.
    """

    place: Place
    seed: int
    tallies: dict[str, Tally] = field(default_factory=lambda: {kind: Tally() for kind in KINDS})
    messages: Counter[str] = field(default_factory=Counter)
    _running: dict[int, _Running] = field(default_factory=dict)

    def run(self, numbers: Iterable[int], kinds: Iterable[str], until: float) -> None:
        """Run the trials with these numbers that are of these kinds, until `time.monotonic()` is `until`."""
        try:
            for number in numbers:
                if kind_of(number) not in kinds:
                    continue
                self._wait_for_fewer_than(PROCESSES)
                if time.monotonic() >= until:
                    break
                self._start(number)
            self._wait_for_fewer_than(1)
        finally:
            for pid in self._running:
                _kill(pid)
                os.waitpid(pid, 0)

    def _start(self, number: int) -> None:
        trial = Trial(self.seed, number, turn_of(number), self.place.root / f"trial-{number}")
        kind = kind_of(number)
        trial.folder.mkdir()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)  # so that all of it can be killed, and Ctrl-C reaches the campaign only
            os._exit(_run_trial(ATTEMPTS[kind], self.place, trial))
        with contextlib.suppress(OSError):  # the child has been faster, or has ended
            os.setpgid(child, child)
        self._running[child] = _Running(trial, kind, time.monotonic())

    def _wait_for_fewer_than(self, count: int) -> None:
        while len(self._running) >= count:
            for pid, running in list(self._running.items()):
                if time.monotonic() - running.began > TRIAL_S:
                    _note(running.trial).write_text(f"it did not end within {TRIAL_S} s")
                    _kill(pid)
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    del self._running[pid]
                    _kill(pid)
                    self._account(running, os.waitstatus_to_exitcode(status))
            time.sleep(0.01)  # polled, because a wait has no bound

    def _account(self, running: _Running, code: int) -> None:
        tally, trial, note = self.tallies[running.kind], running.trial, _note(running.trial)
        tally.trials += 1
        tally.seconds += time.monotonic() - running.began
        if code == 0:
            remove(trial.folder)
        elif code == SKIPPED:
            tally.skipped[note.read_text()] += 1
            remove(trial.folder)
        else:
            tally.failures += 1
            text = note.read_text() if note.exists() else f"its process ended with {code}"
            message = _without_numbers(f"{running.kind}: {text.splitlines()[0]}")
            self.messages[message] += 1
            if self.messages[message] == 1:
                print(f"\nFAILED trial {trial.number} ({running.kind}): {text}")
                print(f"repeat it with: make torture SEED={self.seed} TRIAL={trial.number}\nkept: {trial.folder}\n")
            else:
                print(f"FAILED trial {trial.number} ({running.kind}), as before: {text.splitlines()[0]:.150}")
            sys.stdout.flush()

    @property
    def failed(self) -> bool:
        """Whether a trial failed."""
        return any(tally.failures for tally in self.tallies.values())

    def summary(self) -> Iterator[str]:
        """Yield a line per kind, and one per reason why trials were skipped."""
        for kind, tally in self.tallies.items():
            covered = {
                "matrix": f", {min(tally.trials, len(matrix.CELLS))} of {len(matrix.CELLS)} cells",
                "startup": f", {tally.trials // len(startup.COMMANDS)} per command",
            }.get(kind, "")
            yield f"{kind:12} {tally.trials:6} trials {tally.failures:6} failures {tally.seconds:8.0f} s{covered}"
            for reason, count in tally.skipped.items():
                yield f"{'':12} {count:6} of them skipped: {reason}"


def kind_of(number: int) -> str:
    """Return the kind of the trial with this number."""
    return ROUND[number % len(ROUND)]


def turn_of(number: int) -> int:
    """Return how many trials of the same kind have smaller numbers."""
    rounds, rest = divmod(number, len(ROUND))
    kind = kind_of(number)
    return rounds * ROUND.count(kind) + ROUND[:rest].count(kind)


def remove(folder: Path) -> None:
    """Remove a folder, also where it has no permissions."""
    for path, folders, _ in os.walk(folder):
        for name in folders:
            if not (Path(path) / name).is_symlink():
                (Path(path) / name).chmod(0o700)
    shutil.rmtree(folder)


def _run_trial(attempt: Callable[[Place, Trial], None], place: Place, trial: Trial) -> int:
    try:
        attempt(place, trial)
    except SkipError as skip:
        _note(trial).write_text(str(skip))
        return SKIPPED
    except PromiseBrokenError as failure:
        _note(trial).write_text(str(failure))
        return 1
    except BaseException:
        text = traceback.format_exc()
        _note(trial).write_text(f"the campaign itself failed: {text.splitlines()[-1]}\n{text}")
        return 1
    return 0


def _note(trial: Trial) -> Path:
    return trial.folder / "failure.txt"


def _kill(group: int) -> None:
    """Kill a trial's process and what it started, or what it left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _without_numbers(text: str) -> str:
    return re.sub(r"[0-9]+", "#", text)
