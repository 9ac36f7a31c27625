"""What a checkpoint of the reference model costs: how long training waits for it, and how long to go on from it."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from _pairs import Work, in_turns, processes_in_turns, status_mib
from _table import Row

from gptlab import catalog
from gptlab.data.tokenizer import TOKENIZER_SHA256
from gptlab.model import gpt
from gptlab.spec import identify
from gptlab.tracking import run as runs
from gptlab.tracking.checkpoints import MODEL, OPTIMIZER, Progress, list_checkpoints
from gptlab.tracking.metrics import MetricsFile
from gptlab.tracking.records import TextRecord
from gptlab.training import optimizer
from gptlab.training.restore import model_of, newest_state, weight_shapes
from gptlab.training.saver import Saver
from gptlab.training.settings import keep_freed_memory

PART = "checkpointing"
PAIRS = 5
PEER = "torch.save, then fsync"


def rows() -> Iterator[Row]:
    """Saving, resuming, and the memory that saving takes."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, GPTLAB_RUNS=folder):
        directory, saving = _saving(Path(folder))
        yield from saving
        resuming: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(PAIRS):  # in new processes, as a run resumes: memory that was used before is had for less
            sides = {"ours": _resume, "theirs": _read}
            for side, spent in processes_in_turns(sides, [directory], 1, warm_up=0).items():
                resuming[side].append(spent[0].wall_s)
        yield Row(
            PART,
            "resuming",
            "reading the bytes of both files",
            "s",
            **resuming,
            target="<= 1.2",
            note="from a warm page cache into model and optimizer, once in a new process that has imported everything",
        )


def _saving(folder: Path) -> tuple[Path, list[Row]]:
    """The run's directory, and the rows about saving; what they took is given back."""
    keep_freed_memory()
    spec = catalog.find("baseline")
    train = spec.train
    run = runs.create(
        spec,
        identify(spec, precision="float32", text_sha256="0" * 64, tokenizer_sha256=TOKENIZER_SHA256),
        0,
        "float32",
        TextRecord(source="none", path="/none", bytes=1, sha256="0" * 64),
    )
    model = gpt.build(spec.model, seed=0)
    adamw = optimizer.build(model, train, fused=True)
    batch = torch.randint(spec.model.vocab_size, (train.batch_size, train.sequence_length + 1))
    blocked: dict[str, list[float]] = {"ours": [], "theirs": []}
    done = 0

    with ExitStack() as stack:
        metrics = stack.enter_context(MetricsFile(run.directory, 0))
        saver = stack.enter_context(Saver(run, model, adamw, metrics))

        def step() -> float:
            """One step of training; the seconds that its update waited."""
            nonlocal done
            model(batch[:, :-1], batch[:, 1:]).backward()
            waited_s = _seconds(saver.until_read)
            adamw.step()
            adamw.zero_grad(set_to_none=True)
            done += 1
            return waited_s

        def save() -> None:
            saver.save(done, Progress(), {}, resumable=True)

        def save_and_finish() -> None:
            save()
            saver.finish()

        def save_synchronously() -> None:
            path = folder / f"{done}.pt"
            with path.open("wb") as file:
                # The peer, whose file nobody reads.
                torch.save({"model": model.state_dict(), "adamw": adamw.state_dict()}, file)  # noqa: TID251
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
        whole = in_turns({"ours": ours, "theirs": theirs}, PAIRS)
        memory = in_turns(
            {"ours": lambda: _extra_mib(save_and_finish), "theirs": lambda: _extra_mib(save_synchronously)}, 3
        )
    parameters = f"{spec.model.parameters:,} parameters with AdamW's moments"
    return run.directory, [
        Row(
            PART,
            f"training waits for a save of {parameters}",
            PEER,
            "s",
            **blocked,
            target="<= 0.3",
            note="all that the training thread waits, the wait before the next update included",
        ),
        Row(
            PART,
            "a save and a step, until both are done and the file is on the disk",
            PEER,
            "s",
            **{side: [one.wall_s for one in spent] for side, spent in whole.items()},
        ),
        Row(
            PART,
            "memory that a save takes beside the state",
            PEER,
            "MiB",
            **{side: [one.value or 0.0 for one in spent] for side, spent in memory.items()},
            note="peak resident memory; less than one MiB counts as one",
        ),
    ]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _extra_mib(work: Callable[[], object]) -> float:
    """By how much the largest resident memory while working exceeds that before, on Linux."""
    Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
    before = status_mib("VmRSS")
    work()
    return max(status_mib("VmHWM") - before, 1.0)


def _resume(directory: Path) -> Work:
    spec = catalog.find("baseline")
    weight_shapes(spec.model)  # for the first model on the meta device PyTorch imports much

    def resume() -> None:
        state = newest_state(directory, spec.model, print)
        assert state is not None
        model = model_of(state.weights, spec.model)
        optimizer.load_state_tensors(model, optimizer.build(model, spec.train, fused=True), state.moments)

    return resume


def _read(directory: Path) -> Work:
    newest = list_checkpoints(directory)[-1].directory

    def read() -> None:
        kept = [(newest / name).read_bytes() for name in (MODEL, OPTIMIZER)]  # both at once, as a state is
        assert len(kept) == 2

    return read
