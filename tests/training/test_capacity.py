"""What a run says and does where processors or memory are limited."""

import os

import pytest
import torch

from gptlab.limits import MemoryLimit, Processors
from gptlab.spec import ModelSpec
from gptlab.tracking.records import ATTEMPT
from gptlab.training import capacity
from gptlab.training.capacity import describe_threads, limit_threads, memory_notice

GIB = 2**30
REFERENCE = ModelSpec()  # 163,037,184 parameters: 2.43 GiB of weights, gradients and moments
START = ATTEMPT.validate_python({"event": "start", "steps": 5, "out_of_memory_kills": 1})
OLD_START = ATTEMPT.validate_python({"event": "start", "steps": 5})
END = ATTEMPT.validate_python({"event": "end", "step": 5, "status": "failed"})


@pytest.fixture
def threads(monkeypatch):
    """The numbers that torch is set to."""
    chosen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1] if chosen else 4)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS")
    return chosen


def allow(monkeypatch, cores, quota):
    monkeypatch.setattr(capacity, "processors", lambda: Processors(cores, quota))


@pytest.mark.parametrize(("cores", "quota", "expected"), [(4, 1.0, [1]), (2, None, [2]), (8, None, []), (4, 6.0, [])])
def test_threads_are_lowered_to_what_the_processors_allow(threads, monkeypatch, cores, quota, expected):
    allow(monkeypatch, cores, quota)
    limit_threads()
    assert threads == expected


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_users_own_number_of_threads_holds(threads, monkeypatch, variable):
    allow(monkeypatch, 4, 1.0)
    monkeypatch.setenv(variable, "4")
    limit_threads()
    assert threads == []


def test_the_quota_is_printed(threads, monkeypatch):
    allow(monkeypatch, 2, 1.0)
    limit_threads()
    assert describe_threads() == "1 thread (CPU quota 1 of 2 cores)"
    allow(monkeypatch, 2, None)
    assert describe_threads() == "1 thread"


def limit_memory(monkeypatch, gib, in_use=0.25, kills=None):
    limit = MemoryLimit(int(gib * GIB), "the memory limit of the container or control group", int(in_use * GIB))
    monkeypatch.setattr(capacity, "memory_limit", lambda: limit)
    monkeypatch.setattr(capacity, "out_of_memory_kills", lambda: kills)


@pytest.mark.parametrize(("device", "gib", "noted"), [("cpu", 2.5, True), ("cpu", 3, False), ("cuda", 2.5, False)])
def test_a_limit_below_what_the_state_needs_is_noted(monkeypatch, device, gib, noted):
    limit_memory(monkeypatch, gib)
    notice = memory_notice(REFERENCE.parameters, device, [], killed=False)
    assert bool(notice) == noted
    if notice:
        assert "memory may not suffice: the run needs at least 2.68 GiB (2.43 GiB of it for weights" in notice
        assert "the memory limit of the container or control group is 2.50 GiB" in notice


@pytest.mark.parametrize(
    ("attempts", "killed", "gib", "kills", "said"),
    [
        ([START], True, 3, None, True),  # tight
        ([], True, 3, None, True),
        ([START, END], True, 3, None, True),  # killed before it recorded its start
        ([START, END], False, 3, 2, False),
        ([START], True, 64, None, False),
        ([START], True, 64, 1, False),
        ([START], True, 64, 2, True),
        ([OLD_START], True, 64, 2, False),
        ([START, END], True, 64, 2, False),
    ],
)
def test_the_attempt_after_a_death_for_memory_says_so(monkeypatch, attempts, killed, gib, kills, said):
    limit_memory(monkeypatch, gib, kills=kills)
    notice = memory_notice(REFERENCE.parameters, "cpu", attempts, killed=killed)
    assert bool(notice) == said
    assert not notice or notice.startswith("the last attempt was killed, probably for its memory: the run needs")


def test_a_run_notes_a_tight_limit_before_it_starts_and_after_a_death(train, micro, monkeypatch, capfd):
    limit_memory(monkeypatch, 0.2, in_use=0.25)
    run = train(micro, steps=5).run
    printed = capfd.readouterr().err
    assert printed.index("memory may not suffice") < printed.index("starts")
    (run.directory / "heartbeat").write_text('{"host": "h", "pid": 1, "since": "then"}')  # as if it was killed
    train(micro, steps=10)
    assert "the last attempt was killed, probably for its memory" in capfd.readouterr().err
    train(micro, steps=15)
    assert "memory may not suffice" in capfd.readouterr().err


def test_an_unlimited_run_says_nothing_of_memory(train, micro, capfd):
    train(micro, steps=5)
    assert "memory" not in capfd.readouterr().err


def test_commands_that_compute_limit_their_threads(train, micro, monkeypatch):
    from gptlab.commands import evaluate, run, sample
    from gptlab.commands.run import Options
    from gptlab.terminal.console import Console

    calls = []
    for command in (run, evaluate, sample):
        monkeypatch.setattr(command, "limit_threads", lambda name=command.__name__: calls.append(name))
    trained = train(micro, steps=5).run
    run.resume_run(trained, Options(wandb="off"), Console(stderr=True))
    evaluate.evaluate_run(trained, step=None, text=None, device="cpu", console=Console(stderr=True))
    sample.sample(trained, None, "The", 1, max_tokens=1, temperature=1, top_k=0, seed=0)
    modules = ("run", "run", "evaluate", "sample")
    assert calls == [f"gptlab.commands.{name}" for name in modules]
    assert os.environ["OMP_NUM_THREADS"] == "1"
