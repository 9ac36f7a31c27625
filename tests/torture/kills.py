"""A process is asked to end, or killed, at any moment; the next attempts end with the undisturbed run's bytes."""

import os
import re
import signal
import time
from pathlib import Path

from gptlab.checkpoints.manifest import list_checkpoints
from torture import process
from torture.place import TRAIN, Place, acts_at, check_checkpoints, check_finished
from torture.process import Outcome, check_manners, ended_before_first_line
from torture.trial import Trial, require

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
BEGINNINGS = (None, "extended", "killed")
ROW = re.compile(r"^ +step +(\d+) ", re.MULTILINE)
MAX_S = 1.5
"""A little longer than an undisturbed run lasts."""


def attempt(place: Place, trial: Trial) -> None:
    """Kill up to four attempts, then finish the run."""
    random = trial.random()
    name, beginning = random.choice(place.experiments), random.choice(BEGINNINGS)
    run = place.ids[name]
    copied = place.copy(beginning, trial.folder, only=f"{name}-*") if beginning else place.empty(trial.folder)
    for _ in range(random.randint(1, 4)):
        number, by_operation = random.choice(SIGNALS), random.random() < 0.7
        begun = (copied / "runs" / run / "run.json").exists()
        words = ["resume", run, "--steps", "40", *TRAIN] if begun and random.random() < 0.5 else ["run", name, *TRAIN]
        at, delay, twice = random.randint(1, place.operations[name]), random.uniform(0, MAX_S), random.random() < 0.2
        if by_operation:
            disturb = acts_at(at, lambda number=number: os.kill(os.getpid(), number))
            outcome = process.run(*words, prepare=disturb)
        else:
            started = process.start(*words)
            for _ in range(1 + twice):
                time.sleep(delay)
                started.send(number)
            outcome = started.wait()
        check(outcome, number, copied / "runs" / run, once=by_operation or not twice)
        check_checkpoints(copied / "runs")
    for _ in range(2):  # the second one has nothing to do
        check_manners(process.run("run", name, *TRAIN), {0})
    check_finished(copied / "runs" / run, place.root / "finished" / "runs" / run)


def check(outcome: Outcome, number: signal.Signals, run: Path, *, once: bool) -> None:
    """Check how a process ended that received this signal, or ended before it; after one signal, that it saved."""
    if outcome.code != -number and not ended_before_first_line(outcome):
        check_manners(outcome, {0} if number == signal.SIGKILL else {0, 128 + number})
    if once and number != signal.SIGKILL:
        newest = max((one.step for one in list_checkpoints(run) if one.resumable), default=0)
        done = max((int(step) for step in ROW.findall(outcome.out)), default=0)
        require(newest >= done, f"{number.name} lost steps: step {newest} is saved, {done} was done: {outcome}")
