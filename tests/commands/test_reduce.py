"""`gptlab gc --optimizer` and `--snapshots` free space of complete runs, and lose nothing that is still needed."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import in_child
from operations import Operations
from support import run_attempt

import gptlab
from gptlab import cli
from gptlab.checkpoints.manifest import MODEL, OPTIMIZER, checkpoint_directory, compute_digest, list_checkpoints
from gptlab.commands import reduce
from gptlab.commands import run as run_command
from gptlab.commands.evaluate import evaluate_run
from gptlab.commands.run import Options, resume_run
from gptlab.commands.sample import sample
from gptlab.errors import BadInputError
from gptlab.terminal.console import Console
from gptlab.tracking import space
from gptlab.tracking.lock import RunLock
from gptlab.tracking.run import Run, find_run, load_run
from gptlab.training.initial import find_branch, find_initial_weights

OPTIMIZER_STATES = reduce.Kinds(optimizer_states=True, snapshots=False)
DIED = 77


@pytest.fixture
def finished(long_run: Run, tmp_path: Path) -> Run:
    """A complete run of forty steps, with resumable checkpoints at 30 and 40."""
    return load_run(Path(shutil.copytree(long_run.directory, tmp_path / "runs" / long_run.id)))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`command("gc", …)` → (exit code, stdout, stderr), with a stdin that is no terminal."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gptlab", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (int(ended.value.code or 0), *capfd.readouterr())

    return run


def kept(run: Run) -> dict[int, bool]:
    """The checkpoints of a run: whether each is resumable, by step."""
    return {checkpoint.step: checkpoint.resumable for checkpoint in list_checkpoints(run.directory)}


def resume(run: Run, steps: int | None = None) -> run_command.Result:
    return resume_run(run, Options(wandb="off", steps=steps), Console(stderr=True))


def test_a_complete_run_keeps_its_weights_and_can_be_evaluated_sampled_and_loaded(finished, command, capfd):
    digests = {step: compute_digest(checkpoint_directory(finished.directory, step) / MODEL) for step in (30, 40)}
    before = space.disk_usage(finished.directory)
    code, out, _ = command("gc", "--optimizer", "--yes")
    assert (code, out.split()[2:]) == (0, [finished.id])
    assert kept(finished) == {30: False, 40: False}
    assert not list(finished.directory.rglob(OPTIMIZER))
    assert space.disk_usage(finished.directory) < before / 2
    for step, digest in digests.items():
        assert compute_digest(checkpoint_directory(finished.directory, step) / MODEL) == digest
    assert evaluate_run(finished, step=None, text=None, device="cpu", console=Console(stderr=True))
    assert sample(finished, None, "The", 1, max_tokens=2, temperature=1.0, top_k=0, seed=0)
    assert gptlab.load(finished.id, 30)
    assert find_initial_weights(finished.id).step == 40
    resume(finished)
    assert "extend      not possible" in capfd.readouterr().err
    assert command("gc", "--optimizer") == (0, "there are no optimizer states to remove from complete runs\n", "")


def test_extending_a_run_without_optimizer_state_is_refused_in_one_line(finished, command):
    command("gc", "--optimizer", "--yes")
    attempts = (finished.directory / "attempts.jsonl").read_bytes()
    code, _, err = command("resume", finished.id, "--steps", "60")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot continue from its last step" in err
    assert f"run micro --from {finished.id}` starts another run from its weights" in err
    assert (finished.directory / "attempts.jsonl").read_bytes() == attempts
    assert kept(finished) == {30: False, 40: False}


def test_a_run_does_not_continue_from_an_older_state_than_the_one_that_was_removed(micro, train):
    spec = micro.with_changes({"train.keep_steps": (10,)})
    run = train(spec, steps=40).run
    reduce.reduce(reduce.find([run], OPTIMIZER_STATES), OPTIMIZER_STATES)
    assert kept(run) == {10: True, 30: False, 40: False}, "train.keep_steps promises step 10"
    with pytest.raises(BadInputError, match="cannot continue from its last step"):
        train(spec, steps=60)
    branch = micro.vary("cooldown", why="?")
    with pytest.raises(BadInputError, match="cannot continue from its last step"):
        find_branch(run.id, branch)
    with pytest.raises(BadInputError, match="no resumable checkpoint of step 40; available: 10"):
        find_branch(f"{run.id}@40", branch)
    assert find_branch(f"{run.id}@10", branch).step == 10


def test_a_state_that_is_removed_while_training_starts_is_noticed(finished, monkeypatch):
    def remove_meanwhile(*arguments: object) -> None:
        assert space.remove(finished, optimizer_states=True, snapshots=False) > 0

    monkeypatch.setattr(run_command, "check_arithmetic", remove_meanwhile)
    with pytest.raises(BadInputError, match="cannot continue from its last step"):
        resume(finished, steps=60)


def test_a_run_without_any_state_starts_no_branch_and_says_what_can(finished, micro):
    space.remove(finished, optimizer_states=True, snapshots=False)
    with pytest.raises(BadInputError, match=r"has no resumable checkpoint, only the weights of steps 30, 40, from"):
        find_branch(f"{finished.id}@40", micro.vary("cooldown", why="?"))


def test_states_that_branches_start_from_stay_also_for_those_in_the_trash(finished, micro, train):
    child = micro.vary("cooldown", why="?", **{"train.steps": 31})
    branch = train(child, initial_weights=find_branch(f"{finished.id}@30", child)).run
    branch.move_to_trash()
    (reduction,) = reduce.find([finished], OPTIMIZER_STATES)
    assert "keeps that of step 30" in reduction.line()
    reduce.reduce([reduction], OPTIMIZER_STATES)
    assert kept(finished) == {30: True, 40: False}


def _interrupt(run: Run) -> None:
    run.end_attempt(1, 40, "interrupted")


def _damage_metrics(run: Run) -> None:
    path = run.directory / "metrics.jsonl"
    path.write_text(path.read_text().replace("1", "2"))


def _lose_the_last_checkpoint(run: Run) -> None:
    shutil.rmtree(checkpoint_directory(run.directory, 40))


def _rename(run: Run) -> None:
    run.directory.rename(run.directory.with_name("backup"))


@pytest.mark.parametrize("change", [_interrupt, _damage_metrics, _lose_the_last_checkpoint, _rename])
def test_a_run_that_may_need_its_states_keeps_them(finished, change):
    change(finished)
    (directory,) = finished.directory.parent.iterdir()
    run = load_run(directory)
    states = len(list(directory.rglob(OPTIMIZER)))
    assert reduce.find([run], OPTIMIZER_STATES) == []
    assert len(list(directory.rglob(OPTIMIZER))) == states


def test_a_run_in_training_keeps_its_states(finished, command):
    with RunLock(finished.directory):
        assert reduce.find([find_run(finished.id)], OPTIMIZER_STATES) == []
    (reduction,) = reduce.find([find_run(finished.id)], OPTIMIZER_STATES)
    with RunLock(finished.directory):  # it began after the question was asked
        result = reduce.reduce([reduction], OPTIMIZER_STATES)
    assert "is being trained by process" in result.problems[0]
    assert kept(finished) == {30: True, 40: True}


def test_nothing_is_removed_where_the_last_weights_are_damaged(finished, command):
    path = checkpoint_directory(finished.directory, 40) / MODEL
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    code, _, err = command("gc", "--optimizer", "--yes")
    assert code == 1
    assert "is damaged or missing, so nothing was removed" in err
    assert kept(finished) == {30: True, 40: True}


def test_after_a_crash_at_any_file_operation_a_run_resumes_from_its_last_step_or_refuses(finished, tmp_path):
    spare, refused = shutil.copytree(finished.directory, tmp_path / "spare"), 0
    number, code = 0, DIED
    while code == DIED:
        number += 1
        shutil.rmtree(finished.directory)
        shutil.copytree(spare, finished.directory)

        def reduce_and_die(number: int = number) -> None:
            Operations(number, lambda: os._exit(DIED)).watch(finished.directory)
            space.remove(finished, optimizer_states=True, snapshots=False)

        code = in_child(reduce_and_die, tmp_path).code
        checkpoints = list_checkpoints(finished.directory)
        assert [checkpoint.step for checkpoint in checkpoints] == [30, 40]
        for checkpoint in checkpoints:
            files = {name: compute_digest(checkpoint.directory / name) for name in checkpoint.manifest.files}
            assert files == checkpoint.manifest.files, number
        try:
            space.check_optimizer_state_is_kept(finished, finished.history())
        except BadInputError:
            refused += 1
        else:
            assert checkpoints[-1].resumable, "it would resume from an older state"
        space.remove(finished, optimizer_states=True, snapshots=False)
        assert not list(finished.directory.rglob(OPTIMIZER)), "what a crash leaves is removed by the next command"
    assert code == 0
    assert 1 < refused < number


def test_gc_of_optimizer_states_asks_and_needs_yes_without_a_terminal(finished, command):
    code, out, err = command("gc", "--optimizer")
    assert code == 2
    assert finished.id in out
    assert "pass --yes to confirm: gptlab gc --optimizer --yes" in err
    assert kept(finished) == {30: True, 40: True}


def test_gc_of_optimizer_states_prints_one_json_document(finished, command):
    states = [path.stat().st_size for path in finished.directory.rglob(OPTIMIZER)]
    code, out, err = command("gc", "--optimizer", "--yes", "--json")
    assert (code, json.loads(out)) == (0, {"reduced": [finished.id], "bytes": sum(states)})
    assert finished.id in err


def test_only_the_named_runs_are_reduced(finished, micro, command):
    other = run_attempt(micro, seed=1, steps=10).run
    assert command("gc", "--optimizer", "--yes", "micro-*-s1")[0] == 0
    assert kept(finished) == {30: True, 40: True}
    assert kept(other) == {10: False}


def test_snapshots_of_a_complete_run_can_be_removed_and_it_still_resumes(micro, train, command):
    run = train(micro.with_changes({"train.snapshots": True}), steps=12).run
    assert kept(run) == {0: False, 1: False, 2: False, 4: False, 8: False, 10: True, 12: True}
    children = find_initial_weights(f"{run.id}@4")
    train(micro.vary("warm", why="?"), initial_weights=children, steps=1)
    assert command("gc", "--snapshots", "--yes")[0] == 0
    assert kept(run) == {4: False, 10: True, 12: True}, "another run starts from step 4"
    assert resume(run, steps=14).run.history().step == 14
