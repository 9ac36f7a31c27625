"""A training step that several processes take together, each with its rows of the batch.

Loss, gradient norm and clipping are those of the whole batch. The request to stop travels with them, so that all
processes stop after the same step.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gptlab.distributed.workers import Workers
from gptlab.errors import GptlabError
from gptlab.training.step import TrainingStep


class JointStep:
    """A `TrainingStep` of several processes. Its model averages the gradients over them."""

    def __init__(
        self,
        step: TrainingStep,
        workers: Workers,
        squared_norm: Callable[[], Tensor],
        stop_requested: Callable[[], bool],
    ) -> None:
        """Prepare the step.

        Args:
            step: The step of this process.
            workers: The processes.
            squared_norm: Returns this process's part of the squared norm of the averaged gradients, a scalar.
            stop_requested: Whether this process was asked to stop.
        """
        self._step, self._workers = step, workers
        self._squared_norm, self._stop_requested = squared_norm, stop_requested
        self._stops: list[tuple[Tensor, torch.cuda.Event | None]] = []  # of the newest steps, not yet read

    def __call__(
        self, batch: Tensor, step: int, before_update: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """Train on this process's rows of a batch. See `TrainingStep`.

        Raises:
            GptlabError: A part of the model does what depends on the number of processes.
        """
        self._step.prepare(step)
        before = _random_state(self._step), _versions(self._step.model)
        loss = self._step.backward(batch)
        self._check_parts(*before)
        loss, norm = self._total(loss)
        if self._step.may_update(loss.isfinite() & norm.isfinite()):
            before_update()
            self._step.update(norm)
        return loss, norm

    def stops(self) -> bool:
        """Return whether any process was asked to stop. Each process gets the same answer after the same step.

        A GPU is not waited for: there the answer is that of one step earlier.
        """
        if not self._stops:  # before the first step
            return bool(self._workers.total(torch.tensor(float(self._stop_requested()))))
        flag, copied = self._stops[0]
        if copied:
            copied.synchronize()
        return bool(flag)

    def _total(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and gradient norm of the whole batch, and exchange the requests to stop."""
        stop = torch.full_like(loss, float(self._stop_requested()), dtype=torch.float64)
        part = torch.stack([loss.double() / self._workers.size, self._squared_norm().double(), stop])
        mean, squared_norm, stop = self._workers.total(part).unbind()
        copied = None
        if loss.device.type == "cuda":
            stop = stop.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch does not annotate it
            copied.record()
        self._stops = [*self._stops[-1:], (stop, copied)] if copied else [(stop, None)]
        return mean.to(loss.dtype), squared_norm.sqrt().to(loss.dtype)

    def _check_parts(self, random_state: Tensor | None, versions: dict[str, tuple[int, int]]) -> None:
        """Check that parts drew no random numbers and changed no buffers: both depend on how the batch is divided."""
        after = _random_state(self._step)
        if random_state is not None and after is not None and not torch.equal(random_state, after):
            raise GptlabError(
                "a part of the model draws random numbers, which several processes cannot divide among them; train "
                "with one process"
            )
        changed = [name for name, version in _versions(self._step.model).items() if versions.get(name) != version]
        if changed:
            raise GptlabError(
                f"a part of the model changes its buffer {changed[0]} in training, which several processes cannot do "
                "together; train with one process"
            )


def _random_state(step: TrainingStep) -> Tensor | None:
    """The state of the generator that parts draw from; None without parts."""
    if not step.experiment.model.has_parts:
        return None
    return torch.cuda.get_rng_state() if step.settings.device == "cuda" else torch.get_rng_state()


def _versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Each buffer's identity, and how often it was changed in place."""
    return {name: (id(buffer), buffer._version) for name, buffer in model.named_buffers()}
