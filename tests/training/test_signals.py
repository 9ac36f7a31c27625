"""Each signal that asks training to end saves first, and a reader or a terminal that is gone ends nothing."""

import fcntl
import os
import signal
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Ended, in_child

from gptlab.commands.run import Options, run_experiment
from gptlab.interrupts import STOP_SIGNALS, interrupts
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.tracking.run import LOG, all_runs
from gptlab.training.loop import Hooks
from gptlab.training.signals import StopSignals


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_every_signal_that_asks_a_process_to_end_is_handled():
    names = {number.name for number in STOP_SIGNALS}
    assert names >= {"SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"}


def test_an_interrupt_whose_exception_python_dropped_still_stops_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "received", False)
    with pytest.raises(KeyboardInterrupt):
        interrupts.handle(signal.SIGINT, None)
    with StopSignals() as signals:
        assert signals.received is signal.SIGINT


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_remembered_and_the_handler_restored(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        send(number)
    assert signals.received == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGHUP, signal.SIGHUP],  # from the shell and from the kernel
        [signal.SIGXCPU] * 3,  # every second
        [signal.SIGUSR1, signal.SIGTERM],  # Slurm, some time before the limit and at the limit
        [signal.SIGTERM, signal.SIGHUP],  # systemd with SendSIGHUP
    ],
    ids=repr,
)
def test_signals_that_systems_repeat_do_not_end_the_save(numbers):
    with StopSignals() as signals:
        send(*numbers)
    assert signals.received == numbers[0]


def test_the_second_insistent_signal_ends_the_process(tmp_path):
    def work() -> None:
        with StopSignals():
            send(signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)

    assert in_child(work, tmp_path).code == 128 + signal.SIGTERM


@pytest.fixture
def small(micro: Experiment) -> Experiment:
    return micro.with_changes({"name": "small", "model.n_embd": 4, "model.n_layer": 1, "train.steps": 20})


@pytest.fixture
def trained(small: Experiment, tmp_path: Path) -> Callable[..., Ended]:
    """`trained(at_start, at_step_12)` trains in a child, calls both functions there, and returns how it ended."""

    def train(at_start: Callable[[], None], at_step_12: Callable[[], None] = lambda: None, **streams: int) -> Ended:
        def hook(step: int, loss: float | None) -> None:
            if step == 12:
                at_step_12()

        def work() -> int:
            at_start()
            hooks = Hooks(on_step=[hook])
            return run_experiment(small, 0, Options(wandb="off"), Console(), hooks=hooks).exit_code

        return in_child(work, tmp_path, **streams)

    return train


def status() -> tuple[str, int]:
    (run,) = all_runs()
    return run.history().status, run.history().step


def log() -> str:
    return (all_runs()[0].directory / LOG).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT])
def test_a_signal_saves_first(trained, number):
    end = trained(lambda: None, lambda: send(number, signal.SIGHUP))
    assert (end.code, end.err) == (128 + number, "")
    assert f"{number.name}: saving, then stopping" in end.out
    assert status() == ("interrupted", 12)
    assert (all_runs()[0].directory / "checkpoints" / "step-00000012").is_dir()


@pytest.mark.slow
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(trained):
    """As SIGHUP under `nohup`."""
    end = trained(lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN), lambda: send(signal.SIGHUP))
    assert (end.code, status()) == (0, ("complete", 20))


@pytest.mark.slow
def test_training_continues_without_a_reader(trained):
    reader, writer = os.pipe()
    os.close(reader)
    end = trained(lambda: None, stdout=writer)
    assert end == Ended(0, "", "")
    assert status() == ("complete", 20)
    assert "note: nothing can be printed any more: Broken pipe" in log()
    assert "is complete: 20 steps" in log()


@pytest.mark.slow
def test_training_continues_with_a_full_disk_for_its_output_and_its_log(trained, monkeypatch):
    monkeypatch.setattr("gptlab.commands.run.LOG", "/dev/full")
    full = os.open("/dev/full", os.O_WRONLY)
    assert trained(lambda: None, stdout=full) == Ended(0, "", "")
    assert status() == ("complete", 20)


def test_a_log_that_cannot_be_written_is_one_notice(tmp_path, capfd):
    for path, reason in ((Path("/dev/full"), "is incomplete: No space"), (tmp_path, "cannot be written: Is a dir")):
        console = Console()
        console.log_to(path)
        console.print("one")
        console.print("two")
        out = capfd.readouterr().out
        assert sorted(line[: len(f"note: {path} {reason}")] for line in out.splitlines()) == sorted(
            [f"note: {path} {reason}", "one", "two"]
        )


@pytest.mark.slow
@pytest.mark.parametrize("hangup_ignored", [False, True])
def test_a_terminal_that_closes_saves_or_is_ignored(trained, hangup_ignored):
    """The progress bar is drawn by a thread on a terminal of the child's own."""
    terminal: list[int] = []

    def open_terminal() -> None:
        os.setsid()
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for descriptor in (1, 2):
            os.dup2(slave, descriptor)
        os.close(slave)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        terminal.append(master)
        if hangup_ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    end = trained(open_terminal, lambda: os.close(terminal.pop()))
    assert end.err == ""
    if hangup_ignored:
        assert (end.code, status()) == (0, ("complete", 20))
    else:
        assert (end.code, status()) == (128 + signal.SIGHUP, ("interrupted", 12))
    assert "note: nothing can be printed any more: Input/output error" in log()
