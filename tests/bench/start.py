"""How long a command takes from being typed: to its help, to the list of experiments, to the first step of training."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from _pairs import Work, in_turns
from _table import Row

ROOT = Path(__file__).parents[2]
GPTLAB = str(Path(sys.executable).with_name("gptlab"))
TYPER = "import typer"
VALIDATING = "import typer, pydantic"
BUILDING = "import torch; from experiments.tiny import tiny; from gptlab.model.gpt import build; build(tiny.model, 0)"
TRAINING = """
import os
from gptlab import cli, console

def step(self, step, loss):
    if step == 1:
        os._exit(0)

console.TrainingDisplay.step = step
cli.main()
"""
UNWATCHED = ["--set=data.val_windows=1", "--set=train.snapshots=false"]


def rows() -> Iterator[Row]:
    """Whole processes, from their start to their end."""
    with tempfile.TemporaryDirectory() as folder:
        places = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        places |= {"GPTLAB_CACHE": f"{folder}/cache", "PYTHONPATH": str(ROOT)}
        made = 0

        def process(*command: str) -> Work:
            def work() -> None:
                nonlocal made
                made += 1
                fresh = places | {"GPTLAB_RUNS": f"{folder}/runs-{made}"}
                subprocess.run(command, cwd=ROOT, env=fresh, stdout=subprocess.DEVNULL, check=True)

            return work

        def python(code: str, *arguments: str) -> Work:
            return process(sys.executable, "-c", code, *arguments)

        run = ["run", "tiny", "--wandb", "off"]
        yield row("gptlab --help", process(GPTLAB, "--help"), TYPER, python(TYPER), "<= 1.5", pairs=15)
        yield row("gptlab list", process(GPTLAB, "list"), VALIDATING, python(VALIDATING), "<= 0.5 s", pairs=15)
        building = "import torch and the model's construction"
        yield row(
            "gptlab run tiny, to the end of its first step",
            python(TRAINING, *run),
            building,
            python(BUILDING),
            "<= 1.3",
            note="includes the validation of step 0 over 64 windows, its row, and the snapshot of step 0 on the disk",
        )
        yield row(
            "the same without a validation and a snapshot before it",
            python(TRAINING, *run, *UNWATCHED),
            building,
            python(BUILDING),
            note="validates on one window",
        )


def row(what: str, ours: Work, peer: str, theirs: Work, target: str = "", *, pairs: int = 7, note: str = "") -> Row:
    """Both sides once unseen, so that files are in memory, then in turns."""
    sides: dict[str, Callable[[], object]] = {"ours": ours, "theirs": theirs}
    in_turns(sides, 1)
    seconds = {side: [one.wall_s for one in took] for side, took in in_turns(sides, pairs).items()}
    return Row("start", what, peer, "s", **seconds, target=target, note=note)
