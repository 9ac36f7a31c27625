"""What a shell completes, asked as bash asks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab import completion
from gptlab.data import text

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "gptlab"]


def complete(line, *, cwd=ROOT, program=PROGRAM, **environment):
    words = line.split(" ")
    asked = {"_GPTLAB_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        program, cwd=cwd, env={**os.environ, **asked, **environment}, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    for name in ("tiny-s0-00000000", "tiny-s1-11111111", ".trash", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for name in ("tiny-s0-00000000", "tiny-s1-11111111"):
        (tmp_path / "runs" / name / "run.json").touch()  # a damaged run can be named, too
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "runs"))


@pytest.mark.usefixtures("two_runs")
def test_runs_experiments_texts_and_commands_are_completed():
    assert complete("gptlab eval tiny-s") == ["tiny-s0-00000000", "tiny-s1-11111111"]
    assert complete("gptlab watch tiny-s0-00000000 tiny-s") == ["tiny-s0-00000000", "tiny-s1-11111111"]
    assert complete("gptlab run base") == ["baseline"]
    assert complete("gptlab show tiny-s")[-3:] == ["tiny-sgd", "tiny-s0-00000000", "tiny-s1-11111111"]
    assert complete("gptlab run tiny --text s") == ["shakespeare"]
    assert complete("gptlab samp") == ["sample"]
    assert "--temperature" in complete("gptlab sample tiny --t")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.usefixtures("two_runs")
def test_the_script_for_bash_fills_compreply(tmp_path):
    script = subprocess.run([*PROGRAM, "--show-completion", "bash"], cwd=ROOT, capture_output=True, text=True)
    (tmp_path / "script").write_text(script.stdout)
    program = tmp_path / "gptlab"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gptlab "$@"\n')
    program.chmod(0o755)
    line = (
        f"source {tmp_path}/script; COMP_WORDS=(gptlab rm tiny-s1); COMP_CWORD=2; _gptlab_completion {program}; "
        'echo "${COMPREPLY[@]}"; complete -p gptlab'
    )
    done = subprocess.run(["bash", "--norc", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["tiny-s1-11111111", "complete -o default -F _gptlab_completion gptlab"]


def test_completion_is_installed_for_the_shell_that_is_named(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    done = subprocess.run([*PROGRAM, "--install-completion", "bash"], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0
    assert "_GPTLAB_COMPLETE" in (tmp_path / ".bash_completions" / "gptlab.sh").read_text()


def test_other_repositories_are_not_executed(tmp_path):
    for folder in ("other", "own/runs/run"):
        (tmp_path / folder / "experiments").mkdir(parents=True)
        (tmp_path / folder / "experiments" / "a.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
        (tmp_path / folder / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    run = tmp_path / "own" / "runs" / "run"
    (run / "run.json").touch()
    (run / "pyproject.toml").write_text("[tool.gptlab]\n")  # a run that looks like a project
    for folder in (tmp_path / "other", run):
        complete("gptlab run tin", cwd=folder)
    assert not (tmp_path / "executed").exists()


def test_a_completion_that_fails_says_nothing(tmp_path):
    folder = tmp_path / "project"
    (folder / "experiments").mkdir(parents=True)
    (folder / "pyproject.toml").write_text("[tool.gptlab]\n")
    (folder / "experiments" / "broken.py").write_text("import sys; print('noise'); sys.exit('stopped')\n")
    assert complete("gptlab run ti", cwd=folder) == []
    assert complete("gptlab eval ti", cwd=folder, GPTLAB_RUNS=str(folder / "pyproject.toml")) == []
    assert complete("gptlab run ti", COMP_CWORD="x") == []
    assert complete("gptlab run ti", COMP_WORDS='gptlab run "ti') != ["error"]


def test_completion_imports_nothing_heavy():
    program = [
        sys.executable,
        "-c",
        "import sys\n"
        "from gptlab import cli\n"
        "sys.argv = ['gptlab']\n"
        "try:\n"
        "    cli.main()\n"
        "finally:\n"
        "    print(*({'torch', 'wandb', 'pandas', 'tiktoken', 'numpy'} & sys.modules.keys()))\n",
    ]
    assert complete("gptlab show baseli", program=program) == ["baseline"]


def test_the_named_texts_are_those_of_the_data():
    assert tuple(completion.texts("")) == text.NAMED
