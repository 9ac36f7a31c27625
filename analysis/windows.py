"""Losses of individual validation windows, which `gptlab eval` saves in a run's `evaluations/`."""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from gptlab.errors import GptlabError
from gptlab.tracking import evaluations
from gptlab.tracking.run import EVALUATIONS, Run

MAX_BYTES = 1 << 28
"""Enough for sixteen million windows."""

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
        try:
            if path.stat().st_size > MAX_BYTES:
                raise GptlabError(f"{path} is larger than {MAX_BYTES:,} bytes")
            with safe_open(path, framework="numpy", backend="pread") as file:  # a file that shrinks is an error
                stored = (file.metadata() or {}).get(evaluations.METADATA)
                slices = {key: file.get_slice(key) for key in sorted(file.keys())}
                kinds = {key: (part.get_dtype(), len(part.get_shape())) for key, part in slices.items()}
                if kinds != {"start": ("I64", 1), "loss": ("F64", 1)}:
                    raise GptlabError(f"{path} does not contain window losses")
                starts, values = file.get_tensor("start"), file.get_tensor("loss")
        except (SafetensorError, OSError) as error:
            raise GptlabError(f"{path} is not a safetensors file: {error}") from error
        if len(starts) != len(values) or len(np.unique(starts)) != len(starts):
            raise GptlabError(f"{path} does not contain one loss per window")
        if stored is not None and _checksum_in(stored) != evaluations.checksum(starts, values):
            raise GptlabError(f"{path} is damaged: its checksum is wrong; evaluate the run again with: gptlab eval")
        for start, loss in zip(starts.tolist(), values.tolist(), strict=True):
            yield {"step": int(name[1]), "yardstick": name[2], "start": start, "loss": loss}


def _checksum_in(metadata: str) -> str | None:
    """The checksum in a file's metadata; None if it has none that could be right."""
    try:
        return str(json.loads(metadata)["xxh3_128"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
