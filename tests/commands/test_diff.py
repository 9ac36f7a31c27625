"""`gptlab diff` shows causes first, then results, and only what differs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from faults import in_child
from support import run_attempt

from gptlab import cli
from gptlab.commands import diff as diff_command
from gptlab.commands.diff import compare, current_side, recorded_side
from gptlab.files import append_json_line
from gptlab.tracking.comparison import compare_metrics
from gptlab.tracking.history import ATTEMPTS
from gptlab.tracking.metrics import METRICS, read_metrics
from gptlab.tracking.run import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def diff(monkeypatch, capsys):
    """`diff(RUN…)` → what the command prints on stdout."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["gptlab", "diff", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


def edited(run: Run, file: str, change) -> None:
    """Apply `change` to each row of one of a run's files."""
    path = run.directory / file
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    for row in rows:
        change(row)
        append_json_line(path, row)


@pytest.fixture
def run(micro) -> Run:
    return run_attempt(micro, steps=20).run


def test_only_differences_are_shown_causes_before_results(diff, micro, run):
    other = run_attempt(micro.with_changes({"train.learning_rate": 1e-3}), seed=1, steps=20).run
    lines = diff(run.id, other.id).splitlines()
    sections = [line.strip() for line in lines if line and not line.startswith((" ", "note"))]
    assert sections == ["spec", "results"]
    assert next(line.split() for line in lines if "learning_rate" in line)[1:] == ["0.01", "0.001", "-0.009"]
    assert next(line.split() for line in lines if " seed" in line)[1:] == ["0", "1"]
    assert "batch_size" not in "".join(lines)
    ours, theirs = (read_metrics(r.directory)[-1]["val/loss"] for r in (run, other))
    assert f"{theirs - ours:+.4g}" in next(line for line in lines if "val/loss at step 20" in line)


def test_the_json_document_has_every_section(diff, micro, run):
    other = run_attempt(micro.with_changes({"model.tied": True}), steps=20).run
    document = json.loads(diff(run.id, other.id, "--json"))
    assert list(document) == ["a", "b", "spec", "code", "data", "environment", "results", "files", "notes"]
    assert document["spec"] == {"model.tied": {"a": False, "b": True}}
    assert (document["a"], document["b"]) == (run.id, other.id)


def test_a_run_and_itself_do_not_differ(diff, run):
    out = diff(run.id, run.id)
    assert f"nothing differs between {run.id} and {run.id}" in out
    assert "equal in all 5 common rows, up to step 20" in out


def test_the_first_row_that_differs_is_named(run, micro, monkeypatch, tmp_path):
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "again"))
    again = run_attempt(micro, steps=20).run
    edited(again, METRICS, lambda row: row.update({"optim/grad_norm": 7.0} if row["step"] == 15 else {}))
    assert compare(recorded_side(run), recorded_side(again)).notes == [
        "their metrics first differ at step 15, in optim/grad_norm"
    ]


def test_damaged_metrics_are_named_and_none_of_their_losses_is_compared(run, micro, caplog):
    other = run_attempt(micro, seed=1, steps=20).run
    path = other.directory / METRICS
    path.write_bytes(path.read_bytes().replace(b'loss": 5', b'loss": 4').replace(b'loss": 10', b'loss": 11'))
    compared = compare(recorded_side(run), recorded_side(other))
    assert compared.sections["results"] == {}
    assert f"{path} is damaged" in caplog.text
    assert "its losses are not compared" in caplog.text


