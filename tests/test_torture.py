"""`make torture` works: a few cheap trials of a fixed seed run clean, and a broken promise is reported."""

import math
import os
import re

import pytest
import typer
from torture import campaign, matrix
from torture.campaign import ATTEMPTS, ROUND, Campaign, kind_of, turn_of
from torture.place import make_place
from torture.process import REPORT, Outcome, ended_before_first_line
from torture.system import can_mount
from torture.trial import KINDS, PromiseBrokenError, Trial

from gptlab import cli
from gptlab.data import tokenizer

SEED = 5
CELLS = {
    "list json": "read-only disk with the runs",
    "show": "cache without permission to write",
    "runs json": "a damaged run among good ones",
    "rm": "runs without permission to write",
    "run complete": "full disk with the cache",
    "gc": "closed stderr",
}
TRIALS = {"matrix": len(CELLS), "kills": 1, "mutations": 1, "full_disk": 1, "concurrency": 1}
"""How many of each kind; `startup` needs fresh processes."""


@pytest.fixture
def empty(tmp_path):
    """A campaign without a project."""
    return Campaign(campaign.Place(tmp_path, mounts=False), SEED)


def numbers(kinds):
    """The first trials of each kind, as many as `kinds` says."""
    return [number for number in range(100) if turn_of(number) < kinds.get(kind_of(number), 0)]


@pytest.mark.slow
def test_a_few_trials_of_each_cheap_kind_run_clean(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("GPTLAB_RUNS", "GPTLAB_CACHE"):
        monkeypatch.setenv(name, os.environ[name])  # restores what the campaign changes
    cells = [(name, one) for name, wanted in CELLS.items() for one in matrix.CONDITIONS if one.name == wanted]
    monkeypatch.setitem(ATTEMPTS, "matrix", lambda place, trial: matrix.run_cell(place, trial, *cells[trial.turn]))
    tokenizer.token_bytes()  # loads the vocabulary; forked children have it then
    place = make_place(tmp_path, mounts=can_mount(tmp_path), experiments=["micro"])
    trials = Campaign(place, SEED)
    trials.run(numbers(TRIALS), KINDS, math.inf)
    assert {kind: tally.trials for kind, tally in trials.tallies.items() if tally.trials} == TRIALS
    assert not trials.failed, capfd.readouterr().out
    assert not list(tmp_path.glob("trial-*"))


def test_a_broken_promise_is_reported_with_what_repeats_it(empty, monkeypatch, capfd):
    def break_(place, trial):
        raise PromiseBrokenError("it is broken")

    monkeypatch.setitem(ATTEMPTS, "matrix", break_)
    empty.run([0, 2], KINDS, math.inf)
    assert empty.failed
    out = capfd.readouterr().out
    first = re.search(r"FAILED trial (0|2) \(matrix\): it is broken\nrepeat .*: make torture SEED=5 TRIAL=\1\n", out)
    assert first  # two trials run at once, and either may end first
    assert f"FAILED trial {2 - int(first[1])} (matrix), as before: it is broken" in out
    assert [line.split()[:5] for line in empty.summary() if "matrix" in line] == [
        ["matrix", "2", "trials", "2", "failures"]
    ]
    assert (empty.place.root / "trial-0" / "failure.txt").read_text() == "it is broken"


def test_an_error_of_the_campaign_itself_is_a_failure(empty, monkeypatch, capfd):
    monkeypatch.setitem(ATTEMPTS, "matrix", lambda place, trial: 1 / 0)
    empty.run([0], KINDS, math.inf)
    assert empty.failed
    assert "the campaign itself failed: ZeroDivisionError" in capfd.readouterr().out


@pytest.mark.parametrize(("file", "before"), [("/usr/lib/runpy.py", True), (cli.__file__, False)])
def test_a_traceback_is_pythons_own_only_before_the_first_line_of_gptlab(file, before):
    error = f'Traceback (most recent call last):\n  File "{file}", line 1, in main\nKeyboardInterrupt\n'
    assert ended_before_first_line(Outcome(("list",), 130, "", error)) is before
    assert not ended_before_first_line(Outcome(("list",), 1, "", error.replace("KeyboardInterrupt", "ValueError")))


def test_a_trial_follows_from_seed_and_number(tmp_path):
    draws = [Trial(seed, number, 0, tmp_path).random().random() for seed in (0, 1) for number in (0, 1)]
    assert len(set(draws)) == 4
    assert draws[0] == Trial(0, 0, 0, tmp_path).random().random()
    for kind in KINDS:
        assert [turn_of(number) for number in range(100) if kind_of(number) == kind][:4] == [0, 1, 2, 3]
    assert set(ROUND) == set(KINDS) == set(ATTEMPTS)


def test_every_command_is_in_the_matrix():
    commands = set(typer.main.get_command(cli.app).commands)
    assert {words[0] for words in matrix.COMMANDS.values()} == commands - {"dashboard", "decide", "sweep"} | {REPORT}
