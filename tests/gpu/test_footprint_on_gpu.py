"""The predicted memory is that of a captured, compiled step on a GPU."""

import gc

import pytest
import torch
from gpu.test_step_on_gpu import new

from gptlab.training.footprint import Layout, footprint


@pytest.mark.parametrize(("B", "T"), [(32, 1024), (4, 100)])
def test_predicted_memory_is_that_of_a_step(small, B, T):
    changes = {"model.n_layer": 12, "model.n_head": 12, "model.n_embd": 768, "model.context_length": 1024}
    experiment = small.with_changes({**changes, "train.batch_size": B, "train.sequence_length": T})
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _, step = new(experiment, compiled=True)
    for number in range(3):
        step(number)
    measured = torch.cuda.max_memory_allocated() - before
    phases = footprint(experiment, Layout("cuda", "bfloat16")).phases
    predicted = max(sum(phase.values()) for name, phase in phases.items() if name != "validation")
    assert predicted == pytest.approx(measured, rel=0.15)
