"""Whole commands in real processes, as a user runs them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import in_child

from gptlab import cli
from gptlab.checkpoints.manifest import MODEL, OPTIMIZER, checkpoint_directory
from gptlab.tracking.metrics import DETERMINISTIC, read_metrics
from gptlab.tracking.run import all_runs, find_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MICRO = {
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 8,
    "train.sequence_length": 16,
    "train.batch_size": 2,
    "train.log_every": 5,
    "train.checkpoint_every": 20,
    "data.val_windows": 4,
}
MAKE = ["make", "--no-print-directory", "-o", f"{sys.prefix}/.ready", f"VENV={sys.prefix}"]


def command(*arguments: object) -> list[str]:
    settings = [f"--set={key}={value}" for key, value in MICRO.items()]
    return [sys.executable, "-m", "gptlab", "run", "tiny", *settings, *map(str, arguments)]


@pytest.fixture
def succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """`succeed(command(…))` runs a command, as if alone, in a forked child that has imported everything."""

    def run(arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["gptlab", *arguments[3:]])
        monkeypatch.chdir(ROOT)
        end = in_child(cli.main, tmp_path)
        assert end.code == 0, end.err

    return run


def test_ctrl_c_saves_and_the_same_command_ends_with_the_bytes_of_an_uninterrupted_run(
    text_file, tmp_path, monkeypatch, succeed
):
    arguments = command("--text", text_file, "--steps", 60, "--wandb", "offline")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT)
    for line in process.stdout:
        if "step     15 ·" in line:
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process of the command
            break
    rest, _ = process.communicate()
    assert process.returncode == 130
    assert "was interrupted at step" in rest
    (run,) = all_runs()
    assert run.history().status == "interrupted"
    assert checkpoint_directory(run.directory, run.history().step).is_dir()

    subprocess.run(arguments, check=True, cwd=ROOT, capture_output=True)
    assert run.history().status == "complete"
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "undisturbed"))
    succeed([*arguments[:-1], "off"])
    undisturbed = find_run(run.id)
    assert undisturbed.directory != run.directory
    for name in (MODEL, OPTIMIZER):
        ours, theirs = (checkpoint_directory(r.directory, 60) / name for r in (run, undisturbed))
        assert ours.read_bytes() == theirs.read_bytes()
    ours, theirs = (
        [{key: row.get(key) for key in DETERMINISTIC} for row in read_metrics(r.directory)] for r in (run, undisturbed)
    )
    assert ours == theirs

    (segment,) = (run.directory / "wandb").glob("offline-run-*")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(segment)]
    records = subprocess.run(inspect, check=True, capture_output=True, text=True).stdout.splitlines()
    steps = [json.loads(line)["history"]["item"]["step"] for line in records if '"type":"history"' in line]
    assert steps == [row["step"] for row in read_metrics(run.directory)]


def test_sigterm_during_startup_does_not_prevent_the_next_start(text_file, succeed):
    arguments = command("--text", text_file, "--steps", 5, "--wandb", "off")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    process.stdout.readline()
    process.terminate()
    process.communicate()
    assert process.returncode in {-signal.SIGTERM, 128 + signal.SIGTERM}
    succeed(arguments)
    assert all_runs()[0].history().status == "complete"


MOUNT_WORKS = subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0 if shutil.which(
    "unshare"
) else False  # fmt: skip

FULL_DISK = """
set -u
mount -t tmpfs -o size=80m tmpfs "$GPTLAB_RUNS"
"$@" --steps 100000 > "$OUT/first.out" 2> "$OUT/first.err" &
while ! ls "$GPTLAB_RUNS"/*/checkpoints/step-00000020/manifest.json > "$OUT/seen" 2>&1; do sleep 0.2; done
head -c 100m /dev/zero > "$GPTLAB_RUNS/filler" 2> "$OUT/filler.err"
wait $!; echo $? > "$OUT/first.rc"
rm "$GPTLAB_RUNS/filler"
step=$(basename "$(ls -d "$GPTLAB_RUNS"/*/checkpoints/step-* | tail -1)" | sed 's/step-0*//')
"$@" --steps $((step + 5)) > "$OUT/second.out" 2> "$OUT/second.err"; echo $? > "$OUT/second.rc"
mount -o remount,ro "$GPTLAB_RUNS"
"$@" --steps $((step + 9)) > "$OUT/third.out" 2> "$OUT/third.err"; echo $? > "$OUT/third.rc"
"""


@pytest.mark.skipif(not MOUNT_WORKS, reason="mounting a small disk needs unshare with user namespaces")
def test_a_disk_that_fills_up_and_a_read_only_disk_are_one_line_errors(text_file, tmp_path):
    """A real disk of 80 MB that another process fills while the run saves and W&B writes."""
    (tmp_path / "runs").mkdir()
    environment = {**os.environ, "OUT": str(tmp_path)}
    arguments = command("--text", text_file, "--wandb", "offline", "--set", "train.snapshots=false")
    script = ["unshare", "-rm", "bash", "-c", FULL_DISK, "bash", *arguments]
    subprocess.run(script, env=environment, cwd=ROOT, check=True, timeout=120)
    codes = {name: int((tmp_path / f"{name}.rc").read_text()) for name in ("first", "second", "third")}
    errors = {name: (tmp_path / f"{name}.err").read_text() for name in codes}
    assert codes == {"first": 1, "second": 0, "third": 1}, errors
    for name in ("first", "third"):
        assert errors[name].startswith("error: ")
        assert errors[name].count("\n") == 1
    assert "No space left on device" in errors["first"]
    assert "Read-only file system" in errors["third"]
    assert "resumes from step" in (tmp_path / "second.out").read_text()
    assert "is complete" in (tmp_path / "second.out").read_text()


def test_make_exp_passes_every_variable_unchanged(text_file, tmp_path):
    mine = tmp_path / "it's $HOME mine.txt"
    mine.write_text(text_file.read_text())
    settings = " ".join(f"{key}={value}" for key, value in MICRO.items())
    # make needs every dollar sign doubled.
    variables = ["NAME=tiny", "SEED=3", "STEPS=2", f"TEXT={str(mine).replace('$', '$$')}", f"SET={settings}"]
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    done = subprocess.run([*MAKE, "exp", *variables], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = all_runs()
    assert run.record.seed == 3
    assert run.record.text.path == str(mine)
    assert run.record.spec.model.n_embd == 8
    assert (run.history().status, run.history().step) == ("complete", 2)


def test_make_exp_without_a_name_lists_the_experiments():
    done = subprocess.run([*MAKE, "exp"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ["baseline", "163,037,184"]
    assert "make exp NAME=" in done.stdout


def test_make_alone_prints_help():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("exp", "test", "lint", "report", "notebook", "dashboard"):
        assert f"make {target}" in done.stdout


@pytest.mark.parametrize("folder", ["analysis", "gptlab/data"])
def test_commands_work_from_any_folder_of_the_project(folder):
    done = subprocess.run(
        [sys.executable, "-m", "gptlab", "list"], cwd=ROOT / folder, capture_output=True, text=True, check=True
    )
    assert "baseline" in done.stdout
