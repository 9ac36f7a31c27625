"""`gptlab sweep --slurm` with a real Slurm: jobs are queued, cancelled, requeued, pre-empted and killed."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import eventually

from gptlab import cli
from gptlab.checkpoints.manifest import list_checkpoints
from gptlab.commands.run_jobs import newest_jobs
from gptlab.slurm.queue import JobState
from gptlab.tracking.run import all_runs, find_run

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ROOT = Path(cli.__file__).parents[1]
SWEEPS = """from experiments.micro import micro
from gptlab.sweeps import Sweep, grid
hot = {"train.learning_rate": 1e30, "train.grad_clip": 0}
short = {"train.steps": 5, "train.checkpoint_every": 5}
ends = Sweep("ends", why="?", runs=[micro.with_changes(short), micro.with_changes(hot | short)])
long = {"train.steps": 10**8, "train.log_every": 50, "train.eval_every": 10**8, "train.checkpoint_every": 10**8}
shared = Sweep("shared", why="?", runs=[micro.with_changes({**long, "train.batch_size": 4})])
lasting = Sweep("lasting", why="?", runs=[micro.with_changes(long)], seeds=range(5))
"""

Gptlab = Callable[..., Any]


@pytest.fixture(autouse=True)
def sweeps(project: Path, monkeypatch: pytest.MonkeyPatch, cluster: None) -> None:
    """A project with sweeps whose runs end after some steps, or never."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("GPTLAB_RUNS", str(project.parent / "my runs"))
    (project / "experiments" / "sweeps.py").write_text(SWEEPS)


