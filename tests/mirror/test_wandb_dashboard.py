"""What W&B displays of a run: names, config, metrics, best values, samples and checkpoints."""

import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios

import pytest
from support import eventually, run_attempt

from gptlab.checkpoints.manifest import MODEL, checkpoint_directory, list_checkpoints
from gptlab.commands import dashboard
from gptlab.errors import BadInputError
from gptlab.mirror import sync
from gptlab.mirror.environment import wandb_environment
from gptlab.mirror.mirror import Mirror
from gptlab.tracking.metrics import read_metrics

pytestmark = pytest.mark.slow


def records(path):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    found = {}
    for record in map(json.loads, lines):
        found.setdefault(record["type"], []).append(record[record["type"]])
    return found


def summary(found):
    return {key: value for record in found["summary"] for key, value in record["update"].items()}


def segment(run):
    (path,) = (run.directory / "wandb").glob("offline-run-*")
    return path


def test_wandb_receives_names_config_and_summary_and_no_secrets(micro, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "c0ffee" * 7)
    monkeypatch.setenv("CANARY", "a-secret-in-the-environment")
    monkeypatch.setattr(sys, "argv", ["gptlab", "--password", "a-secret-on-the-command-line"])
    run = run_attempt(micro, steps=20, wandb="offline", tags=("first", "second")).run
    found = records(segment(run))
    (started,) = found["run"]
    assert started["run_id"] == run.record.wandb_id
    assert started["run_group"] == run.id.removesuffix("-s0")
    assert (started["display_name"], started["job_type"], started["project"]) == ("micro-s0", "train", "gptlab")
    assert (started["notes"], started["tags"]) == (run.record.spec.why, ["first", "second"])
    config = started["config"]["update"]
    assert config["model"]["n_layer"] == 2
    assert config["train"]["learning_rate"] == 0.01
    assert config["text_sha256"] == run.record.text.sha256
    assert config["fingerprint"] == run.record.fingerprint.hash
    assert config["run"] == run.id
    assert config["git_sha"] == run.history().starts[0]["git_commit"]
    assert {"dirty", "tokenizer_sha256", "parameters", "precision", "seed"} <= config.keys()

    metrics = [(m.get("name"), m.get("glob_name"), m.get("step_metric")) for m in found["metric"]]
    assert metrics == [("step", None, None), (None, "*", "step")]
    best = min((row["val/loss"], row["step"]) for row in read_metrics(run.directory) if "val/loss" in row)
    assert (summary(found)["best/val_loss"], summary(found)["best/step"]) == best
    table = segment(run) / "files" / summary(found)["samples"]["path"]
    sample = run.samples()[0]
    assert json.loads(table.read_text()) == {
        "columns": ["step", "prompt", "text"],
        "data": [[20, sample["prompt"], sample["text"]]],
    }
    for path in (run.directory / "wandb").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(secret in content for secret in (b"c0ffee", b"a-secret-")), path


def test_requested_checkpoints_are_artifacts_without_a_copy_on_the_disk(server, curve):
    curve = curve.with_changes({"model.n_embd": 64})  # the weights are larger than all other files
    run = run_attempt(curve, steps=40, wandb="online", artifacts="best").run
    newest = list_checkpoints(run.directory)[-1]
    best = newest.manifest.progress.best_step
    models = [artifact for artifact in server.artifacts if artifact["artifactTypeName"] == "model"]
    (artifact,) = models
    metadata = json.loads(artifact["metadata"])
    assert metadata["text_sha256"] == run.record.text.sha256
    assert metadata["step"] == best
    assert {alias["alias"] for alias in artifact["aliases"]} >= {"best", f"step-{best}"}
    weights = (checkpoint_directory(run.directory, best) / MODEL).read_bytes()
    assert server.uploads[f"/artifact/{artifact['id']}/{MODEL}"] == weights

    run_attempt(curve, steps=50, wandb="offline", artifacts="final")  # step 50 is not on the grid, so never the best
    found = [a for a in records(segment(run))["artifact"] if a["type"] == "model"]
    (offline,) = found
    assert set(offline["aliases"]) == {"latest", "step-50"}
    places = {entry["path"]: entry["local_path"] for entry in offline["manifest"]["contents"]}
    assert places[MODEL] == str(checkpoint_directory(run.directory, 50) / MODEL)
    for path in (run.directory / "wandb").rglob("*"):
        assert not path.is_file() or path.stat().st_size < len(weights) / 10, path

    assert sync.sync_run(run).synced
    uploaded = server.artifacts[-1]
    assert {alias["alias"] for alias in uploaded["aliases"]} == {"latest", "step-50"}
    run_attempt(curve, steps=60, wandb="online")
    assert [a for a in server.artifacts if a["artifactTypeName"] == "model"] == [artifact, uploaded]