def test_rows_are_compared_by_step(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for directory, steps, loss in ((a, (1, 2, 4, 5, 8), 3.0), (b, (2, 3, 5, 5, 6, 7), 3.0)):
        directory.mkdir()
        for number, step in enumerate(steps):
            value = 2.5 if directory is b and number == 3 else loss  # the newest row of step 5
            append_json_line(directory / METRICS, {"step": step, "train/loss": value})
    found = compare_metrics(a, b)
    assert found.common == 2
    assert found.first_difference == (5, ["train/loss"])
    assert found.losses == {"train/loss at step 5": (3.0, 2.5)}


def test_losses_on_different_windows_are_reported_as_not_comparable(run, micro):
    other = run_attempt(micro.with_changes({"data.val_windows": 3}), steps=20).run
    assert any("are not comparable" in note for note in compare(recorded_side(run), recorded_side(other)).notes)


def test_another_text_is_data_and_other_threads_are_environment(run, micro, text_file, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text(text_file.read_text() + "One more line.\n")
    other = run_attempt(micro.with_changes({"data.text": str(mine)}), steps=20).run
    edited(other, ATTEMPTS, lambda row: row.update({"threads": 7} if row["event"] == "start" else {}))
    sections = compare(recorded_side(run), recorded_side(other)).sections
    assert sections["data"].keys() == {"text.source", "text.bytes", "text.sha256"}
    assert sections["environment"] == {"threads": (1, 7)}
    assert sections["spec"] == {}


def test_values_that_changed_between_attempts_are_listed_in_order(run, micro):
    run_attempt(micro, steps=30)
    edited(run, ATTEMPTS, lambda row: row.update({"threads": 5} if row.get("from_step") == 20 else {}))
    assert recorded_side(run).environment["threads"] == [1, 5]
    other = run_attempt(micro, seed=1, steps=20).run
    assert compare(recorded_side(run), recorded_side(other)).sections["environment"] == {"threads": ([1, 5], 1)}
    assert diff_command._format([1, 5]) == "1, then 5"


def test_code_of_an_earlier_attempt_is_named_and_never_called_the_same(project, micro):
    run = run_attempt(micro, steps=10).run
    source = project / "experiments" / "micro.py"
    original = source.read_text()
    source.write_text(original + "# changed\n")
    run_attempt(micro, steps=20)
    source.write_text(original)
    run_attempt(micro, steps=30)
    other = run_attempt(micro, seed=1, steps=30).run
    notes = compare(recorded_side(run), recorded_side(other)).notes
    assert f"the attempts of {run.id} ran different code: experiments/micro.py +1 −0" in notes
    assert f"the attempts of {run.id} ran different code: experiments/micro.py +0 −1" in notes
    assert not any("the code is the same" in note for note in notes)
    notes = compare(recorded_side(run), recorded_side(run)).notes
    assert any(note.startswith("in both, diff_sha256 changed between attempts: –, then ") for note in notes)
    assert len([note for note in notes if "ran different code" in note]) == 2


@pytest.mark.slow
def test_a_run_is_compared_with_the_working_tree(project, micro, tmp_path, monkeypatch):
    run = run_attempt(micro).run

    def diff_here(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["gptlab", "diff", *arguments])
        end = in_child(cli.main, tmp_path)  # which has not imported the experiment yet
        assert end.code == 0, end.err
        return end.out

    assert f"nothing differs between {run.id} and here and now" in diff_here(run.id)
    source = project / "experiments" / "micro.py"
    source.write_text(source.read_text() + "micro = micro.with_changes({'train.steps': 99})\n")
    out = diff_here(run.id, "--patch")
    assert next(line.split() for line in out.splitlines() if "train.steps" in line) == ["train.steps", "40", "99"]
    assert "experiments/micro.py" in out
    assert "+micro = micro.with_changes" in out


def test_a_missing_experiment_and_a_changed_text_are_reported(project, micro, text_file, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text(text_file.read_text())
    run = run_attempt(micro.with_changes({"data.text": str(mine), "name": "other"})).run
    mine.write_text(text_file.read_text() + "more")
    first, second = current_side(run).notes
    assert first == "the experiment 'other' no longer exists"
    assert "has changed" in second


@pytest.mark.parametrize("field", ["git_commit", "diff_sha256"])
def test_a_commit_that_is_an_option_and_a_hash_that_is_a_path_are_refused(run, field, monkeypatch, capsys):
    edited(run, ATTEMPTS, lambda row: row.update({field: "--output=x/../../../y"}))
    monkeypatch.setattr(sys, "argv", ["gptlab", "diff", run.id, run.id])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert f"attempts.jsonl:1: {field}" in capsys.readouterr().err.replace("start.", "")


def test_control_codes_of_an_untrusted_run_do_not_reach_the_terminal(diff, run):
    edited(run, ATTEMPTS, lambda row: row.update({"host": "\x1b[31mred"} if row["event"] == "start" else {}))
    assert "\x1b" not in diff(run.id, run.id)
    other = recorded_side(run)
    assert "�[31mred" in diff_command._format(other.environment["host"])


def test_two_runs_are_compared_without_torch(run):
    script = (
        "import sys; sys.argv = ['gptlab', 'diff', *sys.argv[1:]]\n"
        "from gptlab import cli\n"
        "try: cli.main()\n"
        "except SystemExit as exit_: assert not exit_.code\n"
        "assert not {'torch', 'wandb', 'pandas'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script, run.id, run.id], cwd=ROOT, check=True, capture_output=True)
