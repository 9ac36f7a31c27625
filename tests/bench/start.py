"""Startup time of commands: `--help`, `list`, and `run` up to the end of the first step."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from _pairs import Work, interleave
from _table import Row

ROOT = Path(__file__).parents[2]
GPTLAB = str(Path(sys.executable).with_name("gptlab"))
TYPER = "import typer"
VALIDATING = "import typer, pydantic"
BUILDING = "import torch; from experiments.tiny import tiny; from gptlab.model.gpt import build; build(tiny.model, 0)"
TRAINING = """
import os
from gptlab import cli
from gptlab.terminal.progress import StepProgress

def update(self, step, loss):
    if step == 1:
        os._exit(0)

StepProgress.update = update
cli.main()
"""
NO_VALIDATION = ["--set=data.val_windows=1"]


def rows() -> Iterator[Row]:
    """Wall time of complete processes."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"GPTLAB_CACHE": f"{folder}/cache", "PYTHONPATH": str(ROOT)}
        started = 0

        def process(*command: str) -> Work:
            def work() -> None:
                nonlocal started
                started += 1
                fresh = environment | {"GPTLAB_RUNS": f"{folder}/runs-{started}"}
                subprocess.run(command, cwd=ROOT, env=fresh, stdout=subprocess.DEVNULL, check=True)

            return work

        def python(code: str, *arguments: str) -> Work:
            return process(sys.executable, "-c", code, *arguments)

        run = ["run", "tiny", "--wandb", "off"]
        yield row("gptlab --help", process(GPTLAB, "--help"), TYPER, python(TYPER), "<= 1.5", pairs=15)
        yield row("gptlab list", process(GPTLAB, "list"), VALIDATING, python(VALIDATING), "<= 0.5 s", pairs=15)
        building = "import torch, build the model"
        yield row(
            "gptlab run tiny, until the first step ends",
            python(TRAINING, *run),
            building,
            python(BUILDING),
            "<= 1.3",
            note="includes validation on 64 windows",
        )
        yield row(
            "the same without validation",
            python(TRAINING, *run, *NO_VALIDATION),
            building,
            python(BUILDING),
            note="validates on one window",
        )


def row(
    what: str, ours: Work, reference: str, theirs: Work, target: str = "", *, pairs: int = 7, note: str = ""
) -> Row:
    """Measure both sides, interleaved, after one unmeasured pair that fills the page cache."""
    sides: dict[str, Callable[[], object]] = {"ours": ours, "theirs": theirs}
    interleave(sides, 1)
    seconds = {side: [one.wall_s for one in took] for side, took in interleave(sides, pairs).items()}
    return Row("start", what, reference, "s", **seconds, target=target, note=note)
