"""Losses of individual validation windows, which `gptlab eval` saves in a run's `evaluations/`."""

import re
from collections.abc import Iterator
from typing import Any

from gptlab.tracking import evaluations
from gptlab.tracking.run import EVALUATIONS, Run

_NAME = re.compile(r"step-([0-9]{8})-([0-9a-f]{8})\.safetensors")


def window_losses(run: Run) -> Iterator[dict[str, Any]]:
    """Yield a row for each window that a run was evaluated on, by step and yardstick.

    A file without a checksum, which earlier versions wrote, is read without verification.

    Raises:
        GptlabError: A file is invalid; the message names it.
    """
    for path in sorted((run.directory / EVALUATIONS).glob("*.safetensors")):
        if not (name := _NAME.fullmatch(path.name)):
            continue
        starts, values = evaluations.read(path)
        for start, loss in zip(starts.tolist(), values.tolist(), strict=True):
            yield {"step": int(name[1]), "yardstick": name[2], "start": start, "loss": loss}
