"""What is measured is this process's own."""

import subprocess
import sys

PEAK = "from gptlab.training.stopwatch import peak_memory_gib; print(peak_memory_gib('cpu'))"
STARTER = """
import subprocess, sys
much = b"x" * (2 << 30)
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""


def test_the_peak_does_not_begin_at_the_memory_of_the_process_that_started_this_one():
    done = subprocess.run([sys.executable, "-c", STARTER, PEAK], capture_output=True, text=True, check=True)
    assert 0.1 < float(done.stdout) < 1, "GiB: torch itself, and not the two of the process before"
