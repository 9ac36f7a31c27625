"""A GPT that is small except for its vocabulary."""

import pytest
import torch
from torch import Tensor

from gptlab.model.gpt import GPT, build
from gptlab.spec import ModelSpec

SMALL = ModelSpec(n_layer=2, n_head=4, n_embd=32, context_length=24)


@pytest.fixture
def small_spec() -> ModelSpec:
    return SMALL


@pytest.fixture(scope="module")
def small() -> GPT:
    """In evaluation mode; shared, so tests must not change it."""
    return build(SMALL, seed=0).eval()


@pytest.fixture
def perturbed() -> GPT:
    """With noise on the weights, so large that attention, norms and biases matter; in evaluation mode."""
    model = build(SMALL, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


@pytest.fixture
def tokens() -> Tensor:
    """Two windows of 16 tokens, each with the token after it."""
    return torch.randint(50257, (2, 17), generator=torch.Generator().manual_seed(0))
