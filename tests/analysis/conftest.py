"""Synthetic runs, written by the classes that write real ones."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from selenium.webdriver.chrome.webdriver import WebDriver

from analysis.browser import headless
from gptlab.checkpoints.manifest import MANIFEST, MODEL, LoopState, Manifest, checkpoint_directory, compute_digest
from gptlab.identity import identify
from gptlab.spec import Experiment, ModelSpec, TrainSpec
from gptlab.tracking import run as tracking
from gptlab.tracking.metrics import MetricsFile
from gptlab.tracking.records import Outcome
from gptlab.tracking.run import Run, TextRecord

Tensors = Mapping[str, NDArray[Any]]
MakeRun = Callable[..., Run]

FACTS = {
    "from_step": 0,
    "steps": 20,
    "device": "cpu",
    "torch": "2.13.0",
    "threads": 2,
    "host": "somewhere",
    "platform": "Linux",
    "python": "3.11.9",
    "packages": {"torch": "2.13.0"},
    "git_commit": "c0ffee" + "0" * 34,
    "git_dirty": False,
    "diff_sha256": None,
    "tags": ["first", "second"],
    "notes": "",
}


@pytest.fixture(scope="session")
def browser() -> Iterator[WebDriver]:
    """A real browser, one for all tests of a worker."""
    with headless() as driver:
        yield driver


@pytest.fixture(scope="session")
def weights() -> Tensors:
    """Two blocks of one matrix and one bias each, and a final norm."""
    tensors: dict[str, NDArray[Any]] = {"final_norm.weight": np.ones(3, np.float32)}
    for layer in range(2):
        tensors[f"blocks.{layer}.attention.projection.weight"] = np.full((2, 3), layer + 1, np.float32)
        tensors[f"blocks.{layer}.attention.projection.bias"] = np.zeros(2, np.float32)
    return tensors


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """`make_run(name, seed=…, …)` makes a run with one attempt.

    It has rows at steps 0, 10, 20, … with `val_losses` and, except at step 0, a training loss that is 0.5 lower.
    `cpu_share` is its CPU seconds per second of training. `checkpoints` maps steps to tensors, `header` is the header
    of their files, and `facts` override `FACTS`.
    """

    def make(
        name: str = "micro",
        seed: int = 0,
        *,
        why: str = "Does it hold?",
        changes: Mapping[str, Any] | None = None,
        source: str = "words",
        sha256: str = "ab" * 32,
        val_losses: Sequence[float] = (11.0, 8.0, 6.0),
        yardstick: str = "aaaaaaaa",
        samples: Sequence[str] = (),
        checkpoints: Mapping[int, Tensors] | None = None,
        header: Mapping[str, Any] | None = None,
        outcome: Outcome = "complete",
        cpu_share: float | None = None,
        tokenizer_sha256: str = "cd" * 32,
        bits_per_nat: float = 0.5,
        **facts: Any,
    ) -> Run:
        experiment = Experiment(
            name=name,
            why=why,
            model=ModelSpec(n_layer=2, n_head=2, n_embd=8, context_length=32),
            train=TrainSpec(sequence_length=16, batch_size=2, steps=20),
        ).with_changes(changes or {})
        text = TextRecord(source=source, path="/words.txt", bytes=1000, sha256=sha256)
        identity = identify(experiment, precision="float32", text_sha256=sha256, tokenizer_sha256=tokenizer_sha256)
        run = tracking.create_run(experiment, identity, seed, "float32", text)
        attempt = run.start_attempt(**FACTS | facts)
        rows = [_row(number, loss, loss * bits_per_nat, yardstick) for number, loss in enumerate(val_losses)]
        for row in rows if cpu_share else ():
            row["cpu_s"] = cpu_share * row["elapsed_s"]
        with MetricsFile(run.directory, 0) as metrics:
            for row in rows:
                metrics.append(row)
        for step, tensors in (checkpoints or {}).items():
            _save_weights(run, step, tensors, header or {"tokens": 32 * step})
        for sample in samples:
            run.add_sample(20, "The ", sample)
        run.end_attempt(attempt, rows[-1]["step"] if rows else 0, outcome)
        return run

    return make


@pytest.fixture
def add_attempt() -> Callable[..., None]:
    """`add_attempt(run, threads=…)` records another attempt, with the facts of the first one except these."""

    def add(run: Run, **facts: Any) -> None:
        number = run.start_attempt(**FACTS | facts)
        run.end_attempt(number, 20, "complete")

    return add


def _row(number: int, val_loss: float, bits: float, yardstick: str) -> dict[str, Any]:
    row = {"step": 10 * number, "tokens": 320 * number, "attempt": 1, "elapsed_s": 2.0 * number}
    if number:
        row |= {"train/loss": val_loss - 0.5, "perf/tokens_per_s": 1600.0}
    return row | {"val/loss": val_loss, "val/loss_se": 0.25, "val/bpb": bits, "val/yardstick": yardstick}


def _save_weights(run: Run, step: int, tensors: Tensors, header: Mapping[str, Any]) -> None:
    directory = checkpoint_directory(run.directory, step)
    directory.mkdir(parents=True)
    save_file(dict(tensors), directory / MODEL, {"gptlab": json.dumps(header)})
    manifest = Manifest(
        run=run.id,
        step=step,
        files={MODEL: compute_digest(directory / MODEL)},
        progress=LoopState(best_val_loss=5.5, best_step=10),
        text_sha256=run.record.text.sha256,
        tokenizer_sha256=run.record.tokenizer_sha256,
        torch="2.13.0",
        threads=2,
    )
    (directory / MANIFEST).write_text(manifest.model_dump_json())
