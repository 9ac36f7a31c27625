"""Losses of individual validation windows as a safetensors file with a checksum, which the format does not have."""

import json

import numpy as np
import safetensors.numpy
import xxhash
from numpy.typing import NDArray

METADATA = "gptlab"


def to_bytes(starts: NDArray[np.int64], losses: NDArray[np.float64]) -> bytes:
    """Return the content of a file: the index of each window's first token, its loss, and the checksum of both."""
    metadata = {METADATA: json.dumps({"xxh3_128": checksum(starts, losses)})}
    return safetensors.numpy.save({"start": starts, "loss": losses}, metadata)


def checksum(starts: NDArray[np.int64], losses: NDArray[np.float64]) -> str:
    """Return the checksum of the window starts and their losses, as little-endian integers and floats of 64 bits."""
    digest = xxhash.xxh3_128(np.ascontiguousarray(starts, "<i8").tobytes())
    digest.update(np.ascontiguousarray(losses, "<f8").tobytes())
    return digest.hexdigest()
