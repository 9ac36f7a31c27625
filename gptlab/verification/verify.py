"""Verify a run: check its files, then replay a stretch of it and compare."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from gptlab.checkpoints.manifest import Checkpoint
from gptlab.checksums import file_digest
from gptlab.compiler import keep_kernels
from gptlab.errors import BadInputError, GptlabError
from gptlab.interrupts import exiting_on_termination
from gptlab.model.measure import check_parts
from gptlab.temporary import temporary_directory
from gptlab.terminal.console import Console
from gptlab.tracking.history import History
from gptlab.tracking.lock import lock_holder
from gptlab.tracking.metrics import METRICS
from gptlab.tracking.run import Run
from gptlab.tracking.verification import end_of_rows
from gptlab.training.capacity import limit_threads
from gptlab.training.fingerprint_cache import fingerprint
from gptlab.training.memory import keep_freed_memory
from gptlab.training.run_text import moved_text, stored_text
from gptlab.training.run_tokenizer import run_tokenizer
from gptlab.training.settings import use_deterministic_kernels
from gptlab.training.training_data import load_training_data
from gptlab.untrusted import open_regular
from gptlab.verification import conditions as recorded_conditions
from gptlab.verification.conditions import attempts_of, find_differences, recorded_settings
from gptlab.verification.integrity import check_integrity
from gptlab.verification.replay import Conditions, Replayed, remove, replay
from gptlab.verification.result import Verification
from gptlab.verification.rows import RowComparison, compare_rows
from gptlab.verification.stretch import Stretch, choose_stretch, describe_steps
from gptlab.verification.tensors import TensorComparison, compare_tensors, same_bytes

NOT_ROUNDING = (
    "this is not rounding: code, versions and threads are as recorded, and the code's arithmetic is the same to the "
    "last digit, so that training gives the same bits"
)


def verify_run(
    run: Run, *, first: int | None = None, last: int | None = None, console: Console, text: str | None = None
) -> Verification:
    """Check every file of a run that has a checksum, then replay a stretch and compare rows and checkpoints.

    Args:
        run: The run; its directory is only read, but for the place of `text`, which is remembered.
        first: The step of a resumable checkpoint to start from; by default, the run's first step.
        last: The step to end at; by default, the last one that the run has recorded.
        console: Where to show progress.
        text: The place of the run's text, if it has moved.

    Raises:
        BadInputError: There is no such step, or the text, the tokenizer or the parent's weights are missing.
        GptlabError: A process is training the run, or memory or disk space runs out.
    """
    started, history = time.perf_counter(), run.history()
    if holder := lock_holder(run.directory):
        raise GptlabError(
            f"{run.id} is being trained by process {holder.pid} on {holder.host}; verify it when it has ended"
        )
    stretch = choose_stretch(run, history, first, last)
    integrity = check_integrity(run, history)
    result = Verification(
        run.id,
        "damaged" if integrity.damage else "bitwise",
        stretch.first,
        stretch.last,
        damage=integrity.damage,
        files=integrity.files,
        notes=integrity.notes,
    )
    if not integrity.damage:
        result = _Replays(run, history, stretch, text, console).verify(result)
        if run.history().attempts != history.attempts:
            raise GptlabError(f"{run.id} was trained while it was verified; verify it again")
    return replace(result, seconds=time.perf_counter() - started)


class _Replays:
    """The replays of a stretch: one as the run was made, and if that is not equal, one with other rounding."""

    def __init__(self, run: Run, history: History, stretch: Stretch, text: str | None, console: Console) -> None:
        limit_threads()
        self.run, self.history, self.stretch, self.console = run, history, stretch, console
        self.attempts = attempts_of(history, stretch)
        record = run.record
        check_parts(record.spec)
        tokenizer = run_tokenizer(run)
        located = moved_text(run, text, console.notice) if text else stored_text(run)
        self.settings = recorded_settings(run, self.attempts)
        self.code = fingerprint(record.spec, tokenizer, record.precision)
        data = load_training_data(record.spec, located, record.seed, tokenizer, window_offset=record.window_offset)
        self.conditions = Conditions(self.settings, data, self.attempts.threads_at)

    def verify(self, result: Verification) -> Verification:
        """Return the result with what the replays found."""
        if recorded_conditions.is_deterministic(self.attempts):
            use_deterministic_kernels()
        keep_kernels()
        keep_freed_memory()
        with (
            exiting_on_termination(),
            temporary_directory("verify") as folder,
            self.console.surviving(),
            _threads_restored(),
        ):
            return self._verify(result, folder)

    def _verify(self, result: Verification, folder: Path) -> Verification:
        run, stretch, model = self.run, self.stretch, self.run.record.spec.model
        starts = [stretch.first, *(start.get("from_step", 0) for start in self.attempts.involved())]
        threads = {step: self.attempts.threads_at(step) for step in starts}
        result = replace(result, conditions=recorded_conditions.describe(self.settings, set(threads.values())))
        self.console.print(f"replaying {describe_steps(stretch.first, stretch.last)}, on {result.conditions}")
        compared = _Compared(stretch.checkpoints)
        replayed = self._replay(folder / "replay", compared.add)
        rows = compare_rows(stretch, run.directory, replayed.directory)
        context = find_differences(run, self.attempts, self.settings, self.code, threads)
        result = replace(
            self._with_compared(result, rows, compared), environment=context.environment, code=context.code
        )
        problem = self._divergence_problem(replayed)
        if problem:
            result = replace(result, verdict="differs", notes=(*result.notes, problem))
        tensors = compare_tensors(model, stretch.checkpoints, compared.differing)
        if tensors.first is None:
            result = replace(result, other_headers=tuple(sorted(compared.differing)))
        if rows.first is None and tensors.first is None and not problem:
            if compared.differing and context.reproducible:
                return replace(result, verdict="differs", notes=(*result.notes, NOT_ROUNDING))
            return replace(result, notes=(*result.notes, *self._notes_on_end(replayed)))
        if context.reproducible:
            result = replace(result, notes=(*result.notes, NOT_ROUNDING))
        if problem or context.reproducible:
            return _judged(result, rows, tensors, bounded=False)
        self.console.print("not every bit is the same; replaying once more with other rounding, to measure its effect")
        rounded: dict[int, Checkpoint] = {}
        keep = partial(_keep, kept=rounded, needed=compared.differing)
        other = self._replay(folder / "rounded", keep, rounded_otherwise=True)
        rows = compare_rows(stretch, run.directory, replayed.directory, other.directory)
        tensors = compare_tensors(model, stretch.checkpoints, compared.differing, rounded)
        return _judged(result, rows, tensors, bounded=True)

    def _replay(
        self, folder: Path, on_checkpoint: Callable[[Checkpoint], None], *, rounded_otherwise: bool = False
    ) -> Replayed:
        try:
            return replay(
                self.run,
                self.stretch,
                self.conditions,
                folder,
                self.console,
                on_checkpoint,
                rounded_otherwise=rounded_otherwise,
            )
        except BadInputError as error:
            record = self.run.record
            if self.stretch.start or not (record.parent or record.imported_weights):
                raise
            kept, last = self.stretch.checkpoints, self.stretch.last
            own = [step for step in kept if kept[step].resumable and step < last]
            remedies = ["restore it"] if record.parent else []
            remedies += [f"verify from a checkpoint of the run itself: --from {max(own)}"] if own else []
            raise BadInputError("; ".join([str(error), *([", or ".join(remedies)] if remedies else [])])) from error

    def _with_compared(self, result: Verification, rows: RowComparison, compared: "_Compared") -> Verification:
        """Add what was compared, and its checksums, by which a later change is noticed."""
        length = end_of_rows(self.run.directory, self.stretch.last)
        xxh3 = ""
        if length:
            with open_regular(self.run.directory / METRICS) as file:
                xxh3 = file_digest(file, "xxh3_128", length)
        checkpoints, steps = self.stretch.checkpoints, sorted([*compared.equal, *compared.differing])
        missing = [f"the replay saved no checkpoint of step {step}" for step in sorted(checkpoints.keys() - steps)]
        return replace(
            result,
            rows=rows.rows,
            rows_bytes=length,
            rows_xxh3=xxh3,
            checkpoints=tuple(steps),
            digests={
                step: {name: file.xxh3_128 for name, file in checkpoints[step].manifest.files.items()} for step in steps
            },
            notes=(*result.notes, *missing),
        )

    def _divergence_problem(self, replayed: Replayed) -> str | None:
        """How the end of the replay differs from the end of the run, which may have diverged."""
        here = None if replayed.diverged is None else replayed.diverged.get("after_step")
        recorded = self.history.diverged_after if self.stretch.diverges else None
        if self.stretch.diverges and replayed.diverged is None:
            return f"the run diverged after step {self.stretch.last}, and the replay did not"
        if replayed.diverged is not None and not self.stretch.diverges:
            return f"the replay diverged after step {here}, and the run did not"
        if recorded is not None and recorded != here:
            return f"the run diverged after step {recorded}, and the replay after step {here}"
        return None

    def _notes_on_end(self, replayed: Replayed) -> Iterator[str]:
        """Notes on the end of a stretch that is bitwise: its divergence, and its sample, which has no checksum."""
        if self.stretch.diverges:
            yield f"the run diverged after step {self.stretch.last}, and so did the replay"
        if self.stretch.completes:
            ours, recorded = Run(replayed.directory, self.run.record).samples(), self.run.samples()
            if ours and recorded and ours[-1] != recorded[-1]:
                yield f"the sample of step {self.stretch.last} is another text than that of the replay"


class _Compared:
    """The replay's checkpoints, by whether their files are those of the run. Equal ones are removed at once."""

    def __init__(self, recorded: Mapping[int, Checkpoint]) -> None:
        self._recorded = recorded
        self.equal: list[int] = []
        self.differing: dict[int, Checkpoint] = {}

    def add(self, replayed: Checkpoint) -> None:
        """Compare a checkpoint by the checksums of its files. It is called in the saver's thread."""
        if same_bytes(self._recorded[replayed.step], replayed):
            self.equal.append(replayed.step)
            remove(replayed)
        else:
            self.differing[replayed.step] = replayed


def _keep(checkpoint: Checkpoint, kept: dict[int, Checkpoint], needed: dict[int, Checkpoint]) -> None:
    """Keep a checkpoint if its step is needed, else remove it."""
    if checkpoint.step in needed:
        kept[checkpoint.step] = checkpoint
    else:
        remove(checkpoint)


def _judged(result: Verification, rows: RowComparison, tensors: TensorComparison, *, bounded: bool) -> Verification:
    """Return the result with a verdict and the differences that it rests on."""
    beyond = rows.first_beyond or tensors.first_beyond
    differs = result.verdict == "differs" or not bounded or beyond
    return replace(
        result,
        verdict="differs" if differs else "within rounding",
        first_value=rows.first_beyond if bounded and differs else rows.first,
        largest_value=rows.largest,
        first_tensor=tensors.first_beyond if bounded and differs else tensors.first,
        largest_tensor=tensors.largest,
    )


@contextmanager
def _threads_restored() -> Iterator[None]:
    """Restore the number of threads at the end."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
