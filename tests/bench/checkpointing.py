"""Checkpoints of `baseline`: how long training waits for a save, and how long resuming takes."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from _pairs import Work, interleave, interleave_processes, status_mib
from _table import Row

from gptlab import catalog
from gptlab.checkpoints.manifest import MODEL, OPTIMIZER, LoopState, list_checkpoints
from gptlab.checkpoints.read import read_newest_state, weight_shapes
from gptlab.checkpoints.saver import BackgroundSaver
from gptlab.data.tokenizer import TOKENIZER_SHA256
from gptlab.identity import identify
from gptlab.tracking.metrics import MetricsFile
from gptlab.tracking.records import TextRecord
from gptlab.tracking.run import create_run, load_run
from gptlab.training.memory import keep_freed_memory
from gptlab.training.settings import Available, Settings, resolve_settings
from gptlab.training.state import checkpoint_files, checkpoint_header, manifest_fields, restore
from gptlab.training.step import TrainingStep

EXPERIMENT = "baseline"
PART = "checkpointing"
PAIRS = 5
REFERENCE = "torch.save, then fsync"


def rows() -> Iterator[Row]:
    """Saving, its memory, and resuming."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, GPTLAB_RUNS=folder):
        directory, saving = _saving(Path(folder))
        yield from saving
        resuming: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(PAIRS):  # in new processes, as when a run resumes: reused memory is faster
            sides = {"ours": _resume, "theirs": _read}
            for side, costs in interleave_processes(sides, [directory], 1, warm_up=0).items():
                resuming[side].append(costs[0].wall_s)
        yield Row(
            PART,
            "resuming",
            "reading the bytes of both files",
            "s",
            **resuming,
            target="<= 1.2",
            note="from the page cache into model and optimizer, in a new process, after imports",
        )


def _saving(folder: Path) -> tuple[Path, list[Row]]:
    """The run's directory and the rows about saving; a separate function, so that its memory is freed."""
    keep_freed_memory()
    spec, settings = catalog.find(EXPERIMENT), _settings()
    train = spec.train
    run = create_run(
        spec,
        identify(spec, precision="float32", text_sha256="0" * 64, tokenizer_sha256=TOKENIZER_SHA256),
        0,
        "float32",
        TextRecord(source="none", path="/none", bytes=1, sha256="0" * 64),
    )
    state = restore(run.record, None, settings)
    training_step = TrainingStep(state.model, state.optimizer, spec, 0, settings)
    batch = torch.randint(spec.model.vocab_size, (train.batch_size, train.sequence_length + 1))
    blocked: dict[str, list[float]] = {"ours": [], "theirs": []}

    with ExitStack() as stack:
        metrics = stack.enter_context(MetricsFile(run.directory, 0))
        saver = stack.enter_context(BackgroundSaver(run.directory, train, before_commit=metrics.sync))

        def step() -> float:
            """One training step; returns the seconds that its update waited."""
            waited_s: list[float] = []
            training_step(batch, state.step, before_update=lambda: waited_s.append(_seconds(saver.wait_until_read)))
            state.step += 1
            return sum(waited_s)

        def save() -> None:
            files = checkpoint_files(state, resumable=True, copy=False)
            header = checkpoint_header(run.record, state.step, {"train/loss": None})
            saver.save(files, header, manifest_fields(run.record, 1, state.step, LoopState()), copied=False)

        def save_and_finish() -> None:
            save()
            saver.finish()

        def save_synchronously() -> None:
            path = folder / f"{state.step}.pt"
            with path.open("wb") as file:
                # The reference uses pickle, which the project forbids elsewhere; its file is never read.
                torch.save({"model": state.model.state_dict(), "adamw": state.optimizer.state_dict()}, file)  # noqa: TID251
                file.flush()
                os.fsync(file.fileno())
            for old in folder.glob("*.pt"):
                if old != path:
                    old.unlink()

        def ours() -> None:
            blocked["ours"].append(_seconds(save) + step())
            saver.finish()

        def theirs() -> None:
            blocked["theirs"].append(_seconds(save_synchronously))
            step()

        for _ in range(2):
            step()
        whole = interleave({"ours": ours, "theirs": theirs}, PAIRS)
        memory = interleave(
            {"ours": lambda: _extra_mib(save_and_finish), "theirs": lambda: _extra_mib(save_synchronously)}, 3
        )
    parameters = f"{spec.model.parameters:,} parameters with AdamW's moments"
    return run.directory, [
        Row(
            PART,
            f"training waits for a save of {parameters}",
            REFERENCE,
            "s",
            **blocked,
            target="<= 0.3",
            note="total wait of the training thread, including the wait before the next update",
        ),
        Row(
            PART,
            "a save and a step, until the file is on disk",
            REFERENCE,
            "s",
            **{side: [one.wall_s for one in costs] for side, costs in whole.items()},
        ),
        Row(
            PART,
            "memory of a save, in addition to the state",
            REFERENCE,
            "MiB",
            **{side: [one.value or 0.0 for one in costs] for side, costs in memory.items()},
            note="peak resident memory; at least 1 MiB",
        ),
    ]


def _settings() -> Settings:
    return resolve_settings("cpu", "float32", Available.here())


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _extra_mib(work: Callable[[], object]) -> float:
    """How much the peak resident memory during the work exceeds that before it (Linux only)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status_mib("VmRSS")
    work()
    return max(status_mib("VmHWM") - before, 1.0)


def _resume(directory: Path) -> Work:
    record, settings = load_run(directory).record, _settings()
    weight_shapes(record.spec.model)  # the first model on the meta device imports much of PyTorch

    def resume() -> None:
        saved = read_newest_state(directory, record.spec.model, print)
        assert saved is not None
        restore(record, saved, settings)

    return resume


def _read(directory: Path) -> Work:
    newest = list_checkpoints(directory)[-1].directory

    def read() -> None:
        kept = [(newest / name).read_bytes() for name in (MODEL, OPTIMIZER)]  # both in memory at once, as when resuming
        assert len(kept) == 2

    return read
