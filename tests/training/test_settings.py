import platform
import subprocess
import sys
from dataclasses import replace

import pytest

from gptlab.errors import BadInputError
from gptlab.training.settings import Available, Settings, resolve_settings

WITHOUT_COMPILER = Available(cuda=True, mps=False, bfloat16=True, compiler=False)
NOTHING = Available(cuda=False, mps=False, bfloat16=False)
HOPPER = Available(cuda=True, mps=False, bfloat16=True)
VOLTA = Available(cuda=True, mps=False, bfloat16=False)
APPLE = Available(cuda=False, mps=True, bfloat16=False)

CPU = Settings("cpu", "float32", compile=False, fused=True, asynchronous=False)
CUDA = Settings("cuda", "bfloat16", compile=True, fused=True, asynchronous=True, capture=True)
MPS = Settings("mps", "float32", compile=False, fused=False, asynchronous=True)


@pytest.mark.parametrize(
    ("device", "precision", "available", "expected"),
    [
        ("auto", "auto", NOTHING, CPU),
        ("auto", "auto", APPLE, MPS),
        ("auto", "auto", HOPPER, CUDA),
        ("auto", "auto", WITHOUT_COMPILER, replace(CUDA, compile=False)),
        ("auto", "auto", VOLTA, replace(CUDA, precision="float32")),
        ("auto", "float32", HOPPER, replace(CUDA, precision="float32")),
        ("cpu", "auto", HOPPER, CPU),
        ("cpu", "bfloat16", NOTHING, Settings("cpu", "bfloat16", compile=False, fused=True, asynchronous=False)),
        ("mps", "auto", APPLE, MPS),
    ],
)
def test_device_and_precision_decide_the_settings(device, precision, available, expected):
    assert resolve_settings(device, precision, available) == expected


@pytest.mark.parametrize(
    ("device", "precision", "available", "message"),
    [
        ("cuda", "auto", NOTHING, "no cuda device"),
        ("mps", "auto", HOPPER, "no mps device"),
        ("tpu", "auto", HOPPER, "there is no device 'tpu'"),
        ("cuda", "bfloat16", VOLTA, "cannot train in bfloat16"),
        ("mps", "bfloat16", APPLE, "cannot train in bfloat16"),
    ],
)
def test_a_device_or_precision_that_the_machine_lacks_is_refused(device, precision, available, message):
    with pytest.raises(BadInputError, match=message):
        resolve_settings(device, precision, available)


FAULTS = """
import resource, statistics, torch
from gptlab.training.memory import keep_freed_memory
def step():
    torch.ones(16, 1 << 20).add_(1)  # 64 MiB, allocated and freed
def median_faults():
    faults = []
    for _ in range(15):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(faults)  # it ignores the few steps in which the heap grows elsewhere
print(median_faults())
keep_freed_memory()
print(median_faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives large buffers back at every free")
def test_freed_memory_is_kept_so_that_steps_cause_no_page_faults():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True)
    default, kept = map(int, done.stdout.split())
    assert kept < 100 < 10_000 < default
