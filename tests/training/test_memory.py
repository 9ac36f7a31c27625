"""A thousand steps take no more memory than the first fifty."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

STEPS = """
import torch
from gptlab.model import gpt
from gptlab.spec import ModelSpec, TrainSpec
from gptlab.training import optimizer
from gptlab.training.memory import keep_freed_memory

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

keep_freed_memory()
torch.set_num_threads(1)
model = gpt.build(ModelSpec(n_layer=1, n_head=1, n_embd=2, context_length=16), seed=0)
adamw = optimizer.build(model, TrainSpec(), fused=True)
for step in range(1000):
    tokens = torch.arange(4).unsqueeze(0)
    model(tokens, tokens).backward()
    optimizer.clipped_update(adamw, optimizer.gradient_norm(model), 1.0)
    if step == 50:
        early = resident_mib()
print(resident_mib() - early)
"""


def test_a_thousand_steps_take_no_more_memory_than_fifty():
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 8
