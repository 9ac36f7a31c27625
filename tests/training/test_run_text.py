"""A run whose text or parent has moved, and a run that cannot be written."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gptlab import cli
from gptlab.checkpoints.manifest import checkpoint_directory
from gptlab.commands import diff, evaluate
from gptlab.commands.run import Options, resume_run
from gptlab.errors import BadInputError
from gptlab.terminal.console import Console
from gptlab.tracking.run import Run, find_run
from gptlab.training import initial
from gptlab.training.run_text import stored_text


@pytest.fixture
def moved(train, micro, tmp_path: Path, text_file: Path) -> tuple[Run, Path]:
    """A run of five steps, and the new path of its text."""
    old, new = tmp_path / "old.txt", tmp_path / "new place" / "b.txt"
    shutil.copy(text_file, old)
    run = train(micro.with_changes({"data.text": str(old)}), steps=5).run
    new.parent.mkdir()
    old.rename(new)
    return run, new


def resume(run: Run, **options: object) -> Run:
    return resume_run(run, Options(wandb="off", **options), Console(stderr=True)).run


def eval_(run: Run, text: Path | str | None = None) -> evaluate.RunEvaluation:
    return evaluate.evaluate_run(run, step=None, text=text and str(text), device="cpu", console=Console(stderr=True))


def test_a_text_that_is_gone_says_how_to_name_its_new_place(moved):
    run, _ = moved
    for command in (lambda: resume(run, steps=9), lambda: eval_(run)):
        with pytest.raises(
            BadInputError, match=r"the text of micro-.* cannot be read from .*/old\.txt; if it has moved, .*--text PATH"
        ):
            command()
    assert any("cannot be read from" in note for note in diff.current_side(run).notes)


def test_another_file_at_the_old_place_says_how_to_name_the_new_place(moved):
    run, new = moved
    Path(run.record.text.path).write_text("another text")
    with pytest.raises(BadInputError, match=r"has changed: .*; if it has moved, .*--text PATH"):
        resume(run, steps=6)
    assert resume(run, steps=6, text=str(new)).history().step == 6
    assert resume(run, steps=7).history().step == 7


def test_resume_takes_the_new_place_of_the_text_and_remembers_it(moved):
    run, new = moved
    assert resume(run, steps=6, text=str(new)).history().step == 6
    assert resume(run, steps=7).history().step == 7
    assert stored_text(run).path == new
    assert eval_(run).text is None
    assert not any("cannot be read from" in note for note in diff.current_side(run).notes)


def test_a_remembered_place_may_move_again_or_be_the_old_one(moved):
    run, new = moved
    resume(run, steps=6, text=str(new))
    newer = new.rename(new.with_name("c.txt"))
    with pytest.raises(BadInputError, match=r"cannot be read from .*b\.txt"):
        resume(run, steps=7)
    resume(run, steps=7, text=str(newer))
    newer.rename(run.record.text.path)
    assert str(stored_text(run).path) == run.record.text.path


def test_resume_refuses_another_text_and_keeps_the_place(moved, tmp_path: Path):
    run, _ = moved
    other = tmp_path / "other.txt"
    other.write_text("another text\n" * 100)
    with pytest.raises(BadInputError, match=rf"is not the text of {run.id}: its sha256 is .* began with"):
        resume(run, steps=6, text=str(other))
    assert not (run.directory / "text.json").exists()


def test_eval_takes_the_new_place_for_the_validation_split_and_remembers_it(moved, tmp_path: Path):
    run, new = moved
    result = eval_(run, new)
    assert result.text is None
    assert eval_(run).evaluation.yardstick == result.evaluation.yardstick
    other = tmp_path / "other.txt"
    other.write_text("another text\n" * 100)
    assert eval_(run, other).text == str(other)
    assert stored_text(run).path == new
    assert eval_(run, new).text is None  # the same command gives the same numbers
    shutil.copy(new, run.record.text.path)
    in_full = eval_(run, run.record.text.path)
    assert in_full.text == run.record.text.path
    assert in_full.evaluation.tokens > result.evaluation.tokens


def test_the_run_command_with_the_new_place_remembers_it(moved, train, micro):
    run, new = moved
    train(micro.with_changes({"data.text": str(new)}), steps=6)
    assert resume(run, steps=7).history().step == 7


@pytest.mark.parametrize(
    "content", ["", "{", '{"path": "relative"}', '{"path": "/a\\u0000"}', '{"path": 1}', '{"path": "/dev/zero"}']
)
def test_a_damaged_or_hostile_place_is_ignored(moved, content: str):
    run, new = moved
    (run.directory / "text.json").write_text(content)
    with pytest.raises(BadInputError, match="cannot be read from"):
        stored_text(run)
    new.rename(run.record.text.path)
    assert stored_text(run).sha256 == run.record.text.sha256


def test_a_remembered_file_with_other_bytes_is_not_used(moved):
    run, new = moved
    resume(run, steps=6, text=str(new))
    new.write_bytes(new.read_bytes().upper())
    with pytest.raises(BadInputError, match="cannot be read from"):
        stored_text(run)


def test_a_warm_start_finds_its_parent_in_the_runs_directory(train, micro, tmp_path: Path, monkeypatch):
    parent = train(micro, steps=5).run
    weights = initial.find_initial_weights(parent.id)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").rename(tmp_path / "elsewhere" / "runs")
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "elsewhere" / "runs"))
    child = train(micro, steps=1, initial_weights=weights).run
    assert child.record.initial_weights == weights
    path = checkpoint_directory(find_run(parent.id).directory, 5) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(BadInputError, match=f"the run starts from {parent.id} at step 5"):
        initial.check_initial_weights(weights, micro.model)


def test_evaluation_of_a_run_that_cannot_be_written_prints_the_numbers(train, micro, monkeypatch, capfd):
    run = train(micro, steps=5).run
    before = eval_(run)
    shutil.rmtree(run.directory / "evaluations")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(evaluate, "atomic_write", refuse)
    result = eval_(run)
    assert (result.evaluation.window_losses == before.evaluation.window_losses).all()
    evaluate.render(result, Console(stderr=True))
    printed = capfd.readouterr().err
    assert f"{result.evaluation.loss:.4f}" in printed
    assert "the losses of the windows are not stored: " in printed
    assert "evaluations cannot be written: Read-only file system" in printed


@pytest.fixture
def for_everybody(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that other users can reach, which is writable for everybody in `cache/` only."""
    if os.getuid() != 0:
        pytest.skip("needs root, to act as another user")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "cache").mkdir()
        (folder / "cache").chmod(0o777)
        monkeypatch.setenv("GPTLAB_CACHE", str(folder / "cache"))
        monkeypatch.setenv("GPTLAB_RUNS", str(folder / "runs"))
        yield folder


