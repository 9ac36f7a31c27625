"""How long 1,000 runs of 1,000 rows take to load: the first time, and again. `python tests/bench/analysis_load.py`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS, ROWS = 1_000, 1_000


def main() -> None:
    """Make the runs, load them twice, each time in a process of its own, and print a small table."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"GPTLAB_RUNS": f"{folder}/runs", "GPTLAB_CACHE": f"{folder}/cache"}
        os.environ |= places
        make_runs()
        old = time.time() - 60  # as runs are that were trained a while ago
        for path in Path(folder, "runs").glob("*/metrics.jsonl"):
            os.utime(path, (old, old))
        print(f"{RUNS:,} runs × {ROWS:,} rows   runs()   metrics()    both")
        for label in ("cold", "warm"):
            done = subprocess.run([sys.executable, __file__, "load"], capture_output=True, text=True, check=True)
            first, second = json.loads(done.stdout)
            print(f"{label:<24}{first:7.2f} s{second:9.2f} s{first + second:7.2f} s")


def make_runs() -> None:
    """Synthetic runs, written by the classes that write real ones, with two checkpoints' manifests each."""
    from gptlab.spec import Experiment, TrainSpec, identify
    from gptlab.tracking import run as tracking
    from gptlab.tracking.checkpoints import MANIFEST, MODEL, FileDigest, Manifest, Progress, directory_of
    from gptlab.tracking.run import TextRecord

    text = TextRecord(source="words", path="/words.txt", bytes=1000, sha256="ab" * 32)
    lines = "".join(json.dumps(row(step)) + "\n" for step in range(ROWS))
    for number in range(RUNS):
        train = TrainSpec(learning_rate=1e-4 * (1 + number // 10))
        experiment = Experiment(name="bench", why="How fast is it read?", train=train)
        identity = identify(experiment, precision="float32", text_sha256="ab" * 32, tokenizer_sha256="cd" * 32)
        run = tracking.create(experiment, identity, number % 10, "float32", text)
        attempt = run.start_attempt(steps=ROWS, device="cpu", torch="2", threads=2, tags=["bench"])
        (run.directory / "metrics.jsonl").write_text(lines)
        for step in (ROWS // 2, ROWS):
            directory = directory_of(run.directory, step)
            directory.mkdir(parents=True)
            manifest = Manifest(
                run=run.id,
                step=step,
                files={MODEL: FileDigest(bytes=1, xxh3_128="0")},
                progress=Progress(best_val_loss=3.0, best_step=step),
                text_sha256="ab" * 32,
                tokenizer_sha256="cd" * 32,
                torch="2",
                threads=2,
            )
            (directory / MANIFEST).write_text(manifest.model_dump_json())
        run.end_attempt(attempt, ROWS, "complete")


def row(step: int) -> dict[str, object]:
    """A row as training writes it, every tenth with a validation."""
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
    """Load everything once, and print the seconds of both tables."""
    from analysis import load

    started = time.perf_counter()
    runs = load.runs()
    first = time.perf_counter() - started
    metrics = load.metrics(runs)
    second = time.perf_counter() - started - first
    assert len(runs) == RUNS
    assert len(metrics) == RUNS * ROWS
    print(json.dumps([first, second]))


if __name__ == "__main__":
    load() if sys.argv[1:] == ["load"] else main()
