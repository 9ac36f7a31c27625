"""Save checkpoints in a background thread while training continues.

Between two updates neither weights nor moments change. So a thread writes the very tensors that training uses while the
forward and backward pass of the next step run; only the update, which changes them, waits until they are read. What
follows (flushing, reading back, the manifest, the rename, retention) delays nothing. From a GPU the tensors are copied
to the host first, and no update waits.

At most one save is in flight. If it fails, its error is raised where training next waits for it: before an update,
before the next save, or at the end, which comes only after the last save is committed.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gptlab.checkpoints.manifest import Checkpoint
from gptlab.checkpoints.retention import apply_retention
from gptlab.checkpoints.tensors import Tensors
from gptlab.checkpoints.write import commit_checkpoint
from gptlab.spec import TrainSpec


class BackgroundSaver:
    """A context manager that saves checkpoints. Its exit waits for the save in flight, also after an error."""

    def __init__(
        self,
        run_directory: Path,
        train: TrainSpec,
        before_commit: Callable[[], None] = lambda: None,
        on_commit: Callable[[Checkpoint], None] = lambda checkpoint: None,
    ) -> None:
        """Create the thread.

        Args:
            run_directory: The run's directory.
            train: Which checkpoints are retained.
            before_commit: Called before each save, in the thread: flushes the rows that the manifest vouches for.
            on_commit: Called after each save, in the thread.
        """
        self._run_directory, self._train = run_directory, train
        self._before_commit, self._on_commit = before_commit, on_commit
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._saving: Future[None] | None = None
        self._read = threading.Event()

    def save(
        self, files: dict[str, Tensors], header: dict[str, Any], manifest: dict[str, Any], *, copied: bool
    ) -> None:
        """Start a save when the previous one is committed.

        Args:
            files: For each file of the checkpoint its tensors by name, on the CPU.
            header: See `commit_checkpoint`.
            manifest: See `commit_checkpoint`.
            copied: Whether the tensors are copies, so that updates need not wait until they are read.
        """
        self.finish()
        if copied:
            self._read.set()
        else:
            self._read.clear()
        self._saving = self._thread.submit(self._commit, files, header, manifest)
        self._saving.add_done_callback(lambda _: self._read.set())  # it may have failed before that

    @property
    def in_flight(self) -> bool:
        """Whether the last save may not be committed yet."""
        return self._saving is not None

    def wait_until_read(self) -> None:
        """Wait until the tensors of the save in flight may change.

        Raises:
            GptlabError: The save failed.
            OSError: The save failed.
        """
        if self._saving is not None:
            self._read.wait()
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

    def _commit(self, files: dict[str, Tensors], header: dict[str, Any], manifest: dict[str, Any]) -> None:
        self._before_commit()
        checkpoint = commit_checkpoint(self._run_directory, files, header, manifest, on_read=self._read.set)
        best_step = manifest["progress"].best_step
        train = self._train
        apply_retention(self._run_directory, train.keep_checkpoints, best_step, snapshots=train.snapshots)
        self._on_commit(checkpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:  # of two errors, the first one is raised
            self.finish()
