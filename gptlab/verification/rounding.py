"""How much rounding alone changes a run: a replay whose weights are rounded otherwise.

Before the first step, each weight is multiplied by 1 ± ε of the run's precision, and after each update by 1 ± ε of
float32, in which weights are stored (ε is the distance from 1 to the next number). The signs are random bits that
depend on seed, step and name only. What such a replay changes is the size of what another order of sums changes: both
disturb the last place of each step, and the training itself amplifies it.
"""

import numpy as np
import torch

from gptlab.randomness import Purpose, name_word, random_bits
from gptlab.spec import Precision

EPSILON = {"float32": torch.finfo(torch.float32).eps, "bfloat16": torch.finfo(torch.bfloat16).eps}
"""By precision, the distance from 1 to the next number."""


@torch.no_grad()
def move_by_one_rounding(model: torch.nn.Module, step: int, *, seed: int, precision: Precision = "float32") -> None:
    """Multiply each weight by 1 ± ε, with random signs.

    Args:
        model: The model, which is changed.
        step: The signs depend on it.
        seed: The signs depend on it.
        precision: Determines ε.
    """
    for name, parameter in model.named_parameters():
        signs = _signs(seed, step, name, parameter.numel()).view_as(parameter).to(parameter.device)
        parameter.mul_(1 + EPSILON[precision] * signs)


def _signs(seed: int, step: int, name: str, count: int) -> torch.Tensor:
    """Random signs as float32, `(count,)`."""
    words = random_bits(seed, Purpose.SAMPLE, name_word("rounding"), step, name_word(name), n=-(-count // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=count)
    return torch.from_numpy(bits).float().mul_(2).sub_(1)
