"""Several commands work on the same runs at once: one trains, the others wait, read or say why they cannot."""

import json
import shutil
import time
from pathlib import Path

from torture import process
from torture.place import TRAIN, Place, check_checkpoints, check_finished
from torture.process import check_manners
from torture.trial import Trial, require

MAX_S = 1.5
"""Seconds within which the commands start."""
ATTEMPTS = "attempts.jsonl"


def attempt(place: Place, trial: Trial) -> None:
    """Start two to six commands within a second or so, then finish the run."""
    random = trial.random()
    name, beginning = random.choice(place.experiments), random.choice((None, "extended", "killed"))
    run = place.ids[name]
    copied = place.copy(beginning, trial.folder) if beginning else place.empty(trial.folder)
    if random.random() < 0.3:
        shutil.rmtree(copied / "cache")
    train = ["run", name, *TRAIN]
    others = [
        ["resume", run, "--steps", "40", *TRAIN],
        ["runs", "--json"],
        ["show", run],
        ["eval", run, "--json"],
        ["diff", run],
        ["sample", run],
        ["report"],
        ["gc", "--yes"],
        ["gc", "--yes", "--json"],
        ["rm", run],
        ["sync"],
    ]
    commands = [train, *(random.choice([train, *others]) for _ in range(random.randint(1, 5)))]
    starts = sorted((random.uniform(0, MAX_S) * random.randint(0, 1), index) for index in range(len(commands)))
    began, started = time.monotonic(), []
    for delay, index in starts:
        time.sleep(max(0.0, began + delay - time.monotonic()))
        started.append(process.start(*commands[index]))
    outcomes = [one.wait() for one in started]
    for outcome in outcomes:
        check_manners(outcome, {0, 1, 2})
    for attempts in (copied / "runs").rglob(ATTEMPTS):
        check_one_trainer(attempts, killed=beginning == "killed")
    check_checkpoints(copied / "runs")
    check_manners(process.run(*train), {0})
    check_finished(copied / "runs" / run, place.root / "finished" / "runs" / run)


def check_one_trainer(attempts: Path, *, killed: bool) -> None:
    """Check that each attempt ended before the next one started, but for the first one of a killed run."""
    events = [json.loads(line)["event"] for line in attempts.read_bytes().splitlines()]
    expected = events[1:] if killed and events[:2] != ["start", "end"] else events
    require(expected == ["start", "end"] * (len(expected) // 2), f"attempts overlap in {attempts}: {events}")