@pytest.fixture
def gptlab(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Gptlab:
    """`gptlab("runs")` returns what a command prints; with a code, the error of a command that ends with it."""

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["gptlab", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert (ended.value.code or 0) == code, err
        return err if code else out

    return run


def words() -> dict[str, str]:
    """Return the state of each job by the number of its task."""
    return {state.job.record.job.partition("_")[2]: state.word for state in newest_jobs()}


def job(task: int = 0) -> JobState:
    return next(state for state in newest_jobs() if state.job.record.job.endswith(f"_{task}"))


def steps_of(state: JobState) -> int:
    return find_run(state.job.run).history().step if state.job.run else 0


def has_saved(state: JobState) -> bool:
    run = find_run(state.job.run)
    return [each.step for each in list_checkpoints(run.directory)] == [run.history().step]


def test_jobs_train_the_runs_of_a_sweep_and_say_why_they_failed(gptlab):
    first = gptlab("sweep", "ends", "--slurm", "--wandb", "off", "--time", "5")
    assert re.search(r"submitted +2 runs as job \d+_\[0-1\]", first)
    again = gptlab("sweep", "ends", "--slurm", "--wandb", "off")
    assert re.search(r"in Slurm +\d+_0 (pending|running), \d+_1 (pending|running); not submitted again", again)
    assert "submitted  " not in again
    assert "jobs of Slurm without a run so far" in gptlab("runs")
    gptlab("sweep", "micro", "--slurm", "--wandb", "off", "--seeds", "7,8", "--memory", "60M")
    eventually(lambda: not any(state.is_open for state in newest_jobs()))

    by_sweep = {(state.job.record.sweep, state.job.record.job[-1]): state for state in newest_jobs()}
    assert {key: state.word for key, state in by_sweep.items()} == {
        ("ends", "0"): "complete",
        ("ends", "1"): "failed",
        ("micro", "0"): "out of memory",
        ("micro", "1"): "out of memory",
    }
    assert "diverged" in by_sweep["ends", "1"].reason
    assert "exceeded memory limit (" in by_sweep["micro", "0"].reason
    runs = {run.id: run for run in all_runs()}
    done = runs[by_sweep["ends", "0"].job.run]
    assert done.history().status == "complete"
    assert done.history().starts[-1]["tags"] == ["sweep:ends"]
    assert "step 5" in (done.directory / f"slurm-{by_sweep['ends', '0'].job.record.job}.log").read_text()
    listed = gptlab("runs")
    assert "out of memory: StepId=" in listed
    assert re.search(rf"{done.id} .* complete +5 ", listed), "a job that says no more than its run is not shown"
    plan = json.loads(gptlab("sweep", "ends", "--slurm", "--dry-run", "--json"))
    assert [run["status"] for run in plan["runs"]] == ["complete", "diverged"]
    assert plan["runs"][0]["run"] == done.id


def test_a_job_resumes_after_requeue_preemption_and_its_time_limit(gptlab, slurm, project, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    settings = "[tool.gptlab.slurm]\ntime = 5\ncpus = 1\n"
    (project / "pyproject.toml").write_text(settings)
    gptlab("sweep", "lasting", "--slurm", "--wandb", "off")
    eventually(lambda: all(steps_of(job(task)) > 0 for task in range(5)))
    assert words() == dict.fromkeys("01234", "running")

    slurm("scancel", job(3).job.record.job)
    slurm("scontrol", "requeue", job(0).job.record.job)
    eventually(lambda: job(3).word == "cancelled" and job(0).word == "requeued")
    assert " requeued (BeginTime)" in gptlab("runs")
    assert has_saved(job(3))
    slurm("scontrol", "update", f"JobId={job(1).job.record.job}", "TimeLimit=2")  # 90 s before the end is soon
    slurm("scontrol", "update", f"JobId={job(4).job.record.job}", "EndTime=now")

    eventually(lambda: any(event.event == "requeue" for event in job(1).job.events))
    slurm("sbatch", "--partition=urgent", "--ntasks=8", "--wrap=sleep 1", "--output=/dev/null")
    eventually(lambda: any(event.event == "requeue" for event in job(2).job.events))
    eventually(lambda: set(words().values()) == {"cancelled", "requeued", "time limit"})
    listed = gptlab("runs")
    assert re.search(r"job \d+_4 time limit: SIG\w+: saved and stopped; log: .*/slurm-\d+_4.log", listed)
    assert re.search(r"job \d+_3 cancelled: SIGTERM: saved and stopped", listed)
    assert has_saved(job(4))
    slurm("scontrol", "update", f"JobId={job(1).job.record.job}", "TimeLimit=5")
    for task in range(3):
        slurm("scontrol", "update", f"JobId={job(task).job.record.job}", "StartTime=now")  # not in two minutes
    for task in range(3):
        eventually(lambda task=task: len(find_run(job(task).job.run).history().starts) > 1)
        starts = find_run(job(task).job.run).history().starts
        assert starts[1]["from_step"] > 0, "it continues where it saved"
        assert starts[1]["threads"] == 1, "as many as the job has processors"
    slurm("scancel", job(0).job.record.job.partition("_")[0])
    eventually(lambda: not any(state.is_open for state in newest_jobs()))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--partition", "nope"], "Slurm refuses the jobs: invalid partition specified: nope; Batch job submission"),
        (["--time", "soon"], "Slurm refuses the jobs: Invalid --time specification"),
        (["--memory", "900G"], "Memory specification can not be satisfied"),
        (["--gpus", "1"], "Invalid generic resource (gres) specification"),
    ],
)
def test_what_slurm_refuses_is_one_line_with_its_reason(gptlab, project, options, reason):
    err = gptlab("sweep", "ends", "--slurm", "--wandb", "off", *options, code=2)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert reason in err
    assert not list((project.parent / "my runs").glob(".slurm/*")), "nothing is left of it"


def test_jobs_that_are_cancelled_in_the_queue_are_listed_without_a_run(gptlab, slurm):
    gptlab("sweep", "micro", "--slurm", "--wandb", "off", "--seeds", "0,1", "--partition", "main", "--memory", "7G")
    slurm("scancel", job().job.record.job.partition("_")[0])
    eventually(lambda: set(words().values()) == {"cancelled"})
    assert re.search(r"\d+_1 cancelled +micro +micro +seed 1", gptlab("runs"))
    planned = gptlab("sweep", "micro", "--slurm", "--seeds", "0,1", "--dry-run")
    assert "2 of 2 runs would be submitted" in planned


def test_two_nodes_train_one_run_together_and_resume_after_a_requeue(gptlab, slurm, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    options = ["--slurm", "--wandb", "off", "--partition", "pair", "--nodes", "2", "--nproc", "2", "--cpus", "2"]

    def last() -> JobState:
        return newest_jobs()[-1]

    submitted = gptlab("sweep", "shared", *options)
    assert re.search(r"processes +4 for each run: 2 on each of 2 nodes", submitted)
    eventually(lambda: steps_of(last()) > 0)
    slurm("scontrol", "requeue", last().job.record.job)
    eventually(lambda: last().word == "requeued")
    assert has_saved(last())
    slurm("scontrol", "update", f"JobId={last().job.record.job}", "StartTime=now")
    eventually(lambda: len(find_run(last().job.run).history().starts) > 1)
    first, second = find_run(last().job.run).history().starts
    assert (first["workers"], first["threads"]) == (4, 1)
    assert (second["workers"], second["from_step"] > 0) == (4, True)
    slurm("scancel", last().job.record.job)
    eventually(lambda: last().word == "cancelled")
    assert has_saved(last())
    assert [each.event for each in last().job.events].count("start") == 2, "one of the nodes records what happens"
