"""A fresh process is asked to end at any moment of its start: it ends without a traceback, and the next one works."""

import signal
import time
from random import Random

from torture import matrix, process
from torture.place import Place
from torture.process import Outcome, check_manners, ended_before_first_line
from torture.trial import PromiseBrokenError, Trial, require

SIGNALS = (signal.SIGINT, signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COMMANDS = [
    *("list", "show", "check", "runs", "sample", "eval", "diff", "sync", "rm", "gc", "report", "run", "resume json"),
    *("plan", "text", "tokenizer"),
]
LONGEST_S = dict.fromkeys(("list", "runs", "sync", "rm", "gc"), 1.2)

DEFAULT_LONGEST_S = 6.0
"""About as long as a command that imports torch takes on a busy machine."""


def attempt(place: Place, trial: Trial) -> None:
    """Send a signal to one command; successive trials go through all commands."""
    random = trial.random()
    order = Random(trial.seed).sample(COMMANDS, len(COMMANDS))
    name, number = order[trial.turn % len(order)], random.choice(SIGNALS)
    delay = LONGEST_S.get(name, DEFAULT_LONGEST_S) * random.random() ** 1.5  # the beginning is the least explored
    copied = place.copy("finished", trial.folder)
    matrix.prepare(name, place, copied)
    words = matrix.command(name, place, copied)
    started = process.start_fresh(*words)
    time.sleep(delay)
    started.send(number)
    check(started.wait(), number, delay)
    again = process.run(*words)
    check_manners(again, {0, 2} if name == "rm" else {0})


def check(outcome: Outcome, number: signal.Signals, delay: float) -> None:
    """Check how the process ended: as if nothing had happened, by the signal, or with its exit code."""
    if ended_before_first_line(outcome):
        return
    try:
        require("Traceback" not in outcome.err, f"a traceback: {outcome}")
        if outcome.code != -number:
            check_manners(outcome, {0, 128 + number})
    except PromiseBrokenError as failure:
        raise PromiseBrokenError(f"{outcome.words[0]}, {number.name} after {delay:.3f} s: {failure}") from None
