"""Runs that are bundled in one project and verified in another one."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import xxhash
from support import run_attempt, typed

from gptlab.bundles.code import escape
from gptlab.commands.verify_bundle import VerifiedBundle
from gptlab.digests import with_digest
from gptlab.spec import Experiment
from gptlab.tracking.lock import RunLock
from gptlab.tracking.run import Run
from gptlab.training.initial import find_branch, find_initial_weights
from gptlab.verification.result import Verification

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Made:
    """What one side has: a run and two that start from it."""

    runs: Path
    run: Run
    branch: Run
    warm_start: Run


@pytest.fixture(scope="module")
def made(micro: Experiment, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    runs = tmp_path_factory.mktemp("made") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(runs))
        patch.setenv("GPTLAB_CACHE", str(cache))
        run = run_attempt(micro.with_changes({"train.keep_steps": [10]}), steps=30).run
        spec = micro.with_changes({"train.learning_rate": 0.001, "train.steps": 14})
        branch = run_attempt(spec, initial_weights=find_branch(f"{run.id}@10", spec)).run
        start = find_initial_weights(f"{run.id}@20")
        warm_start = run_attempt(spec, steps=2, initial_weights=start).run
    return Made(runs, run, branch, warm_start)


@pytest.fixture
def gptlab(monkeypatch, capfd) -> Callable[..., str]:
    return typed(monkeypatch, capfd)


@pytest.fixture
def sender(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to bundle into; the runs are a copy."""
    shutil.copytree(made.runs, tmp_path / "sent")
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "sent"))
    return tmp_path


