"""Losses of individual validation windows as a safetensors file with a checksum, which the format does not have."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gptlab.errors import GptlabError

METADATA = "gptlab"
MAX_BYTES = 1 << 28
"""Enough for sixteen million windows."""


def to_bytes(starts: NDArray[np.int64], losses: NDArray[np.float64]) -> bytes:
    """Return the content of a file: the index of each window's first token, its loss, and the checksum of both."""
    metadata = {METADATA: json.dumps({"xxh3_128": checksum(starts, losses)})}
    return safetensors.numpy.save({"start": starts, "loss": losses}, metadata)


def checksum(starts: NDArray[np.int64], losses: NDArray[np.float64]) -> str:
    """Return the checksum of the window starts and their losses, as little-endian integers and floats of 64 bits."""
    digest = xxhash.xxh3_128(np.ascontiguousarray(starts, "<i8").tobytes())
    digest.update(np.ascontiguousarray(losses, "<f8").tobytes())
    return digest.hexdigest()


def read(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the window starts and losses of a file, which may be untrusted.

    A file without a checksum, which earlier versions wrote, is read without verification.

    Raises:
        GptlabError: The file is invalid or damaged; the message names it.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise GptlabError(f"{path} is larger than {MAX_BYTES:,} bytes")
        with safe_open(path, framework="numpy", backend="pread") as file:  # a file that shrinks is an error
            stored = (file.metadata() or {}).get(METADATA)
            slices = {key: file.get_slice(key) for key in sorted(file.keys())}
            kinds = {key: (part.get_dtype(), len(part.get_shape())) for key, part in slices.items()}
            if kinds != {"start": ("I64", 1), "loss": ("F64", 1)}:
                raise GptlabError(f"{path} does not contain window losses")
            starts, losses = file.get_tensor("start"), file.get_tensor("loss")
    except (SafetensorError, OSError) as error:
        raise GptlabError(f"{path} is not a safetensors file: {error}") from error
    if len(starts) != len(losses) or len(np.unique(starts)) != len(starts):
        raise GptlabError(f"{path} does not contain one loss per window")
    if stored is not None and _checksum_in(stored) != checksum(starts, losses):
        raise GptlabError(f"{path} is damaged: its checksum is wrong; evaluate the run again with: gptlab eval")
    return starts, losses


def _checksum_in(metadata: str) -> str | None:
    """The checksum in a file's metadata; None if it has none that could be right."""
    try:
        return str(json.loads(metadata)["xxh3_128"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
