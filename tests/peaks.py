"""Measure the peak memory of real runs on the CPU, each in a forked child, and print what `gptlab plan` predicts.

Run as a script with a text and experiments in JSON. The peak counts from the moment before the model exists; the
libraries have then been used once by a small run, because their own buffers and code belong to no model.
"""

import ctypes
import gc
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from support import run_attempt

from gptlab.model.gpt import GPT
from gptlab.spec import Experiment
from gptlab.tracking.records import RunRecord
from gptlab.training import state
from gptlab.training.attempt import Attempt
from gptlab.training.footprint import Layout, footprint

STEPS = 3
ATTEMPTS, CLOSE = 3, 0.9
"""A measurement is repeated if the prediction is less than nine tenths of it."""
SMALL = {
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.n_embd": 32,
    "model.context_length": 64,
    "train.sequence_length": 16,
    "train.batch_size": 2,
    "data.val_windows": 2,
}


def status(name: str) -> int:
    """A size from `/proc/self/status` in bytes."""
    (size,) = re.findall(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(size) * 1024


def measure(experiment: Experiment) -> dict[str, Any]:
    """Train for a few steps with a validation and a checkpoint, and compare with the prediction."""
    os.environ["GPTLAB_RUNS"] = tempfile.mkdtemp(dir=Path.cwd())  # without the runs of an earlier measurement
    Attempt._add_sample = lambda self: None  # it takes time and less memory
    run_attempt(experiment.with_changes({"name": "small", **SMALL}), steps=1)
    before = []
    build = state.initial_model

    def measured_build(record: RunRecord) -> GPT:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide a part of what the model needs
        before.append(status("VmRSS"))
        return build(record)

    state.initial_model = measured_build
    result = run_attempt(experiment, steps=STEPS)
    predicted = footprint(experiment, Layout("cpu", "float32"))
    files = result.run.directory.glob(f"checkpoints/*{STEPS}/*.safetensors")
    return {
        "measured": status("VmHWM") - before[0],
        "predicted": predicted.total,
        "files": {path.name: path.stat().st_size for path in files},
        "predicted_files": {
            "model.safetensors": predicted.weights_file,
            "optimizer.safetensors": predicted.optimizer_file,
        },
    }


def in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of `work` in a forked child, whose memory is as it was at the start."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        os.write(writer, json.dumps(work()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        result = pipe.read()
    os.waitpid(child, 0)
    return json.loads(result)


def least(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the smallest of up to three measurements: how glibc's heap is fragmented differs, and only adds memory."""
    results = [in_child(work)]
    while len(results) < ATTEMPTS and results[-1]["measured"] * CLOSE > results[-1]["predicted"]:
        results.append(in_child(work))
    return min(results, key=lambda result: int(result["measured"]))


def experiment(changes: dict[str, Any], text: str) -> Experiment:
    """An experiment with a shape."""
    base = Experiment(name="shape", why="How much memory does it take?")
    return base.with_changes({"data.text": text, "data.val_windows": 4, "train.keep_checkpoints": 2, **changes})


def main(text: str, shapes: str) -> None:
    """Print one JSON document."""
    found = {}
    for name, changes in json.loads(shapes).items():
        found[name] = least(partial(measure, experiment(changes, text)))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
