"""Runs that are recorded without training, for commands that only read or move them."""

from collections.abc import Callable
from typing import Any

import pytest

from gptlab.identity import Fingerprint, identify
from gptlab.spec import Experiment
from gptlab.tracking.metrics import MetricsFile
from gptlab.tracking.records import Outcome, TextRecord
from gptlab.tracking.run import Run, create_run

MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(micro: Experiment) -> MakeRun:
    """`make_run(seed=1, loss=2.5, **{"model.n_layer": 3})` makes a run of `micro` without training it."""

    def make(
        seed: int = 0,
        loss: float | None = None,
        outcome: Outcome = "complete",
        tags: tuple[str, ...] = (),
        text: str = "words.txt",
        sha256: str = "ab" * 32,
        code: float = 1.0,
        **changes: Any,
    ) -> Run:
        spec = micro.with_changes(changes)
        fingerprint = Fingerprint(numbers={"loss": code}, code={}, files={})
        identity = identify(
            spec, precision="float32", text_sha256=sha256, tokenizer_sha256="cd" * 32, fingerprint=fingerprint
        )
        record = TextRecord(source=text, path="/words.txt", bytes=1, sha256=sha256)
        run = create_run(spec, identity, seed, "float32", record, fingerprint=fingerprint)
        number = run.start_attempt(steps=10, tags=list(tags))
        if loss is not None:
            with MetricsFile(run.directory, 0) as metrics:
                metrics.append({"step": 10, "val/loss": loss})
        run.end_attempt(number, 10, outcome)
        return run

    return make
