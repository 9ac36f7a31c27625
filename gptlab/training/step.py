"""One optimizer step: forward pass, backward pass, gradient norm, clipping, update."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from gptlab.randomness import Purpose, random_bits
from gptlab.spec import Experiment
from gptlab.training import optimizer as optimizers
from gptlab.training.schedule import learning_rates, set_learning_rate
from gptlab.training.settings import Settings

Step = Callable[[Tensor, int, Callable[[], None]], tuple[Tensor, Tensor]]
"""See `TrainingStep.__call__`."""


@dataclass(frozen=True)
class TrainingStep:
    """The step as a function of (model, optimizer, batch, step); it keeps no state of its own."""

    model: nn.Module
    """Called as `model(tokens, targets)` for the loss; possibly compiled."""
    optimizer: torch.optim.Optimizer
    experiment: Experiment
    seed: int
    """The run's seed. With the step it determines dropout and the random numbers of parts."""
    settings: Settings

    def __call__(
        self, batch: Tensor, step: int, before_update: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """Train on one batch.

        If the loss or the gradient norm is not finite, weights and moments stay as they are. Fused AdamW on CUDA skips
        the update by itself; otherwise the host reads the results first.

        Args:
            batch: Tokens `(B, T + 1)` on the settings' device: the inputs, and the targets one position later.
            step: Optimizer steps done before this one.
            before_update: Called between the backward pass and the update.

        Returns:
            The loss in nats per token and the gradient norm before clipping, scalars on the device.
        """
        self.prepare(step)
        loss, norm = self.compute_gradients(batch)
        if self.may_update(loss.isfinite() & norm.isfinite()):
            before_update()
            self.update(norm)
        return loss, norm

    def prepare(self, step: int) -> None:
        """Set what the host determines: the seed of random numbers and the learning rate."""
        if self.experiment.model.dropout or self.experiment.parts:  # a part may draw random numbers
            torch.manual_seed(int(random_bits(self.seed, Purpose.STEP, step)[0]))
        set_learning_rate(self.optimizer, self._learning_rate(step), self.experiment.train)

    def compute_gradients(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Run the forward and the backward pass. Return the loss and the gradient norm, scalars on the device."""
        loss = self.backward(batch)
        return loss, optimizers.gradient_norm(cast(Any, self.model)).detach()

    def backward(self, batch: Tensor) -> Tensor:
        """Run the forward and the backward pass. Return the loss, a scalar on the device."""
        with self.settings.autocast():
            loss: Tensor = self.model(batch[:, :-1], batch[:, 1:])
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        if self.experiment.model.parts:
            optimizers.check_gradients(self.model)
        return loss.detach()

    def may_update(self, finite: Tensor) -> bool:
        """Return whether to call `update`, given whether all results are finite, a scalar on the device."""
        if self.settings.asynchronous and not optimizers.skips_on_device(self.optimizer):
            return bool(finite)
        return optimizers.may_update(self.optimizer, finite, self.settings)

    def update(self, norm: Tensor) -> None:
        """Clip the gradients, whose norm is given, update the weights, and clear the gradients."""
        optimizers.clipped_update(self.optimizer, norm, self.experiment.train.max_grad_norm)

    @cached_property
    def _learning_rate(self) -> Callable[[int], float]:
        return learning_rates(self.experiment.train)  # looked up once, not in each step