@pytest.fixture
def elsewhere(sender: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """`elsewhere()` → a project of a stranger, without runs; the sender's runs are gone."""
    return lambda: _leave(sender, monkeypatch)


def _leave(sender: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.rmtree(sender / "sent")
    folder = sender / "elsewhere"
    (folder / "experiments").mkdir(parents=True)
    (folder / "pyproject.toml").write_text("[tool.gptlab]\n")
    monkeypatch.setenv("GPTLAB_RUNS", str(folder / "runs"))
    shutil.move(sender / "results.tar", folder / "results.tar")
    monkeypatch.chdir(folder)
    return folder


def test_a_run_and_its_branch_are_verified_elsewhere(made, sender, elsewhere, gptlab, text_file, monkeypatch):
    out = gptlab("bundle", made.branch.id, made.run.id, "-o", str(sender / "results.tar"))
    assert f"with {made.run.id}@10, which it starts from" in out
    assert "not inside  the text words.txt" in out
    assert "gptlab verify results.tar --text words.txt" in out
    folder = elsewhere()
    monkeypatch.setenv("GPTLAB_CACHE", str(folder / "cache"))
    (folder / "moved.txt").write_bytes(text_file.read_bytes())
    document = json.loads(gptlab("verify", "results.tar", "--text", "moved.txt", "--json"))
    verdicts = {found["run"]: (found["verdict"], found["checkpoints"]) for found in document["runs"]}
    assert verdicts == {made.branch.id: ("bitwise", [14]), made.run.id: ("bitwise", [10, 20, 30])}
    assert document["not_verified"] == {}
    assert not (folder / "runs").exists()


def test_runs_bring_the_checkpoints_of_their_parent_and_the_text(made, sender, elsewhere, gptlab):
    out = gptlab("bundle", made.branch.id, made.warm_start.id, "-o", str(sender / "results.tar"), "--text")
    assert f"with {made.run.id}@20, which it starts from" in out
    elsewhere()
    assert gptlab("verify", "results.tar").splitlines()[-1] == "2 runs: 2 bitwise"
    out = gptlab("verify", "results.tar", "--run", made.warm_start.id[:-3], "--to", "1")
    assert out.splitlines()[-1] == "1 run: 1 bitwise"


def test_each_text_that_is_not_inside_gets_a_command(made, sender, gptlab, micro, tmp_path):
    (tmp_path / "other text.txt").write_bytes(Path(micro.data.text).read_bytes() * 2)
    other = run_attempt(micro.with_changes({"data.text": str(tmp_path / "other text.txt")}), steps=1).run
    out = gptlab("bundle", made.run.id, other.id, "-o", str(sender / "results.tar"), "--checkpoints", "none")
    assert f"gptlab verify results.tar --text words.txt --run {made.run.id}\n" in out
    assert f"gptlab verify results.tar --text 'other text.txt' --run {other.id}\n" in out


def test_everything_that_is_missing_is_named_at_once(made, sender, elsewhere, gptlab, monkeypatch):
    monkeypatch.setattr("gptlab.bundles.collect.places", lambda parent, runs: [])
    out = gptlab("bundle", made.branch.id, "-o", str(sender / "results.tar"), "--checkpoints", "none")
    assert "no checkpoint, so that only rows can be compared" in out
    assert f"{made.run.id}@10, which {made.branch.id} starts from: it is gone" in out
    elsewhere()
    error = gptlab("verify", "results.tar", code=2)
    assert "without 2 things: (1) the text 'words.txt'" in error
    assert f"(2) its parent {made.run.id}@10; bundle both" in error
    error = gptlab("verify", "results.tar", "--from", "12", code=2)
    step = f"(2) the resumable checkpoint of step 12 of {made.branch.id}"
    assert f"{step}; inside: none; ask for a bundle with --checkpoints all" in error


def test_a_step_inside_is_proposed_if_the_parent_is_gone(made, sender, elsewhere, gptlab, micro, monkeypatch):
    monkeypatch.setattr("gptlab.bundles.collect.places", lambda parent, runs: [])
    spec = micro.with_changes({"train.learning_rate": 0.001, "train.steps": 14, "train.keep_steps": [12]})
    branch = run_attempt(spec, seed=3, initial_weights=find_initial_weights(f"{made.run.id}@10")).run
    gptlab("bundle", branch.id, "-o", str(sender / "results.tar"), "--text")
    elsewhere()
    error = gptlab("verify", "results.tar", code=2)
    assert f"without its parent {made.run.id}@10; bundle both, or pass --from 12\n" in error
    assert "bitwise, steps 12 to 14" in gptlab("verify", "results.tar", "--from", "12")


def test_a_missing_text_is_named_with_what_identifies_it(made, sender, elsewhere, gptlab):
    gptlab("bundle", made.run.id, "-o", str(sender / "results.tar"))
    folder = elsewhere()
    error = gptlab("verify", "results.tar", code=2)
    text = made.run.record.text
    assert error == (
        f"error: results.tar cannot be verified without the text 'words.txt', {text.bytes:,} bytes, sha256 "
        f"{text.sha256}; pass it with --text\n"
    )
    (folder / "other.txt").write_text("another text")
    assert "is the text of no run in results.tar" in gptlab("verify", "results.tar", "--text", "other.txt", code=2)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["nothing.tar"], "there is no file 'nothing.tar'"),
        (["results.tar", "--run", "nothing"], "there is no run 'nothing' in results.tar: micro-"),
        (["results.tar", "--run", ""], "there is no run '' in results.tar"),
        (["nul\0.tar"], "there is no file"),
        (["."], "there is no run in '.'"),
        (["notes.txt"], "it is not a tar"),
    ],
)
def test_an_invalid_argument_is_one_line(made, sender, elsewhere, gptlab, arguments, answer):
    gptlab("bundle", made.run.id, "-o", str(sender / "results.tar"), "--checkpoints", "none")
    (elsewhere() / "notes.txt").write_text("x" * 600)
    error = gptlab("verify", *arguments, code=2)
    assert answer in error
    assert error.count("\n") == 1


