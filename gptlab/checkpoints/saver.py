"""Save checkpoints in a background thread while training continues.

Weights and moments change only in the optimizer's update. So on a CPU the thread writes the tensors that training uses,
without a copy, during the forward and backward pass of the next step; the update waits until they are written. The rest
of a save (flushing, reading back, manifest, rename, retention) delays nothing. On a GPU the tensors are first copied to
the host, and no update waits.

At most one save is in flight. Its error is raised where training next waits for it: before an update, before the next
save, or at the exit, which waits for the last save.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gptlab.checkpoints.manifest import Checkpoint
from gptlab.checkpoints.retention import NeededSteps, apply_retention
from gptlab.checkpoints.tensors import Tensors
from gptlab.checkpoints.write import Write, commit_checkpoint
from gptlab.spec import TrainSpec


class BackgroundSaver:
    """A context manager that saves checkpoints. Its exit waits for the save in flight, also after an error."""

    def __init__(
        self,
        run_directory: Path,
        train: TrainSpec,
        before_commit: Callable[[], None] = lambda: None,
        on_commit: Callable[[Checkpoint], None] = lambda checkpoint: None,
        needed: Callable[[], NeededSteps] = dict,
    ) -> None:
        """Create the thread.

        Args:
            run_directory: The run's directory.
            train: Says which checkpoints are retained.
            before_commit: Called in the thread before each save, to flush the rows that the manifest counts.
            on_commit: Called in the thread after each save.
            needed: See `apply_retention`.
        """
        self._run_directory, self._train = run_directory, train
        self._before_commit, self._on_commit, self._needed = before_commit, on_commit, needed
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._saving: Future[None] | None = None
        self._tensors_read = threading.Event()

    def save(
        self, files: dict[str, Tensors], header: dict[str, Any], manifest: dict[str, Any], *, copied: bool
    ) -> None:
        """Wait until the previous save is committed, then start a save.

        Args:
            files: For each file of the checkpoint its tensors by name, on the CPU.
            header: See `commit_checkpoint`.
            manifest: See `commit_checkpoint`.
            copied: Whether the tensors are copies, so that updates need not wait until they are written.

        Raises:
            GptlabError: The previous save failed.
            OSError: The previous save failed.
        """
        self.finish()
        if copied:
            self._tensors_read.set()
        else:
            self._tensors_read.clear()
        self._saving = self._thread.submit(self._commit, files, header, manifest)
        self._saving.add_done_callback(lambda _: self._tensors_read.set())  # also if the save fails early

    def save_now(
        self, files: dict[str, Tensors], header: dict[str, Any], manifest: dict[str, Any], write: Write
    ) -> None:
        """Save in this thread, with a function that writes the tensors of a file; see `commit_checkpoint`.

        Raises:
            GptlabError: The save failed.
            OSError: The save failed.
        """
        self._commit(files, header, manifest, write)

    @property
    def in_flight(self) -> bool:
        """Whether a save was started whose end has not been waited for."""
        return self._saving is not None

    def wait_until_read(self) -> None:
        """Wait until the save in flight no longer needs its tensors, so that they may change.

        Raises:
            GptlabError: The save failed.
            OSError: The save failed.
        """
        if self._saving is not None:
            self._tensors_read.wait()
            if self._saving.done():
                self.finish()

    def finish(self) -> None:
        """Wait until the save in flight is committed.

        Raises:
            GptlabError: The save failed.
            OSError: The save failed.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _commit(
        self, files: dict[str, Tensors], header: dict[str, Any], manifest: dict[str, Any], write: Write | None = None
    ) -> None:
        self._before_commit()
        on_read = self._tensors_read.set
        checkpoint = commit_checkpoint(self._run_directory, files, header, manifest, on_read, write)
        apply_retention(
            self._run_directory,
            self._train.keep_checkpoints,
            manifest["progress"].best_step,
            snapshots=self._train.snapshots,
            up_to=checkpoint.step,
            keep_steps=self._train.keep_steps,
            needed=self._needed,
        )
        self._on_commit(checkpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:  # of two errors, the first one is raised
            self.finish()
