"""Saving while training goes on.

Between two updates neither weights nor moments change. So a save is left to a thread, which streams the very tensors
that training works with to the disk, beside the forward and backward pass of the next step; only the update that
changes them waits until they are read. What comes after that (flushing, reading back, the manifest, the rename,
retention) holds nobody up. From a GPU the tensors are copied to the host first, and no update waits.

One save is in flight at most. If it fails, its error is raised where training next waits for it: before an update,
before the next save, or at the end, which comes only after the last save is committed.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch

from gptlab.model.gpt import GPT
from gptlab.spec import identity_fields
from gptlab.tracking.checkpoints import MODEL, OPTIMIZER, Progress
from gptlab.tracking.metrics import MetricsFile
from gptlab.tracking.run import Run
from gptlab.training import checkpoint, optimizer
from gptlab.training.tensors import Tensors


class Saver:
    """A context manager, whose exit waits for the save in flight whatever happened; see the module."""

    def __init__(self, run: Run, model: GPT, adamw: torch.optim.AdamW, metrics: MetricsFile) -> None:
        self._run, self._model, self._adamw, self._metrics = run, model, adamw, metrics
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._saving: Future[None] | None = None
        self._read = threading.Event()

    def save(self, step: int, progress: Progress, losses: dict[str, float | None], *, resumable: bool) -> None:
        """Begin to save the state after a step, when the save before is committed.

        Args:
            step: Optimizer steps done.
            progress: Where training stands besides the tensors.
            losses: The newest, for the files' headers.
            resumable: Whether the optimizer's state is saved too.
        """
        self.finish()
        record, train = self._run.record, self._run.record.spec.train
        copied = is_elsewhere(self._model)
        files = {MODEL: _on_host(self._model.state_dict(), copied)}
        if resumable:
            files[OPTIMIZER] = _on_host(optimizer.state_tensors(self._model, self._adamw), copied)
        header = {
            "run": record.run,
            "step": step,
            "tokens": step * train.batch_size * train.sequence_length,
            "losses": losses,
            "config": {**record.identity, **identity_fields(record.spec)},
        }
        manifest = {
            "run": record.run,
            "step": step,
            "progress": progress,
            "text_sha256": record.text.sha256,
            "tokenizer_sha256": record.tokenizer_sha256,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        if copied:
            self._read.set()
        else:
            self._read.clear()
        self._saving = self._thread.submit(self._commit, files, header, manifest)
        self._saving.add_done_callback(lambda _: self._read.set())  # when it failed before

    @property
    def in_flight(self) -> bool:
        """Whether a save is not known to be committed."""
        return self._saving is not None

    def until_read(self) -> None:
        """Wait until the tensors may change.

        Raises:
            GptlabError: The save has failed.
            OSError: The same.
        """
        if self._saving is not None:
            self._read.wait()
            if self._saving.done():
                self.finish()

    def finish(self) -> None:
        """Wait until nothing is in flight.

        Raises:
            GptlabError: The save has failed.
            OSError: The same.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _commit(self, files: dict[str, Tensors], header: dict[str, Any], manifest: dict[str, Any]) -> None:
        train = self._run.record.spec.train
        self._metrics.sync()  # before the manifest that vouches for its length
        checkpoint.save(self._run.directory, files, header, manifest, when_read=self._read.set)
        best_step = manifest["progress"].best_step
        checkpoint.retain(self._run.directory, train.keep_checkpoints, best_step, snapshots=train.snapshots)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:  # of two errors the first is told
            self.finish()


def is_elsewhere(model: GPT) -> bool:
    """Whether the tensors are not in the memory of this process, so that they must be copied to be written."""
    return next(model.parameters()).device.type != "cpu"


def _on_host(tensors: dict[str, torch.Tensor], copied: bool) -> Tensors:
    return {name: tensor.detach().to("cpu", copy=copied) for name, tensor in tensors.items()}
