"""Tests that need a CUDA device; `make test-gpu` runs them."""

from collections.abc import Iterator

import pytest
import torch

from gptlab.spec import Experiment


@pytest.fixture(autouse=True)
def device() -> str:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, which `make test-gpu` shows to the tests")
    return "cuda"


@pytest.fixture
def small(micro: Experiment) -> Experiment:
    """An experiment whose heads are wide enough for flash attention."""
    return micro.with_changes({"model.n_embd": 64, "train.checkpoint_every": 5, "train.steps": 20})


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels that give the same bits each time, for steps that a test runs itself."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
