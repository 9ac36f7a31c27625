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

        If the loss or the gradient norm is not finite, weights and moments stay as they are: on a CPU the update is
        skipped; on CUDA fused AdamW skips it without a synchronization. Another optimizer updates there, and training
        ends before anything is saved.

        Args:
            batch: Tokens `(B, T + 1)` on the settings' device: the inputs, and the targets one position later.
            step: Optimizer steps done before this one.
            before_update: Called between the backward pass and the update.

        Returns:
            The loss in nats per token and the gradient norm before clipping, scalars on the device.
        """
        if self.experiment.model.dropout or self.experiment.parts:  # a part may draw random numbers
            torch.manual_seed(int(random_bits(self.seed, Purpose.STEP, step)[0]))
        with self.settings.autocast():
            loss = self.model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        if self.experiment.model.parts:
            optimizers.check_gradients(self.model)
        loss, norm = loss.detach(), optimizers.gradient_norm(cast(Any, self.model)).detach()
        finite = loss.isfinite() & norm.isfinite()
        if optimizers.may_update(self.optimizer, finite, self.settings):
            before_update()
            set_learning_rate(self.optimizer, self._learning_rate(step), self.experiment.train)
            optimizers.clipped_update(self.optimizer, norm, self.experiment.train.max_grad_norm)
        return loss, norm

    @cached_property
    def _learning_rate(self) -> Callable[[int], float]:
        return learning_rates(self.experiment.train)  # looked up once, not in each step
