"""Several processes with a GPU each train as one process does."""

import math
import subprocess
import sys

import pytest
import torch

from gptlab.tracking.metrics import read_metrics

TOLERANCE = 2e-3
"""Of losses in nats: bfloat16 rounds the products of other batches differently."""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("options", [[], ["--shard"]])
def test_two_gpus_train_as_one_and_one_resumes_them(project, tmp_path, monkeypatch, options):
    losses = []
    for name, parts in {
        "one": [([], 10)],
        "two": [(["--nproc", "2", *options], 5), ([], 7), (["--nproc", "2"], 10)],
    }.items():
        monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / name))
        for processes, steps in parts:
            command = ["run", "micro", "--wandb", "off", "--steps", str(steps), "--set", "model.n_embd=64", *processes]
            subprocess.run([sys.executable, "-m", "gptlab", *command, "--set", "train.log_every=1"], check=True)
        (directory,) = (tmp_path / name).glob("micro-*")
        losses.append([row["train/loss"] for row in read_metrics(directory) if row["step"]])
    for one, two in zip(*losses, strict=True):
        assert math.isclose(one, two, abs_tol=TOLERANCE)
