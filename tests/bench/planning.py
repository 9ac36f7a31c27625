"""The memory that `gptlab plan` predicts, against the measured peak of real runs of large models on the CPU."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from _table import Row

ROOT = Path(__file__).parents[2]
MIB = 2**20
BASELINE = {"model.n_layer": 12, "model.n_head": 12, "model.n_embd": 768, "data.val_windows": 4}
SHAPES = {
    "baseline, 4 × 100": {**BASELINE, "train.batch_size": 4, "train.sequence_length": 100},
    "baseline, 2 × 1024": {**BASELINE, "train.batch_size": 2, "train.sequence_length": 1024},
    "baseline, tied, 4 × 100": {
        **BASELINE,
        "model.tied": True,
        "train.batch_size": 4,
        "train.sequence_length": 100,
    },
    "838 M, 1 × 256": {
        "model.n_layer": 36,
        "model.n_head": 20,
        "model.n_embd": 1280,
        "data.val_windows": 4,
        "train.batch_size": 1,
        "train.sequence_length": 256,
    },
}


def rows() -> Iterator[Row]:
    """One row per shape: the prediction and the measurement, whose ratio is to be within 15% of 1."""
    for what, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "GPTLAB_RUNS": f"{folder}/runs"}
            command = [sys.executable, str(ROOT / "tests" / "peaks.py"), "pandas-docs", json.dumps({what: shape})]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        (found,) = json.loads(done.stdout).values()
        predicted, measured = found["predicted"] / MIB, found["measured"] / MIB
        note = "" if 0.85 < predicted / measured < 1.15 else "more than 15% off"
        yield Row("plan", what, "measured peak of a run", "MiB", [predicted], [measured], note=note)
