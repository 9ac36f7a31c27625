"""The loss on held-out windows."""

import numpy as np
import pytest
import torch

from gptlab.data.tokens import Split
from gptlab.data.windows import validation_starts
from gptlab.model import gpt
from gptlab.spec import ModelSpec
from gptlab.training.evaluate import BATCH_TOKENS, evaluate
from gptlab.training.settings import Available, resolve_settings

LENGTH = 32
MANY = BATCH_TOKENS // LENGTH + 3  # number of windows, more than one batch


@pytest.fixture
def model():
    return gpt.build(ModelSpec(n_layer=1, n_head=1, n_embd=8, context_length=LENGTH), seed=0)


def evaluated(model, windows):
    tokens = np.random.default_rng(0).integers(0, 50257, MANY * LENGTH + 1).astype(np.uint16)
    val = Split(tokens, len(tokens), "ab" * 32)
    batches, gradients = [], []

    def forward(inputs, targets, reduction):
        batches.append(inputs.shape)
        losses = model(inputs, targets, reduction=reduction)
        gradients.append(losses.requires_grad)
        return losses

    watched = torch.nn.Module()
    watched.forward = forward
    starts = validation_starts(val, LENGTH, windows)
    settings = resolve_settings("cpu", "float32", Available.here())
    evaluation = evaluate(watched, val, starts, sequence_length=LENGTH, settings=settings)
    return evaluation, batches, gradients


def test_a_batch_has_a_fixed_number_of_tokens(model):
    evaluation, batches, gradients = evaluated(model, MANY)
    assert [tuple(shape) for shape in batches] == [(BATCH_TOKENS // LENGTH, LENGTH), (3, LENGTH)]
    assert BATCH_TOKENS >= 4096
    assert gradients == [False, False]
    assert len(evaluation.window_losses) == MANY
