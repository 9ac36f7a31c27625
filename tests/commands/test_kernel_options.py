"""--compile and --capture: what they need, what is printed, and what a change means on resume."""

from dataclasses import replace

import pytest

from gptlab import compiler
from gptlab.commands import run_messages
from gptlab.errors import BadInputError
from gptlab.terminal.console import Console
from gptlab.training import plan
from gptlab.training.settings import Available, choose_kernels, resolve_settings

CPU = resolve_settings("cpu", "float32", Available.here())
CUDA = resolve_settings("cuda", "auto", Available(cuda=True, mps=False, bfloat16=True))


@pytest.fixture
def lacking(monkeypatch):
    monkeypatch.setattr(compiler, "missing", lambda device: "a compiler (install gcc, or set CC)")


def test_the_choice_of_the_user_counts():
    assert choose_kernels(CUDA, None, None) == CUDA
    assert choose_kernels(CUDA, compile_=False, capture=None) == replace(CUDA, compile=False)
    assert choose_kernels(CUDA, compile_=None, capture=False) == replace(CUDA, capture=False)


def test_compile_without_a_compiler_is_refused_and_nothing_is_written(train, micro, lacking, tmp_path):
    with pytest.raises(BadInputError, match=r"^--compile needs a compiler \(install gcc, or set CC\); or leave"):
        train(micro, compile=True)
    assert not (tmp_path / "runs").exists()


def test_capture_without_cuda_is_refused_and_nothing_is_written(train, micro, tmp_path):
    with pytest.raises(BadInputError, match="^--capture needs a CUDA device, not cpu; leave it out$"):
        train(micro, capture=True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("lacking")
def test_a_gpu_without_a_compiler_is_used_with_one_notice(capsys):
    without = resolve_settings("cuda", "auto", Available(cuda=True, mps=False, bfloat16=True, compiler=False))
    assert (without.compile, without.capture) == (False, True)
    run_messages.missing_compiler(without, None, Console())
    run_messages.missing_compiler(without, requested=False, console=Console())
    run_messages.missing_compiler(CPU, None, Console())
    notice = "the model is not compiled, which would make training faster; it needs a compiler (install gcc, or set CC)"
    assert " ".join(capsys.readouterr().out.split()) == f"note: {notice}"


def test_the_opening_lines_say_how_the_step_runs(train, micro, monkeypatch, capsys):
    train(micro, steps=1)
    assert "thread · float32 (chosen by auto; part of the id)\n" in capsys.readouterr().err
    settings = replace(CPU, compile=True, capture=True)
    run = train(micro, steps=2).run
    from gptlab.data import text
    from gptlab.data.vocabularies import BYTES
    from gptlab.training.training_data import load_training_data

    data = load_training_data(micro, text.locate(micro.data.text), 0, BYTES)
    capsys.readouterr()
    run_messages.opening(run, 0, 2, data, settings, "off", Console())
    assert "(chosen by auto; part of the id) · compiled · captured as a CUDA graph\n" in capsys.readouterr().out


def test_another_choice_on_resume_is_noticed(train, micro, monkeypatch, capsys):
    train(micro, steps=10)
    capsys.readouterr()
    real = plan.resolve_settings
    monkeypatch.setattr(plan, "resolve_settings", lambda *arguments: replace(real(*arguments), compile=True))
    monkeypatch.setattr("gptlab.training.loop.compile_blocks", lambda model: None)
    run = train(micro, steps=20).run
    assert "changed since the last attempt: compilation; bitwise equal" in capsys.readouterr().err
    assert [start["compile"] for start in run.history().starts] == [False, True]


def test_attempts_of_earlier_versions_were_neither_compiled_nor_captured(train, micro, capsys):
    history = train(micro, steps=1).run.history()
    del history.attempts[0]["compile"], history.attempts[0]["capture"]
    assert [(start["compile"], start["capture"]) for start in history.starts] == [(False, False)]
