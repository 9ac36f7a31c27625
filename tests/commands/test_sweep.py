"""`gptlab sweep`: the runs of a sweep in processes of their own."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as RichConsole

from gptlab import cli
from gptlab.checkpoints.manifest import list_checkpoints
from gptlab.commands import sweep_plan
from gptlab.commands.sweep import DryRun, Options, run_sweep, threads_per_job
from gptlab.commands.sweep_live import View
from gptlab.commands.sweep_plan import Job, SweepPlan, plan_sweep
from gptlab.commands.sweep_processes import Child, Ended, run_jobs
from gptlab.commands.sweep_time import Speed, seconds_per_step, total_seconds
from gptlab.commands.sweep_view import render
from gptlab.errors import BadInputError
from gptlab.terminal.console import Console
from gptlab.tracking.run import all_runs, find_run

ROOT = Path(cli.__file__).parents[1]
SWEEPS = """from experiments.micro import micro
from gptlab.sweeps import Sweep, grid
hot = {"train.learning_rate": 1e30, "train.grad_clip": 0}
points = [micro.with_changes(hot), micro, *grid(micro, {"train.learning_rate": [1e-3]})]
rates = Sweep("rates", why="Which?", runs=points)
"""


@pytest.fixture
def define(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`define("…")` adds a file with sweeps to a project that has the experiment `micro`."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def write(source: str = SWEEPS) -> None:
        (project / "experiments" / "sweeps.py").write_text(source)

    return write


def of_micro(expression: str, seeds: str = "(0,)") -> str:
    return (
        "from experiments.micro import micro\nfrom gptlab.sweeps import Sweep, grid\n"
        f"s = Sweep('s', why='?', runs={expression}, seeds={seeds})\n"
    )


# --- the plan ---


def test_every_point_has_its_first_seed_before_any_has_its_second(define, micro):
    define(of_micro("grid(micro, {'train.learning_rate': [1e-3, 1e-2]})", seeds="[4, 2]"))
    planned = plan_sweep(["s"], None, {})
    order = [(job.seed, job.point.experiment.train.learning_rate) for job in planned.jobs]
    assert order == [(4, 1e-3), (4, 1e-2), (2, 1e-3), (2, 1e-2)]
    assert [job.point.varied for job in planned.jobs[:2]] == [{"train.learning_rate": lr} for lr in (1e-3, 1e-2)]
    assert [job.seed for job in plan_sweep(["s"], [7], {}).jobs] == [7, 7]


def test_points_are_the_runs_that_exist(define, micro, train):
    define(of_micro("grid(micro, {'train.learning_rate': [1e-3, 1e-2]})"))
    run = train(micro, steps=2).run
    new, existing = plan_sweep(["s"], None, {"train.steps": 2}).jobs
    assert (existing.run_id, existing.status, existing.step, existing.is_done) == (run.id, "complete", 2, True)
    assert (new.status, new.is_done) == ("new", False)
    assert not plan_sweep(["s"], None, {"train.steps": 3}).jobs[1].is_done, "more steps extend it"


@pytest.mark.parametrize(
    "changes",
    [
        {"train.betas": (0.5, 0.75)},
        {"train.schedule": "cosine", "train.horizon": 9},
        {"model.bias": False, "model.activation": "relu"},
        {"train.learning_rate": 0.1 + 0.2, "train.keep_steps": (1, 2)},
        {"train.prompt": "a = b, 'c'", "train.steps": 7},
    ],
)
def test_the_process_of_a_run_is_told_its_point_exactly(micro, changes):
    variant = micro.with_changes(changes)
    name, *words = sweep_plan._arguments(variant, {"micro": micro}, "s")
    assert (name, words[::2]) == ("micro", ["--set"] * len(changes))
    assert micro.with_changes(sweep_plan.parse_settings(words[1::2])) == variant


@pytest.mark.parametrize(
    ("source", "names", "answer"),
    [
        (of_micro("[micro, micro]"), ["s"], "s: points 1 and 2 are the same run, micro-"),
        (
            of_micro("grid(micro, {'train.log_every': [5, 10]})"),
            ["s"],
            "they differ only in train.log_every (5 and 10), which is not part of the id",
        ),
        (
            of_micro("grid(micro, {'train.precision': ['auto', 'float32']})"),
            ["s"],
            "they differ only in train.precision (auto and float32)",
        ),
        (of_micro("[micro.vary('other', why='?')]"), ["s"], "s varies 'other', which is no experiment of this project"),
        (of_micro("[micro]"), ["s", "micro"], "give one sweep or several experiments, not s, micro"),
        (of_micro("[micro]"), ["micro", "micro"], "experiment micro is named twice"),
        (of_micro("[micro]"), ["mikro"], "there is no sweep or experiment 'mikro'; did you mean 'micro'?"),
        (of_micro("grid(micro, {'data.text': ['no.txt']})"), ["s"], "there is no file 'no.txt'"),
    ],
)
def test_bad_input_is_one_clear_line_before_anything_starts(define, source, names, answer):
    define(source)
    with pytest.raises(BadInputError) as raised:
        plan_sweep(names, None, {})
    assert answer in str(raised.value)
    assert "\n" not in str(raised.value)
    assert all_runs() == []


def test_a_setting_that_replaces_what_is_varied_is_an_error(define):
    define(of_micro("grid(micro, {'train.learning_rate': [1e-3, 1e-2]})"))
    with pytest.raises(BadInputError, match="all fields are equal; vary other values, or --set a key that is not"):
        plan_sweep(["s"], None, {"train.learning_rate": 1e-4})


def test_a_long_name_still_has_a_tag_of_its_own():
    one, other = (SweepPlan("+".join([*"abcdefghijklmnopqrstuvwxyzabcdefghij", last]), "?", [], []) for last in "xy")
    assert len(one.tag) == len(other.tag) == 64
    assert one.tag != other.tag
    assert SweepPlan("rates", "?", [], []).tag == "sweep:rates"


def test_experiments_are_a_sweep_with_seed_0_or_those_given(define):
    planned = plan_sweep(["micro"], [0, 1], {"train.steps": 3})
    assert (planned.name, [job.seed for job in planned.jobs]) == ("micro", [0, 1])
    assert planned.jobs[1].point.arguments == ["micro", "--set", "train.steps=3"]
    assert [job.seed for job in plan_sweep(["micro"], None, {}).jobs] == [0]


# --- time ---


@given(st.lists(st.floats(0, 1e6), max_size=20), st.integers(1, 5))
def test_jobs_take_no_less_than_a_share_each_and_no_more_than_one_after_the_other(durations, at_once):
    total = total_seconds(durations, at_once)
    assert total >= max(max(durations, default=0), sum(durations) / at_once) * (1 - 1e-9)
    assert total <= sum(durations) * (1 + 1e-9)
    assert total_seconds(durations, 1) == pytest.approx(sum(durations))


def test_time_is_estimated_from_runs_of_the_same_shape_best_with_the_same_threads(define, micro, train, capfd):
    define(of_micro("grid(micro, {'train.learning_rate': [1e-3, 1e-2]})"))
    assert DryRun(plan_sweep(["s"], None, {}), Options()).document()["seconds"] is None
    train(micro)
    planned = plan_sweep(["s"], range(3), {})
    document = DryRun(planned, Options()).document()
    assert document["seconds"] == pytest.approx(5 * find_run("micro").history().last("elapsed_s"))
    capfd.readouterr()
    DryRun(planned, Options()).render(Console())
    out = capfd.readouterr().out
    assert f"{find_run('micro').id}  0.01              0  complete  40 of 40        –" in out
    assert "5 of 6 runs would run, 1 at once; about " in out
    assert "from 1 run of the same shape" in out
    assert len(all_runs()) == 1, "nothing has run"
    job = planned.jobs[0]
    shape = (micro.model, 2, 16, "adamw", "float32")
    speeds = [Speed(shape, "cpu", 1, 9.0), Speed(shape, "cpu", 2, 5.0), Speed((), "cpu", 2, 1.0)]
    assert seconds_per_step(job, 2, speeds) == 5.0
    assert seconds_per_step(job, 4, speeds) == 7.0
    assert seconds_per_step(job, 4, [Speed(shape, "H100", 2, 5.0)]) is None


@pytest.mark.parametrize(("jobs", "own", "expected"), [(1, "", 8), (3, "", 2), (99, "", 1), (3, "8", 8)])
def test_jobs_share_the_threads_unless_the_environment_says_how_many(monkeypatch, jobs, own, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr("gptlab.commands.sweep.limit_threads", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", own)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert threads_per_job(jobs) == expected


# --- the table ---


def test_the_table_shows_every_run_or_those_in_training_and_when_all_will_be_done(define, micro, train):
    define()
    train(micro)
    planned = plan_sweep(["micro"], range(20), {})
    (first, *_, last), speed = planned.jobs, Speed((micro.model, 2, 16, "adamw", "float32"), "cpu", 1, 10.0)
    assert drawn(planned, [speed], 40, last) == (
        [f"{job.run_id:<18}  {job.seed:>4}  {'complete' if job is first else 'running' if job is last else 'waiting'}"
         for job in planned.jobs],
        "1 of 20 runs · ETA 1 h 6 min",
    )  # fmt: skip
    rows, summary = drawn(planned, [speed], 12, last)
    assert rows[0].startswith(last.run_id), "a run in training is always shown"
    assert (len(rows), summary) == (6, "1 of 20 runs · ETA 1 h 6 min · 14 runs not shown")


def drawn(planned: SweepPlan, speeds: list[Speed], height: int, running: Job) -> tuple[list[str], str]:
    """The rows of the live table without its last two columns, and the line below, with two processes at once."""
    console, file = Console(), io.StringIO()
    console.rich = RichConsole(file=file, force_terminal=True, color_system=None, width=100, height=height)
    with View(planned, {job.run_id: 1 for job in planned.jobs}, 2, speeds, console) as view:
        with tempfile.TemporaryFile() as errors:
            view.started(Child(running, 1, None, errors))  # type: ignore[arg-type]
        view.tick([], [])
    lines = [re.sub("\x1b[^a-zA-Z]*[a-zA-Z]", "", line).rstrip() for line in file.getvalue().splitlines()]
    end = next(i for i, line in enumerate(lines) if " runs · ETA " in line)
    return [re.sub(r" +\d+ of 40 .*", "", line).rstrip() for line in lines[1:end]], lines[end]


# --- the processes ---


class Log:
    """An observer that remembers, and calls a function at each tick."""

    def __init__(self, at_tick: Callable[[list[Child]], None] = lambda running: None) -> None:
        self.events: list[str] = []
        self.at_once = 0
        self._at_tick = at_tick

    def started(self, child: Child) -> None:
        self.events.append("started")

    def ended(self, ended: Ended) -> None:
        self.events.append(f"ended {ended.exit_code}")

    def stopping(self, received: signal.Signals, running: list[Child]) -> None:
        self.events.append(f"stopping {received.name} {len(running)}")

    def tick(self, running: list[Child], waiting: object) -> None:
        self.at_once = max(self.at_once, len(running))
        self._at_tick(running)


class Scripts:
    """`start` for `run_jobs`: a job is a Python script; a script prints "ready" once signals do what it says."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, script: str) -> Child:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - the child closes it
        source = f"import signal, sys, time\n{script}"
        process = subprocess.Popen(
            [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=errors, process_group=0
        )
        if "ready" in script:
            assert process.stdout.readline() == b"ready\n"
        self.processes.append(process)
        job = Job(None, 0, Path("the-run"), "new", 0, None)  # type: ignore[arg-type]
        return Child(job, 1, process, errors)


SAVES = "signal.signal(signal.SIGTERM, lambda n, f: sys.exit(143))\nprint('ready', flush=True)\ntime.sleep(60)"
HANGS = "signal.signal(signal.SIGTERM, lambda n, f: signal.signal(n, signal.SIG_DFL))\nprint('ready', flush=True)\n"
HANGS += "for _ in range(60): time.sleep(1)"


def signal_once(*numbers: signal.Signals) -> Callable[[list[Child]], None]:
    """Send this process one signal per tick."""
    left = list(numbers)

    def send(running: list[Child]) -> None:
        if left:
            os.kill(os.getpid(), left.pop(0))

    return send


def test_so_many_processes_run_at_once_and_a_failure_stops_none():
    log, scripts = Log(), Scripts()
    failing = "sys.exit('error: the-run diverged: the loss is nan')"
    ended, stopped_by = run_jobs([failing, "pass", "time.sleep(0.2)", "pass"], 2, scripts, log)
    assert stopped_by is None
    assert sorted(each.exit_code for each in ended) == [0, 0, 0, 1]
    assert [each.error for each in ended if each.error] == ["the loss is nan"]
    assert log.at_once == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_all_processes_save_and_starts_no_other(number):
    log = Log(signal_once(number))
    ended, stopped_by = run_jobs([SAVES, SAVES, SAVES], 2, Scripts(), log)
    assert stopped_by == number
    assert [each.exit_code for each in ended] == [143, 143]
    assert log.events.count(f"stopping {number.name} 2") == 1
    assert log.events.count("started") == 2


def test_a_second_ctrl_c_ends_processes_that_are_saving():
    log = Log(signal_once(signal.SIGINT, signal.SIGINT))
    ended, _ = run_jobs([HANGS], 1, Scripts(), log)
    assert [(each.exit_code, each.error) for each in ended] == [(143, "the process was ended by SIGTERM")]


def test_after_a_bug_no_process_is_left():
    def fail(running: list[Child]) -> None:
        raise AssertionError("a bug")

    scripts = Scripts()
    with pytest.raises(AssertionError, match="a bug"):
        run_jobs([SAVES, SAVES], 2, scripts, Log(fail))
    assert [process.poll() for process in scripts.processes] == [143, 143]


# --- all of it ---


@pytest.mark.slow
def test_a_sweep_skips_resumes_and_goes_on_after_a_diverged_run(define, micro, train, signal_at_step, capfd):
    """Real processes: a new run that diverges, then one to resume; a third is complete."""
    define()
    complete = train(micro).run
    torch.set_num_threads(2)
    stopped = train(micro.with_changes({"train.learning_rate": 1e-3}), hooks=signal_at_step(15)).run
    torch.set_num_threads(1)
    planned = plan_sweep(["rates"], None, {})
    results = run_sweep(planned, Options(wandb="off", tags=("mine",)), Console())
    assert [each.status for each in results.results] == ["diverged", "complete", "complete"]
    assert results.exit_code == 3
    assert len(complete.history().starts) == 1, "a complete run is left as it is"
    starts = stopped.history().starts
    assert [start["threads"] for start in starts] == [2, 2], "a run keeps its number of threads"
    assert starts[1]["from_step"] == 15
    diverged = find_run(planned.jobs[0].run_id)
    assert diverged.history().starts[0]["threads"] == 1
    for run in (diverged, stopped):
        assert run.history().starts[-1]["tags"] == ["sweep:rates", "mine"]
    out = capfd.readouterr().out
    assert f"1 run to resume keeps its number of threads: {stopped.id} 2" in out
    assert f"{diverged.id} starts · learning_rate 1e+30 · grad_clip 0 · seed 0" in out
    assert f"{stopped.id} resumes from step 15" in out
    render(results, Console())
    out = capfd.readouterr().out
    assert "rates: 3 runs · 2 complete · 1 diverged" in out
    assert f"diverged: {diverged.id} (learning_rate 1e+30 · grad_clip 0 · seed 0): after step 1 the loss is " in out
    assert all(f"{run.history().last('val/loss'):.4f}" in out for run in (complete, stopped))

    again = run_sweep(plan_sweep(["rates"], None, {}), Options(wandb="off"), Console())
    assert sum(len(run.history().starts) for run in all_runs()) == 4, "nothing was started"
    assert again.exit_code == 3
    assert " starts" not in capfd.readouterr().out
    assert "it diverged at step 1 before" in again.failures()[0].document()["error"]


@pytest.mark.slow
def test_ctrl_c_saves_all_runs_of_a_sweep(define, micro):
    """A real sweep of two processes at once, and a real SIGINT."""
    define()
    settings = ["--wandb", "off", "--json", "--steps", "100000", "--set", "train.log_every=1"]
    arguments = [sys.executable, "-m", "gptlab", "sweep", "micro", "--seeds", "0-2", "--jobs", "2", *settings]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(begun()) < 2 and process.poll() is None:
        time.sleep(0.1)  # there is no event for a row of metrics
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole process group
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "SIGINT: 2 runs saving, then stopping" in err
    document = json.loads(out)
    assert sorted(run["status"] for run in document["runs"]) == ["interrupted", "interrupted", "not started"]
    assert not any("error" in run for run in document["runs"])
    for run in all_runs():
        history = run.history()
        assert history.status == "interrupted", "no process is left"
        assert list_checkpoints(run.directory)[-1].step == history.step > 0


def begun() -> list[Path]:
    """The metrics of runs that have trained a step."""
    return [
        path for path in Path(os.environ["GPTLAB_RUNS"]).glob("*/metrics.jsonl") if path.read_bytes().count(b"\n") > 1
    ]
