"""A run's files, whatever they hold, are read as valid values or refused in one line that names the file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import ANYTHING, as_json, damaged, oddly

from gptlab.commands.list_runs import summarize
from gptlab.errors import GptlabError
from gptlab.identity import identify
from gptlab.tracking.history import ATTEMPTS
from gptlab.tracking.metrics import COLUMNS, COUNTS, METRICS, read_metrics
from gptlab.tracking.run import RECORD, SAMPLES, Run, TextRecord, create_run, load_run

ID = r"[a-z0-9][a-z0-9._-]{0,63}-[0-9a-f]{8}-s[0-9]{1,19}"
START = {"attempt": 1, "event": "start", "time": "now", "steps": 40, "device": "cpu", "threads": 1, "tags": ["a"]}
END = {"attempt": 1, "event": "end", "time": "now", "step": 40, "status": "complete"}
ROW = {"step": 40, "tokens": 1280, "time": 1.7e9, "train/loss": 5.0, "val/loss": "inf", "val/yardstick": "0123"}
SAMPLE = {"step": 40, "prompt": "The", "text": " end"}


@pytest.fixture
def run(micro) -> Run:
    identity = identify(micro, precision="float32", text_sha256="abc", tokenizer_sha256="def")
    return create_run(micro, identity, 0, "float32", TextRecord(source="t", path="/t", bytes=1, sha256="abc"))


def assert_refused_or_sound(run: Run) -> None:
    """Check that reading the run gives values of the right types, or an error that names one of its files."""
    try:
        found = load_run(run.directory)
        summary, samples = summarize(found).facts, found.samples()
        rows, attempts = read_metrics(found.directory), found.history().attempts
    except GptlabError as refusal:
        message = str(refusal)
        assert str(run.directory) in message
        assert len(message) < len(str(run.directory)) + 400
        return
    assert found.directory.parent == run.directory.parent
    assert summary["run"] == found.id == f"{summary['name']}-{found.id.split('-')[-2]}-s{summary['seed']}"
    assert summary["status"] in {"complete", "interrupted", "diverged", "failed"}
    for count in [summary[key] for key in ("seed", "step", "steps")] + [row["step"] for row in samples]:
        assert type(count) is int
        assert 0 <= count < 2**63
    assert {row["event"] for row in attempts} <= {"start", "end"}
    for row in rows:
        types = {key: int if key in COUNTS else str if key == "val/yardstick" else float for key in COLUMNS}
        assert all(type(value) is types[key] for key, value in row.items())
    json.dumps(summary, ensure_ascii=False).encode()  # the summary can be printed


@given(data=st.data())
def test_any_changed_record_is_refused_or_valid(run, data):
    document = json.loads((run.directory / RECORD).read_bytes())
    whole = as_json(document)
    (run.directory / RECORD).write_bytes(
        data.draw(oddly(document).map(as_json) | damaged(whole) | ANYTHING.map(as_json))
    )
    try:
        assert_refused_or_sound(run)
    finally:
        (run.directory / RECORD).write_bytes(whole)


@pytest.mark.parametrize(("name", "rows"), [(ATTEMPTS, [START, END]), (METRICS, [ROW]), (SAMPLES, [SAMPLE])])
@given(data=st.data())
def test_any_changed_rows_are_refused_or_valid(run, name, rows, data):
    changed = st.sampled_from(rows).flatmap(oddly).map(as_json) | ANYTHING.map(as_json)
    lines = data.draw(st.lists(changed | st.sampled_from(rows).map(as_json).flatmap(damaged), max_size=4))
    (run.directory / name).write_bytes(b"\n".join([*lines, b""]))
    assert_refused_or_sound(run)
