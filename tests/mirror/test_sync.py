"""`gptlab sync`: runs are independent, each has a line with its result, and no row is sent twice."""

import json
import sys

import pytest
from support import run_attempt

from gptlab import cli
from gptlab.mirror import mirror

pytestmark = pytest.mark.slow


@pytest.fixture
def sync(monkeypatch, capsys):
    """`sync(…)` returns the command's exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gptlab", "sync", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


HARMFUL = {
    "WANDB_RUN_ID": "another",
    "WANDB_SWEEP_ID": "sweep",
    "WANDB_RESUME": "never",
    "WANDB_RUN_GROUP": "group",
    "WANDB_NAME": "name",
    "WANDB_TAGS": "tag",
    "WANDB_DIR": "/nowhere",
    "WANDB_SERVICE": "surprise",
    "WANDB_LAUNCH": "true",
    "WANDB_CONFIG": '{"run": "another"}',
    "WANDB_DISABLED": "true",
    "WANDB_X_SKIP_TRANSACTION_LOG": "true",
    "WANDB_FORK_FROM": "another?_step=1",
    "WANDB_MODE": "disabled",
    "TRAINING_JOB_NAME": "job",
    "SM_TRAINING_ENV": "{}",
}
"""What `wandb agent`, wrappers and clusters set, and what would make an upload fail or go elsewhere."""


@pytest.fixture
def surroundings(project, tmp_path, monkeypatch):
    """A project and an environment that would disturb a mirror which looked at them."""
    for name, value in HARMFUL.items():
        monkeypatch.setenv(name, value)
    for name in ("random.py", "json.py", "typing.py", "gptlab.py"):
        (project / name).write_text("raise SystemExit('imported from the project')\n")
    (project / "wandb").mkdir()
    (project / "wandb" / "settings").write_text(
        "[default]\nproject = from-file\nrun_id = another\nsweep_id = sweep\nx_skip_transaction_log = maybe\n"
    )
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("""print('hello\\n{"step": 999}\\n[', flush=True)\n""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


def test_runs_are_synced_independently_and_a_failed_one_is_reported_and_retried(
    surroundings, server, micro, sync, capsys, monkeypatch
):
    monkeypatch.setattr(mirror, "FINISH_TIMEOUT_S", 20.0)
    first, second = (run_attempt(micro, seed, steps=10, wandb="offline").run for seed in (0, 1))
    private = run_attempt(micro, 2, steps=10, wandb="off").run
    capsys.readouterr()
    server.refused = {first.record.wandb_id}  # the client drops the rows and reports success
    code, out, err = sync("--json")
    assert code == 1
    refused, done = json.loads(out)
    assert (refused["run"], refused["synced"], refused["problem"]) == (first.id, False, f"{server.url} has no row")
    assert (done["run"], done["synced"], done["step"], done["problem"]) == (second.id, True, 10, None)
    assert second.record.wandb_id in done["url"]
    assert f"{first.id}  not synced: {server.url} has no row" in err

    server.refused = set()
    code, out, err = sync()
    assert (code, err) == (0, "")
    assert out.startswith(f"{first.id}  synced up to step 10: http")
    assert out.count("\n") == 1
    assert [len(server.runs[run.record.wandb_id].history) for run in (first, second)] == [3, 3]
    assert private.record.wandb_id not in server.runs
    assert server.runs.keys() == {first.record.wandb_id, second.record.wandb_id}
    stored = server.runs[second.record.wandb_id].facts()
    assert (stored["project"], stored["displayName"], stored["groupName"]) == ("from-file", "micro-s1", second.id[:-3])
    assert not {"tags", "sweep"} & stored.keys()

    assert sync() == (0, "nothing to upload: all mirrored runs are complete in W&B\n", "")
    code, out, _ = sync("micro", private.id)
    assert code == 2
    server.runs[first.record.wandb_id].lines.popitem()  # it loses a row that it had confirmed
    server.runs[first.record.wandb_id].summary.clear()  # W&B's client sends no row before the summary's step
    code, out, err = sync(private.id, first.id)
    assert (code, err) == (0, "")
    assert [len(server.runs[run.record.wandb_id].history) for run in (first, private)] == [3, 3]
    assert server.runs[first.record.wandb_id].sent == 4


def test_sync_without_a_key_is_an_error(micro, sync, capsys):
    run = run_attempt(micro, steps=10, wandb="off").run
    capsys.readouterr()
    code, out, err = sync(run.id)
    assert (code, out) == (1, "")
    assert err == f"{run.id}  not synced: there is no API key; `wandb login` sets one\n"
