"""What tests call, as opposed to what they are given."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptlab import cli
from gptlab.commands.run import Options, Result, run_experiment
from gptlab.digests import document_digest
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.tracking.records import InitialWeights
from gptlab.training.loop import Hooks

PATIENCE_S = 60
"""How long to wait for other processes on a busy machine."""


def run_attempt(
    experiment: Experiment,
    seed: int = 0,
    steps: int | None = None,
    hooks: Hooks | None = None,
    initial_weights: InitialWeights | None = None,
    **options: object,
) -> Result:
    """Run an experiment as the command does, with W&B off."""
    if steps is not None:
        experiment = experiment.with_changes({"train.steps": steps})
    settings = Options(**{"wandb": "off", **options})
    return run_experiment(experiment, seed, settings, Console(stderr=True), initial_weights, hooks)


def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command of gptlab in this process.

    `run("runs")` returns what the command prints; with a code, the error of a command that ends with it.
    """

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["gptlab", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert (ended.value.code or 0) == code, err
        return err if code else out

    return run


def eventually(holds: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def descendants(process: int) -> dict[int, str]:
    """Return the processes that a process started, directly or not, by id, with their names."""
    found = {}
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        found[int(child)] = Path(f"/proc/{child}/comm").read_text().strip()
        found |= descendants(int(child))
    return found


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest's content and its digest accordingly."""
    content = json.loads(path.read_text())["content"]
    change(content)
    path.write_text(json.dumps({"digest": document_digest(content), "content": content}))
