"""torch draws no initial values while a model is built."""

import subprocess
import sys

import pytest

BUILD = """
import sys, torch
from gptlab.model import gpt
from gptlab.spec import ModelSpec
state = torch.get_rng_state()
gpt.empty(ModelSpec(n_layer=1, n_head=1, n_embd=8), sys.argv[1])
assert torch.equal(torch.get_rng_state(), state), "torch drew initial values"
assert "torch._dynamo" not in sys.modules, "torch imported its compiler"
"""


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_building_draws_nothing_and_does_not_import_the_compiler(device: str):
    """In a new process, because other tests may have imported the compiler."""
    done = subprocess.run([sys.executable, "-c", BUILD, device], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
