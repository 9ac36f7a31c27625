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


def test_runs_are_synced_independently_and_a_failed_one_is_reported_and_retried(
    server, micro, sync, capsys, monkeypatch
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

    assert sync() == (0, "nothing to upload: all mirrored runs are complete in W&B\n", "")
    code, out, _ = sync("micro", private.id)
    assert code == 2
    code, out, _ = sync(private.id)
    assert code == 0
    assert len(server.runs[private.record.wandb_id].history) == 3


def test_sync_without_a_key_is_an_error(micro, sync, capsys):
    run = run_attempt(micro, steps=10, wandb="off").run
    capsys.readouterr()
    code, out, err = sync(run.id)
    assert (code, out) == (1, "")
    assert err == f"{run.id}  not synced: there is no API key; `wandb login` sets one\n"
