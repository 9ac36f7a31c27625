"""`gptlab sweep --slurm` with programs that answer like those of Slurm; see tests/slurm for a real cluster."""

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptlab import cli
from gptlab.commands.run_jobs import newest_jobs
from gptlab.distributed import nodes
from gptlab.limits import THREAD_VARIABLES
from gptlab.slurm import job as slurm_job
from gptlab.slurm.job import MAX_REQUEUES, RunJob
from gptlab.slurm.queue import states
from gptlab.slurm.records import Job, JobRecord, add_event, new_folder, read_events, write_records

Fake = Callable[..., Path]
Gptlab = Callable[..., str]
QUEUED = "12|0|PENDING|Priority|0|\n12|1|RUNNING|None|0|"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """`fake("squeue", "output")` puts a program on PATH, and returns the log of its calls. All others fail."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name in ("sbatch", "srun", "squeue", "sacct", "scontrol"):
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)

    def make(name: str, output: str = "", error: str = "", code: int = 0) -> Path:
        calls = tmp_path / f"{name}.calls"
        (tmp_path / f"{name}.out").write_text(f"{output}\n" if output else "")
        (tmp_path / f"{name}.err").write_text(f"{error}\n" if error else "")
        answer = f"cat {tmp_path}/{name}.out; cat {tmp_path}/{name}.err >&2; exit {code}"
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{answer}\n')
        return calls

    return make


@pytest.fixture
def gptlab(project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Gptlab:
    """`gptlab("runs")` returns what a command prints; with a code, the error of a command that ends with it."""
    monkeypatch.setenv("WANDB_MODE", "offline")

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["gptlab", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert (ended.value.code or 0) == code, err
        return err if code else out

    return run


def submit(gptlab: Gptlab, fake: Fake, *options: str) -> str:
    fake("srun")
    fake("sbatch", "Submitted batch job 12")
    return gptlab("sweep", "micro", "--seeds", "0,1", "--slurm", *options)


def statuses(gptlab: Gptlab, *options: str) -> list[str]:
    plan = json.loads(gptlab("sweep", "micro", "--seeds", "0,1", "--slurm", "--dry-run", "--json", *options))
    return [run["status"] for run in plan["runs"]]


@pytest.fixture
def a_job(project: Path) -> Callable[..., Job]:
    """`a_job("start", …)` records a job to which these events have happened."""

    def make(*events: str, name: str = "12_0", **facts: Any) -> Job:
        folder = new_folder("s")
        record = JobRecord(job=name, key="k", name="micro", label="seed 0", steps=5, sweep="s", tags=())
        write_records(folder, [record])
        for event in events:
            add_event(folder, name, event, **facts)
        return Job(folder, record)

    return make


# --- submission ---


def test_one_array_asks_for_what_the_site_and_the_user_say(gptlab, fake, project):
    (project / "pyproject.toml").write_text(
        "[tool.gptlab.slurm]\npartition = 'site'\ncpus = 4\ntime = 02:00:00\nsetup = ['module load cuda']\n"
        "options = {nodelist = 'n1', exclusive = true}\n"
    )
    out = submit(gptlab, fake, "--partition", "mine", "--memory", "2G", "--array-parallelism", "1", "--tag", "t")
    assert "submitted   2 runs as job 12_[0-1]" in out
    assert "resolved on the node" in out
    (script,) = (project.parent / "runs").glob(".slurm/*/12_submission.sh")
    lines = script.read_text().splitlines()
    expected = ["array=0-1%1", "partition=mine", "cpus-per-task=4", "time=02:00:00", "mem=2G", "nodelist=n1"]
    assert {f"#SBATCH --{each}" for each in expected} <= set(lines)
    assert {"#SBATCH --exclusive", "#SBATCH --requeue", "#SBATCH --signal=USR2@90", "module load cuda"} <= set(lines)
    assert "--cpus-per-task=4" in lines[-1], "since Slurm 22.05, srun must be told, too"
    assert [state.job.record.tags for state in newest_jobs()] == [("sweep:micro", "t")] * 2


def test_a_machine_without_a_gpu_submits_runs_for_one(gptlab, fake, project):
    out = submit(gptlab, fake, "--device", "cuda", "--gpus", "1")
    assert "options     --gpus-per-node=1" in out
    assert [state.job.run for state in newest_jobs()] == [None, None], "the node resolves their ids"


def test_several_nodes_are_asked_for_and_a_process_for_each_gpu(gptlab, fake, project):
    out = submit(gptlab, fake, "--nodes", "2", "--gpus", "1", "--shard")
    assert "processes   2 for each run: 1 on each of 2 nodes" in out
    (script,) = (project.parent / "runs").glob(".slurm/*/12_submission.sh")
    asked = set(script.read_text().splitlines())
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --gpus-per-node=1"} <= asked


def test_the_nodes_of_a_job_agree_on_the_place_where_they_meet(tmp_path, monkeypatch):
    for name, value in {"NTASKS": "2", "JOB_ID": "47", "LAUNCH_NODE_IPADDR": "10.0.0.1", "CPUS_PER_TASK": "8"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    job = RunJob(("run", "micro"), tmp_path, tmp_path, tmp_path, processes=4)
    assert job.command()[-2:] == ["--nproc", "4"]
    for number in (0, 1):
        monkeypatch.setenv("SLURM_PROCID", str(number))
        environment = job.environment()
        assert environment["OMP_NUM_THREADS"] == "2", "the processes share the node"
        monkeypatch.setenv(nodes.VARIABLE, environment[nodes.VARIABLE])
        assert nodes.nodes() == nodes.Nodes(2, number, "10.0.0.1:15047")


def test_only_the_first_node_decides_what_becomes_of_a_job(tmp_path, monkeypatch):
    monkeypatch.setattr(RunJob, "command", lambda self: ["sh", "-c", "exit 3"])
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    codes = []
    for number in (1, 0):
        monkeypatch.setenv("SLURM_PROCID", str(number))
        with pytest.raises(SystemExit) as ended:
            RunJob((), tmp_path, tmp_path, tmp_path)()
        codes.append((ended.value.code, [each.event for each in read_events(tmp_path, "12")]))
    assert codes == [(3, []), (3, ["start", "end"])]


def test_without_a_time_the_partition_has_its_own(gptlab, fake, project):
    submit(gptlab, fake)
    (script,) = (project.parent / "runs").glob(".slurm/*/12_submission.sh")
    assert "--time" not in script.read_text()


def test_what_is_queued_is_not_submitted_again(gptlab, fake):
    submit(gptlab, fake)
    fake("squeue", QUEUED)
    calls = fake("sbatch", "Submitted batch job 13")
    assert "12_0 pending, 12_1 running; not submitted again" in gptlab("sweep", "micro", "--seeds", "0,1", "--slurm")
    assert statuses(gptlab, "--steps", "80") == ["pending", "running"], "more steps are the same run"
    assert statuses(gptlab, "--set", "train.learning_rate=1") == ["to submit"] * 2
    fake("squeue", code=1)
    assert statuses(gptlab) == ["unknown"] * 2, "it may still be queued"
    assert "micro: 3 runs, 2 unknown" in gptlab("sweep", "micro", "--seeds", "0-2", "--slurm")
    assert calls.exists()
    assert [state.job.record.job for state in newest_jobs()] == ["12_0", "12_1", "13"]


def test_a_run_is_complete_if_it_is_the_one_that_the_node_trained(gptlab, fake, a_job, micro, train):
    here = train(micro, steps=3).run
    on_a_gpu = train(micro.with_changes({"train.precision": "bfloat16"}), steps=3).run
    options = ("--steps", "3")
    assert statuses(gptlab, *options)[0] == "to submit", "the node may resolve another precision than this machine"
    assert statuses(gptlab, *options, "--device", "cpu")[0] == "complete"
    submit(gptlab, fake, *options)
    (first, _) = newest_jobs()
    add_event(first.job.folder, first.job.record.job, "run", run=on_a_gpu.id)
    add_event(first.job.folder, first.job.record.job, "end", exit_code=0)
    fake("squeue", "12|1|RUNNING|None|0|")
    plan = json.loads(gptlab("sweep", "micro", "--seeds", "0,1", "--slurm", "--dry-run", "--json", *options))
    assert [(run["status"], run["run"]) for run in plan["runs"]] == [("complete", on_a_gpu.id), ("running", None)]
    assert here.id != on_a_gpu.id
    assert statuses(gptlab, "--steps", "4")[0] == "to submit", "more steps extend it"


# --- what cannot be submitted ---


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        ("sbatch: error: invalid partition: x\nsbatch: error: Batch job submission failed", "x; Batch job"),
        ("sbatch: error: Batch job submission failed: Invalid job array specification", "MaxArraySize may be smaller"),
    ],
)
def test_what_sbatch_says_is_one_line_and_leaves_nothing(gptlab, fake, project, error, answer):
    fake("srun")
    fake("sbatch", error=error, code=1)
    err = gptlab("sweep", "micro", "--slurm", code=2)
    assert (err.count("\n"), answer in err) == (1, True), err
    assert not list((project.parent / "runs").glob(".slurm/*"))


@pytest.mark.parametrize(
    ("table", "answer"),
    [
        ("slurm = {partitio = 'x'}", "partitio: there is no such field; did you mean 'partition'?"),
        ("slurm = {gpus = 'two'}", "gpus: input should be a valid integer, not 'two'"),
        ("slurm = {gpus = -1}", "gpus: input should be greater than or equal to 0, not -1"),
        ("slurm = {time = true}", "time: input should be a valid string, not True"),
        ("slurm = {setup = 'module load cuda'}", "setup: input should be a valid list"),
        ("slurm = {options = {array = '0-9'}}", "options.array is set by gptlab itself; leave it out"),
        ("slurm = 'gpu'", "[tool.gptlab] in pyproject.toml: slurm must be a table, not 'gpu'"),
    ],
)
def test_a_wrong_site_default_is_one_line(gptlab, project, table, answer):
    (project / "pyproject.toml").write_text(f"[tool.gptlab]\n{table}\n")
    err = gptlab("sweep", "micro", "--slurm", "--dry-run", code=2)
    assert (err.count("\n"), answer in err, "pyproject.toml" in err) == (1, True, True), err


def test_a_machine_without_slurm_is_named_and_can_still_list_runs(gptlab, tmp_path, monkeypatch, a_job):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no sbatch on this machine" in gptlab("sweep", "micro", "--slurm", code=2)
    a_job()
    assert "12_0 unknown" in gptlab("runs")


# --- the state of jobs ---


def test_slurm_is_not_asked_without_open_jobs(gptlab, fake, a_job):
    calls = fake("squeue")
    gptlab("runs")
    a_job("start", "end", exit_code=0)
    gptlab("runs")
    assert not calls.exists()


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("PENDING|Resources|0", "pending"),
        ("PENDING|BeginTime|2", "requeued"),
        ("RUNNING|None|1", "running"),
        ("SIGNALING|None|0", "running"),
        ("COMPLETING|None|0", "running"),
        ("TIMEOUT|TimeLimit|0", "time limit"),
        ("CANCELLED|None|0", "cancelled"),
        ("OUT_OF_MEMORY|OutOfMemory|0", "out of memory"),
        ("NODE_FAIL|NodeDown|0", "node failed"),
    ],
)
def test_the_words_of_slurm_are_those_of_the_list(fake, a_job, state, word):
    fake("squeue", f"12|0|{state}|")
    job = a_job("start")
    assert [each.word for each in newest_jobs()] == [word]
    newest_jobs()
    fake("squeue", "")
    kept = [each.word for each in newest_jobs()]
    assert kept == [word if word not in {"pending", "requeued", "running"} else "gone"], (
        "Slurm forgets, the list does not"
    )
    assert len(read_events(job.folder, "12_0")) == 2


def test_a_run_shows_its_job_where_that_says_more(fake, a_job, gptlab, make_run):
    fake("squeue", "12|0|RUNNING|None|0|")
    run, job = make_run(outcome="interrupted"), a_job("start")
    assert "jobs of Slurm without a run so far" in gptlab("runs")
    assert "jobs of Slurm" not in gptlab("runs", "--name", "other*")
    add_event(job.folder, "12_0", "run", run=run.id)
    listed = gptlab("runs")
    assert re.search(rf"{run.id} +interrupted +12_0 running", listed)
    assert "jobs of Slurm" not in listed
    assert json.loads(gptlab("runs", "--json"))[0]["slurm"] == {"job": "12_0", "state": "running", "reason": ""}
    add_event(job.folder, "12_0", "end", exit_code=1, reason="the disk is full")
    fake("squeue")
    assert "job 12_0 failed: the disk is full; log: " in gptlab("runs")
    number = run.start_attempt(steps=10)
    run.end_attempt(number, 10, "complete")
    assert "12_0" not in gptlab("runs"), "the run was completed without the job"


def test_what_slurm_says_about_an_end_is_recorded_once(fake, a_job):
    fake("squeue", "12|0|TIMEOUT|TimeLimit|0|\n13|0|RUNNING|None|0|")
    ended, running = a_job("start"), a_job("start", name="13_0")
    for _ in range(3):
        found = states([Job(each.folder, each.record) for each in (ended, running)])
        assert [each.word for each in found] == ["time limit", "running"]
    assert [event.event for event in read_events(ended.folder, "12_0")] == ["start", "final"]


def test_accounting_knows_what_the_queue_has_forgotten(fake, a_job):
    fake("squeue", error="slurm_load_jobs error: Invalid job id specified", code=1)
    fake("sacct", "12_0|CANCELLED by 1000\n12_0.0|CANCELLED")
    a_job("start")
    assert [each.word for each in newest_jobs()] == ["cancelled"]


def test_the_reason_of_a_kill_is_found_in_the_log(fake, a_job, gptlab):
    fake("squeue", "12|0|FAILED|NonZeroExitCode|0|")
    job = a_job("start")
    job.log.write_text(
        "slurmstepd-n1: error: StepId=5.0 exceeded memory limit (313 > 104), being killed\n"
        "srun: error: n1: task 0: Killed\n"
    )
    out = gptlab("runs")
    assert re.search(
        r"job 12_0 out of memory: StepId=5.0 exceeded memory limit \(313 > 104\), being killed; log: ", out
    )


# --- the job on the node ---


@pytest.fixture
def on_node(fake, tmp_path, monkeypatch) -> Callable[..., tuple[int, list[dict[str, Any]]]]:
    """`on_node("command of a shell", state="RUNNING")` runs a job, and returns its exit code and its last event."""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)

    def run(script: str, state: str = "RUNNING", preempted: str = "None") -> tuple[int, Any]:
        monkeypatch.setattr(RunJob, "command", lambda self: ["sh", "-c", script])
        fake("scontrol", f"JobState={state} PreemptTime={preempted}")
        with pytest.raises(SystemExit) as ended:
            RunJob((), tmp_path, tmp_path, tmp_path)()
        return ended.value.code, read_events(tmp_path, "12")[-1]

    return run


@pytest.mark.parametrize(
    ("received", "state", "preempted", "event"),
    [
        ("USR2", "RUNNING", "None", "requeue"),  # the time limit is near
        ("TERM", "RUNNING", "2026-01-01T00:00:00", "requeue"),
        ("TERM", "COMPLETING", "None", "stop"),  # somebody cancels or requeues it
        ("TERM", "RUNNING", "None", "stop"),
    ],
)
def test_a_job_is_requeued_if_slurm_wants_its_node(on_node, received, state, preempted, event):
    code, last = on_node(f"kill -{received} $PPID; sleep 0.1; exit 143", state, preempted)
    assert (code, last.event) == (143, event)


def test_a_job_that_makes_no_step_is_not_requeued_for_ever(on_node):
    events = [on_node("kill -USR2 $PPID; sleep 0.1; exit 140")[1].event for _ in range(MAX_REQUEUES + 1)]
    assert events == ["requeue"] * MAX_REQUEUES + ["end"]


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137)])
def test_a_job_has_the_exit_code_of_its_run(on_node, script, code):
    assert on_node(script)[0] == code
    assert on_node(script)[1].exit_code == code


def test_the_error_of_a_run_is_the_reason_of_its_job(on_node, tmp_path):
    (tmp_path / "12_0_log.out").write_text("submitit INFO\nerror: there is no file 'x.txt'\n")
    assert on_node("exit 2")[1].reason == "there is no file 'x.txt'"


def test_a_second_sigterm_ends_no_run_of_slurm(monkeypatch):
    ended = []
    monkeypatch.setattr(slurm_job.StopSignals, "insist", lambda self, number: ended.append(number))
    for variable, expected in (("SLURM_JOB_ID", []), ("OTHER", [signal.SIGTERM])):
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        monkeypatch.setenv(variable, "12")
        with slurm_job.StopSignals() as signals:
            for _ in range(2):
                signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        assert ended == expected