def test_a_run_in_training_is_not_bundled(made, sender, gptlab):
    with RunLock(sender / "sent" / made.run.id):
        error = gptlab("bundle", made.run.id, "-o", str(sender / "results.tar"), code=1)
    assert f"{made.run.id} is being trained by process {os.getpid()}" in error
    assert not (sender / "results.tar").exists()


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "checkpoints/step-00000030/model.safetensors"])
def test_a_damaged_run_is_not_bundled(made, sender, gptlab, name):
    path = sender / "sent" / made.run.id / name
    content = bytearray(path.read_bytes())
    place = content.rindex(b"1") if name != "run.json" else content.index(b'"wandb_id"') - 3
    content[place] ^= 1
    path.write_bytes(content)
    error = gptlab("bundle", made.run.id, "-o", str(sender / "results.tar"), code=1)
    assert name in error
    assert error.startswith("error: ")
    assert error.splitlines()[-1].count("error") == 1
    assert not (sender / "results.tar").exists()


def test_uncommitted_code_is_shown_and_never_applied(project, micro, sender, elsewhere, gptlab):
    (project / "experiments" / "extra.py").write_text("# \x1b[2J\n" + "pass\n" * 50)
    run = run_attempt(micro, seed=1, steps=1).run
    gptlab("bundle", run.id, "-o", str(sender / "results.tar"), "--text")
    folder = elsewhere()
    out = gptlab("verify", "results.tar")
    assert "not in this repository, with uncommitted changes in experiments/extra.py" in out
    assert r"│ +# \x1b[2J" in out
    assert "more lines: tar -xOf results.tar runs/" in out
    assert "git checkout" in out
    assert "| git apply" in out
    assert "\x1b" not in out
    assert not list(folder.rglob("extra.py"))


def test_a_forged_number_is_found_by_the_replay(micro, sender, elsewhere, gptlab):
    """Whoever makes a bundle can compute every checksum."""
    run = run_attempt(micro, seed=2, steps=10).run
    shutil.rmtree(run.directory / "checkpoints")
    metrics, attempts = run.directory / "metrics.jsonl", run.directory / "attempts.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows[-1]["val/loss"] -= 0.01
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start, end = (json.loads(line) for line in attempts.read_text().splitlines())
    del end["digest"]
    content = metrics.read_bytes()
    end |= {"metrics_bytes": len(content), "metrics_xxh3": xxhash.xxh3_128(content).hexdigest()}
    attempts.write_text("".join(json.dumps(row) + "\n" for row in (start, with_digest(end))))
    gptlab("bundle", run.id, "-o", str(sender / "results.tar"), "--text")
    elsewhere()
    printed = gptlab("verify", "results.tar", "--json", code=1)  # on stderr
    assert f"{run.id}: differs, steps 0 to 10" in printed
    assert "val/loss at step 10: recorded" in printed


def test_one_run_that_cannot_be_verified_does_not_hide_the_others():
    bitwise, differs = Verification("a", "bitwise", 0, 1), Verification("b", "differs", 0, 1)
    found = {"a": [], "b": [], "c": []}
    both = VerifiedBundle(Path("x.tar"), "", (bitwise, differs), {"c": "why"}, found)
    assert (both.exit_code, both.summary) == (1, "3 runs: 1 bitwise, 1 differs, 1 not verified")
    assert VerifiedBundle(Path("x.tar"), "", (bitwise,), {"c": "why"}, found).exit_code == 2
    assert VerifiedBundle(Path("x.tar"), "", (bitwise,), {}, found).exit_code == 0


def test_a_step_that_the_run_does_not_have_is_one_line(made, sender, elsewhere, gptlab):
    gptlab("bundle", made.branch.id, "-o", str(sender / "results.tar"), "--text")
    elsewhere()
    error = gptlab("verify", "results.tar", "--to", "500", code=2)
    assert error.startswith("error: results.tar cannot be verified: ")
    assert error.count("\n") == 1


def test_what_a_terminal_could_interpret_is_escaped():
    assert escape("+a\tb\x1b[2J\u202e\u3164\r") == "+a\tb\\x1b[2J\\u202e\\u3164\\r"
    assert escape("größer 'x' \\n") == "größer 'x' \\n"
