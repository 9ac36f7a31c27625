"""A training step that is captured as a CUDA graph and replayed.

The step of a small model consists of hundreds of short kernels, and launching them from Python takes longer than
running them. A graph launches all of them at once. It reads and writes tensors at fixed addresses: the batch is copied
to where the graph reads it, and the seed and the learning rate are written before each replay.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from gptlab.errors import GptlabError, is_out_of_memory
from gptlab.experiment_files import reason
from gptlab.training.optimizer import skips_on_device
from gptlab.training.step import TrainingStep

WARM_UPS = 3
"""Runs before the capture. In them, kernels are compiled and libraries allocate their workspaces."""


class NotCapturableError(GptlabError):
    """The step cannot be captured; the message says why. It can still run uncaptured."""


class Graphs(Protocol):
    """Captures a function that launches kernels."""

    def warm_up(self, function: Callable[[], None], *, strict: bool) -> None:
        """Call a function as it will be captured. With `strict`, raise RuntimeError if it waits for the device."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record the kernels of a function without running them, and return a function that runs them."""


class CudaGraphs:
    """CUDA graphs (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs)."""

    def __init__(self) -> None:
        # One stream for both methods, because gradients remember theirs. torch does not annotate the class.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        torch.set_autocast_cache_enabled(False)  # the graph must repeat each cast of a weight

    def warm_up(self, function: Callable[[], None], *, strict: bool) -> None:
        """See `Graphs`."""
        mode = torch.cuda.get_sync_debug_mode()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            with warnings.catch_warnings(action="ignore"):  # torch warns that this mode misses some operations
                torch.cuda.set_sync_debug_mode("error" if strict else mode)
            try:
                function()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.current_stream().wait_stream(self._stream)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """See `Graphs`."""
        graph = torch.cuda.CUDAGraph()
        # thread_local, because other threads may call CUDA meanwhile, such as one that pins memory.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            function()
        return graph.replay


class CapturedStep:
    """A `TrainingStep` that is replayed. Its kernels and its numbers are those of the step."""

    def __init__(self, step: TrainingStep, batch: Tensor, graphs: Graphs) -> None:
        """Capture a step. Weights, moments and buffers keep their values; moments are created, with zeros.

        Args:
            step: The step.
            batch: A batch of the shape of all batches, on the device.
            graphs: Captures the step.

        Raises:
            NotCapturableError: The optimizer updates without asking the device, or a part of the model waits for the
                device or replaces a buffer.
            GptlabError: The capture fails for another reason. CUDA may be unusable then.
        """
        if not skips_on_device(step.optimizer):
            raise NotCapturableError(f"{type(step.optimizer).__name__} updates even if the loss is not finite")
        self._step = step
        self._batch = batch.clone()
        self._results = torch.empty(2, device=batch.device)
        with _buffers_kept(step.model):
            for remaining in reversed(range(WARM_UPS)):
                self._warm_up(graphs, strict=remaining == 0)
        try:
            self._replay = graphs.capture(partial(self._run, update=True))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            message = f"the step cannot be captured as a CUDA graph: {reason(error)}; try --no-capture"
            raise GptlabError(message) from error

    def __call__(
        self, batch: Tensor, step: int, before_update: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """Train on one batch. See `TrainingStep`; `before_update` is called before the forward pass."""
        self._step.prepare(step)
        self._batch.copy_(batch)
        before_update()
        self._replay()
        loss, norm = self._results.clone()  # the next replay overwrites them
        return loss, norm

    def _warm_up(self, graphs: Graphs, *, strict: bool) -> None:
        try:
            graphs.warm_up(partial(self._run, update=False), strict=strict)
        except RuntimeError as error:
            if not strict or is_out_of_memory(error):
                raise
            self._step.optimizer.zero_grad(set_to_none=True)
            raise NotCapturableError(f"it waits for the device: {reason(error)}") from error

    def _run(self, *, update: bool) -> None:
        loss, norm = self._step.compute_gradients(self._batch)
        torch.stack([loss, norm], out=self._results)
        self._step.may_update(self._results.isfinite().all() & update)
        self._step.update(norm)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore the buffers of a model afterwards.

    Raises:
        NotCapturableError: The forward pass replaced one by another tensor. A graph would never see the new one.
    """
    before = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
        for module, name, buffer, _ in before:
            if getattr(module, name) is not buffer:
                raise NotCapturableError(f"a part of the model replaces its buffer {name}; change it in place")
    finally:
        for module, name, buffer, value in before:
            setattr(module, name, buffer.copy_(value))
