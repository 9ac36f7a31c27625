"""How time and memory grow with model size, sequence length, text size and number of runs.

Each point is a new process. Times are CPU seconds, which other processes on the machine affect less.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from _table import Growth

ROOT = Path(__file__).parents[2]
GPTLAB = str(Path(sys.executable).with_name("gptlab"))
MODELS = {"1 M": (8, 1, 1), "7 M": (64, 2, 2), "29 M": (256, 4, 4), "163 M": (768, 12, 12), "838 M": (1280, 36, 20)}
"""Width, layers and heads; a 1.5 B model needs 24 GB with gradients and moments."""
TOKENS = 256
LENGTHS = (64, 256, 1024, 4096)
TEXTS_MB = (1, 16, 128, 1024)
RUNS, ROWS = (10, 100, 1000), 100
MB = 10**6


def rows() -> Iterator[Growth]:
    """One `Growth` per quantity, with one value per size."""
    yield from _training("parameters", [(width, layers, heads, TOKENS) for width, layers, heads in MODELS.values()])
    yield from _training("sequence length", [(128, 4, 4, length) for length in LENGTHS])
    with tempfile.TemporaryDirectory() as folder:
        yield from _tokenizing(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        yield from _listing(Path(folder))


def _training(by: str, shapes: list[tuple[int, int, int, int]]) -> Iterator[Growth]:
    points = [json.loads(_process([sys.executable, __file__, "step", *map(str, shape)]).stdout) for shape in shapes]
    sizes = [
        point["parameters"] if by == "parameters" else shape[3] for shape, point in zip(shapes, points, strict=True)
    ]
    note = f"1 × {TOKENS} tokens" if by == "parameters" else "tiny, one sequence"
    yield Growth("training step", by, "s", sizes, [point["step_s"] for point in points], clock="cpu", note=note)
    yield Growth("memory of training", by, "MiB", sizes, [point["peak_mib"] for point in points], note=note)


def _tokenizing(folder: Path) -> Iterator[Growth]:
    from tokenizing import text_of

    points = []
    for size in TEXTS_MB:
        path = text_of(folder, size)
        environment = {"GPTLAB_CACHE": f"{folder}/cache"}
        points.append(json.loads(_process([sys.executable, __file__, "tokenize", str(path)], environment).stdout))
        path.unlink()
    yield Growth("tokenizing", "MB of text", "s", TEXTS_MB, [point["cpu_s"] for point in points], clock="cpu")
    yield Growth("memory of tokenizing", "MB of text", "MiB", TEXTS_MB, [point["peak_mib"] for point in points])


def _listing(folder: Path) -> Iterator[Growth]:
    commands = {
        "gptlab --help": [GPTLAB, "--help"],
        "gptlab list": [GPTLAB, "list"],
        "gptlab runs": [GPTLAB, "runs"],
        "make report, cold": [sys.executable, "-m", "analysis.report"],
        "make report, warm": [sys.executable, "-m", "analysis.report"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for count in RUNS:
        environment = {"GPTLAB_RUNS": f"{folder}/runs-{count}", "GPTLAB_CACHE": f"{folder}/cache-{count}"}
        maker = str(Path(__file__).with_name("analysis_load.py"))
        _process([sys.executable, maker, "make", str(count), str(ROWS)], environment)
        for name, command in commands.items():
            before = os.times()
            _process(command, environment)
            after = os.times()
            cpu_s = (after.children_user + after.children_system) - (before.children_user + before.children_system)
            seconds[name].append(cpu_s)
    for name, values in seconds.items():
        yield Growth(name, f"runs of {ROWS} rows", "s", RUNS, values, clock="cpu")


def _process(command: list[str], changes: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(changes or {}), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)


def _step(width: int, layers: int, heads: int, length: int) -> None:
    import torch
    from _pairs import timed

    from gptlab.model import gpt
    from gptlab.spec import Experiment, ModelSpec, TrainSpec
    from gptlab.training import optimizer
    from gptlab.training.memory import keep_freed_memory
    from gptlab.training.settings import Available, resolve_settings
    from gptlab.training.step import TrainingStep

    keep_freed_memory()
    shape = ModelSpec(n_layer=layers, n_head=heads, n_embd=width, context_length=max(length, 1024))
    train = TrainSpec(batch_size=1, sequence_length=length)
    spec = Experiment(name="growth", why="How does the cost of a step grow?", model=shape, train=train)
    model = gpt.build(shape, seed=0)
    settings = resolve_settings("cpu", "float32", Available.here())
    adamw = optimizer.build(model, train, fused=settings.fused)
    training_step = TrainingStep(model, adamw, spec, 0, settings)
    batch = torch.arange(length + 1).view(1, -1)

    def step() -> None:
        training_step(batch, 0)

    step()
    taken = [timed(step) for _ in range(2 if shape.parameters > 10**8 else 5)]
    fastest = min(one.cpu_s for one in taken)
    print(json.dumps({"parameters": shape.parameters, "step_s": fastest, "peak_mib": taken[-1].peak_mib}))


def _tokenize(path: str) -> None:
    from _pairs import timed

    from gptlab.data import tokens
    from gptlab.data.text import locate

    cost = timed(lambda: tokens.prepare(locate(path), 0.1))
    print(json.dumps({"cpu_s": cost.cpu_s, "peak_mib": cost.peak_mib}))


if __name__ == "__main__":
    if sys.argv[1] == "step":
        _step(*map(int, sys.argv[2:]))
    else:
        _tokenize(sys.argv[2])