class Leet:
    """A fake of W&B's terminal program that reads the given files."""

    found: list
    returncode = 0

    def __init__(self, shown):
        Leet.found = [records(path) for path in shown.rglob("*.wandb")]

    def wait(self, timeout):
        return 0


def test_the_dashboard_displays_every_row_whatever_was_mirrored(curve, micro, monkeypatch):
    whole = run_attempt(curve, steps=60, wandb="off").run
    other = run_attempt(micro, steps=20).run
    monkeypatch.setattr(dashboard, "_open_leet", Leet)
    dashboard.show([whole, other], pytest.fail)
    shown = {found["run"][0]["run_id"]: found for found in Leet.found}
    for run in (whole, other):
        steps = [row["item"]["step"] for row in shown[run.record.wandb_id]["history"]]
        assert steps == [row["step"] for row in read_metrics(run.directory)]
        assert not (run.directory / "wandb").exists()


def test_the_dashboard_opens_on_the_losses(micro, monkeypatch):
    """W&B's real program, in a terminal of its own."""
    run = run_attempt(micro, steps=10, wandb="off").run
    terminal, program = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    screens = bytearray()
    expected = [rf"{chart} +\[x: step\]" for chart in ("train/loss", "val/loss", "val/bpb")]
    expected += [r"1-\d of 3 filtered from \d\d total"]

    def displayed() -> str:
        return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screens.decode(errors="replace"))

    def open_leet(path):
        command = [sys.executable, "-m", "wandb", "leet", str(path)]
        leet = subprocess.Popen(
            command,
            env=wandb_environment() | {"TERM": "xterm-256color"},
            stdin=program,
            stdout=program,
            stderr=program,
            start_new_session=True,
        )
        try:
            while not all(re.search(pattern, displayed()) for pattern in expected):
                assert select.select([terminal], [], [], 60)[0], displayed()
                screens.extend(os.read(terminal, 65536))
        finally:
            os.killpg(leet.pid, signal.SIGKILL)
            leet.wait()
        return leet

    monkeypatch.setattr(dashboard, "_open_leet", open_leet)
    dashboard.show([run], pytest.fail)


def test_a_run_that_was_never_trained_has_no_dashboard(micro):
    run = run_attempt(micro, steps=10).run
    (run.directory / "attempts.jsonl").unlink()
    with pytest.raises(BadInputError, match="was never trained"):
        dashboard.show([run], pytest.fail)


def test_wandb_off_starts_no_process(micro):
    run = run_attempt(micro, steps=10, wandb="off").run
    assert not (run.directory / "wandb").exists()
    mirrored = Mirror(run, "off", pytest.fail)
    mirrored.notify()
    mirrored.finish()
    assert mirrored.mode() == "off (requested)"


def test_no_temporary_files_remain(micro, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))  # for the mirror process; this one has read it already
    run = run_attempt(micro, steps=10, wandb="offline").run
    assert list(segment(run).glob("files/media/table/samples_*.json"))
    eventually(lambda: not list((tmp_path / "temporary").iterdir()))  # W&B's service exits after its parent
