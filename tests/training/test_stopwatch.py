"""The measured peak memory is that of this process only."""

import subprocess
import sys

import pytest

PEAK = "from gptlab.training.stopwatch import peak_memory_gib; print(peak_memory_gib('cpu'))"
STARTER = """
import subprocess, sys
much = b"x" * (2 << 30)
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""


@pytest.mark.slow
def test_peak_memory_does_not_include_that_of_the_parent_process():
    done = subprocess.run([sys.executable, "-c", STARTER, PEAK], capture_output=True, text=True, check=True)
    assert 0.1 < float(done.stdout) < 1, "GiB: torch itself, and not the two of the process before"