def test_a_run_of_somebody_else_is_used_without_being_written(moved, for_everybody: Path, monkeypatch, capfd):
    run = Run(for_everybody / "runs" / moved[0].id, moved[0].record)
    text = for_everybody / "a.txt"
    shutil.copy(moved[1], text)
    shutil.copytree(moved[0].directory, run.directory)
    commands = [["eval", run.id, "--text", str(text), "--json"], ["sample", run.id, "--tokens", "2"], ["show", run.id]]
    commands += [["runs"], ["diff", run.id]]

    def everything() -> None:
        for arguments in commands:
            monkeypatch.setattr(sys, "argv", ["gptlab", *arguments])
            with suppress(SystemExit):
                cli.main()

    everything()  # imports everything: another user may not be able to
    (run.directory / "text.json").unlink()
    shutil.rmtree(run.directory / "evaluations")
    shutil.rmtree(for_everybody / "cache" / "tokens")
    before = {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")}
    capfd.readouterr()
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setgid(12345)
        os.setuid(12345)
        everything()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
    out, err = capfd.readouterr()
    document, _, rest = out.partition("}\n")
    assert json.loads(document + "}")["loss"] > 0, err
    assert "text.json: Permission denied" in err
    assert "evaluations cannot be written: Permission denied" in err
    assert "error: " not in err
    assert "cannot be read from" in rest + err  # `diff` says that the text has moved
    assert {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")} == before
