"""The real wandb client, read back with W&B's own tool."""

import http.server
import json
import subprocess
import sys
import threading

import pytest

from gptlab.errors import BadInputError
from gptlab.tracking import mirror
from gptlab.tracking.metrics import read_metrics
from gptlab.tracking.mirror import Identification, Mirror, choose_mode, newest_segment


def inspect(directory):
    """The records of the run's newest offline file."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(newest_segment(directory))]
    lines = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def history(records):
    own = {"_runtime", "_step", "_timestamp"}
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [{key: value for key, value in item.items() if key not in own} for item in items]


def rows(run):
    return [{key: value for key, value in row.items() if key != "time"} for row in read_metrics(run.directory)]


def test_every_row_of_metrics_is_one_row_in_wandb_also_after_an_extension(run_micro):
    run = run_micro(steps=12, wandb="offline")
    records = inspect(run.directory)
    assert history(records) == rows(run)
    run_micro(steps=20, wandb="offline")
    assert history(inspect(run.directory)) == rows(run)
    assert [row["step"] for row in rows(run)] == [0, 5, 10, 15, 20]

    (started,) = [record["run"] for record in records if record["type"] == "run"]
    config = started["config"]["update"]
    assert started["run_id"] == run.record.wandb_id
    assert started["run_group"] == run.id.removesuffix("-s0")
    assert (started["display_name"], started["job_type"], started["project"]) == ("micro-s0", "train", "gptlab")
    assert started["notes"] == run.record.spec.why
    assert config["model"]["n_layer"] == 2
    assert config["train"]["learning_rate"] == 0.01
    assert config["text_sha256"] == run.record.text.sha256
    assert {"git_sha", "dirty", "tokenizer_sha256"} <= config.keys()
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    assert [(m.get("glob_name"), m.get("step_metric")) for m in metrics][1] == ("*", "step")
    summary = {}
    for record in records:
        if record["type"] == "summary":
            summary |= record["summary"]["update"]
    assert (summary["best/step"], summary["best/val_loss"]) == (10, rows(run)[2]["val/loss"])


def test_the_dashboard_command_opens_the_newest_segment(tmp_path):
    for name in ("offline-run-20260101_000000-a", "offline-run-20260102_000000-a", "run-20260101_120000-a"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / "run-a.wandb").touch()
    assert newest_segment(tmp_path).name == "offline-run-20260102_000000-a"


def test_a_run_that_was_never_mirrored_has_no_dashboard(tmp_path):
    with pytest.raises(BadInputError, match="--wandb off"):
        newest_segment(tmp_path)


def identification():
    return Identification(id="micro-x", name="n", group="g", notes="", tags=[], config={})


def test_the_first_failure_turns_the_mirror_off_with_one_notice(tmp_path, monkeypatch):
    class Broken:
        summary, resumed = {}, False

        def log(self, row):
            raise ConnectionResetError("the service is gone")

    monkeypatch.setattr(mirror, "_connect", lambda *arguments: Broken())
    notices = []
    broken = Mirror(tmp_path, "offline", identification(), [], notices.append)
    for step in range(3):
        broken.log({"step": step})
    broken.finish(0)
    assert len(notices) == 1
    assert "ConnectionResetError: the service is gone" in notices[0]


def test_a_connection_that_fails_is_a_notice_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "_connect", lambda *arguments: (_ for _ in ()).throw(RuntimeError("no")))
    notices = []
    Mirror(tmp_path, "online", identification(), [{"step": 0}], notices.append).log({"step": 1})
    assert len(notices) == 1


def test_online_only_the_rows_that_the_server_lacks_are_sent(tmp_path, monkeypatch):
    class Resumed:
        summary, resumed, url, sent = {"step": 10}, True, "http://w/run", []

        def log(self, row):
            self.sent.append(row)

    monkeypatch.setattr(mirror, "_connect", lambda *arguments: Resumed())
    rows = [{"step": step, "time": 1.0 + step} for step in (0, 5, 10, 15)]
    resumed = Mirror(tmp_path, "online", identification(), rows, pytest.fail)
    assert Resumed.sent == [{"step": 15, "_timestamp": 16.0}]
    resumed.log({"step": 10, "time": 20.0})  # a replay
    resumed.log({"step": 20, "time": 21.0})
    assert [row["step"] for row in Resumed.sent] == [15, 20]
    assert resumed.url == "http://w/run"


def test_off_is_off(tmp_path):
    off = Mirror(tmp_path, "off", identification(), [{"step": 0}], pytest.fail)
    off.log({"step": 1})
    off.finish(0)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def server():
    """A server on loopback that answers everything with 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_settings_that_lie_in_a_run_are_not_those_of_the_client(tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "run.json").touch()
    (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    script = "from gptlab.tracking import mirror; print(mirror._client().setup().settings.base_url)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=True, text=True)
    assert done.stdout.startswith("https://")


CHOOSE = "from gptlab.tracking.mirror import choose_mode; print(choose_mode(None)[0])"


def chosen(monkeypatch, **environment):
    """The mode that a new process chooses: wandb reads its environment once."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return subprocess.run([sys.executable, "-c", CHOOSE], capture_output=True, check=True, text=True).stdout.strip()


def test_without_a_key_the_mode_is_offline(monkeypatch):
    assert chosen(monkeypatch) == "offline"


def test_with_a_key_and_a_server_that_answers_the_mode_is_online(monkeypatch, server):
    assert chosen(monkeypatch, WANDB_API_KEY="k" * 40, WANDB_BASE_URL=server) == "online"


def test_with_a_key_and_a_server_that_does_not_answer_the_mode_is_offline(monkeypatch):
    assert chosen(monkeypatch, WANDB_API_KEY="k" * 40, WANDB_BASE_URL="http://127.0.0.1:9") == "offline"


@pytest.mark.parametrize(("value", "mode"), [("disabled", "off"), ("offline", "offline"), ("online", "online")])
def test_wandb_mode_is_honoured(monkeypatch, value, mode):
    monkeypatch.setenv("WANDB_MODE", value)
    assert choose_mode(None) == (mode, "as WANDB_MODE says")
    assert choose_mode("off") == ("off", "as asked")
