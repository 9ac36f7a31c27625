"""Time to load 1,000 runs of 1,000 rows, without and with the cache, vs. pandas reading the same files."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from _table import Row

RUNS, ROWS, PAIRS = 1_000, 1_000, 3
BOUNDS_S = {"cold": 15, "warm": 1}


def rows() -> Iterator[Row]:
    """CPU seconds of complete loads, each in its own process, after its imports."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"GPTLAB_RUNS": f"{folder}/runs"}
        make_runs()
        old = time.time() - 60  # as if trained a while ago
        for path in Path(folder, "runs").glob("*/metrics.jsonl"):
            os.utime(path, (old, old))
        found: dict[str, list[float]] = {"cold": [], "warm": [], "theirs": []}
        for pair in range(PAIRS):
            os.environ["GPTLAB_CACHE"] = f"{folder}/cache-{pair}"
            for side, function in (("cold", "load"), ("warm", "load"), ("theirs", "read")):
                done = subprocess.run([sys.executable, __file__, function], capture_output=True, text=True, check=True)
                found[side].append(float(done.stdout))
    os.environ.clear()
    os.environ |= before
    for side, bound_s in BOUNDS_S.items():
        yield Row(
            "analysis",
            f"{RUNS:,} runs of {ROWS:,} rows, {side}",
            "pandas reading the same metrics",
            "s",
            found[side],
            found["theirs"],
            target=f"<= {bound_s} s",
            clock="cpu",
            note="loads and validates the tables of runs and metrics",
        )


def make_runs(runs: int = RUNS, rows: int = ROWS) -> None:
    """Write synthetic runs with two checkpoint manifests each, using the classes that write real runs."""
    from gptlab.checkpoints.manifest import MANIFEST, MODEL, FileDigest, LoopState, Manifest, checkpoint_directory
    from gptlab.identity import identify
    from gptlab.spec import Experiment, TrainSpec
    from gptlab.tracking.records import TextRecord
    from gptlab.tracking.run import create_run

    text = TextRecord(source="words", path="/words.txt", bytes=1000, sha256="ab" * 32)
    lines = "".join(json.dumps(row(step)) + "\n" for step in range(rows))
    for number in range(runs):
        train = TrainSpec(learning_rate=1e-4 * (1 + number // 10))
        experiment = Experiment(name="bench", why="How fast is it read?", train=train)
        identity = identify(experiment, precision="float32", text_sha256="ab" * 32, tokenizer_sha256="cd" * 32)
        run = create_run(experiment, identity, number % 10, "float32", text)
        attempt = run.start_attempt(steps=rows, device="cpu", torch="2", threads=2, tags=["bench"])
        (run.directory / "metrics.jsonl").write_text(lines)
        for step in (rows // 2, rows):
            directory = checkpoint_directory(run.directory, step)
            directory.mkdir(parents=True)
            manifest = Manifest(
                run=run.id,
                step=step,
                files={MODEL: FileDigest(bytes=1, xxh3_128="0")},
                progress=LoopState(best_val_loss=3.0, best_step=step),
                text_sha256="ab" * 32,
                tokenizer_sha256="cd" * 32,
                torch="2",
                threads=2,
            )
            (directory / MANIFEST).write_text(manifest.model_dump_json())
        run.end_attempt(attempt, rows, "complete")


def row(step: int) -> dict[str, object]:
    """A row as training writes it; every tenth has a validation loss."""
    noise = ((step * 7919) % 1009) / 1009
    logged: dict[str, object] = {
        "step": step,
        "tokens": 512 * step,
        "epoch": step * 0.001234567890123,
        "attempt": 1,
        "time": 1.7e9 + step + noise,
        "elapsed_s": 0.3 * step + noise,
        "train/loss": 11 - 6 * step / ROWS + noise,
        "optim/lr": 1e-3,
        "optim/grad_norm": 1 + noise,
        "optim/clip_frac": 0.5 * noise,
        "perf/tokens_per_s": 1500 + 100 * noise,
        "perf/step_ms": 300 + 10 * noise,
        "perf/data_wait_frac": 0.001 * noise,
        "perf/peak_mem_gib": 1.234567,
    }
    if step % 10 == 0:
        logged |= {"val/loss": 11 - 6 * step / ROWS, "val/loss_se": 0.1, "val/bpb": 4.5, "val/yardstick": "0123abcd"}
    return logged


def load() -> None:
    """Load everything once and print the CPU seconds."""
    from analysis import load

    started = time.process_time()
    runs = load.runs()
    metrics = load.metrics(runs)
    print(time.process_time() - started)
    assert len(runs) == RUNS
    assert len(metrics) == RUNS * ROWS


def read() -> None:
    """Read each file with pandas and print the CPU seconds."""
    import pandas as pd

    started = time.process_time()
    paths = Path(os.environ["GPTLAB_RUNS"]).glob("*/metrics.jsonl")
    metrics = pd.concat([pd.read_json(path, lines=True).assign(run=path.parent.name) for path in paths])
    print(time.process_time() - started)
    assert len(metrics) == RUNS * ROWS


if __name__ == "__main__":
    {"load": load, "read": read, "make": make_runs}[sys.argv[1]](*map(int, sys.argv[2:]))
