"""Memory: keep freed host memory for reuse, and explain out-of-memory errors."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gptlab.errors import GptlabError, is_out_of_memory
from gptlab.spec import TrainSpec

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the kernel.

    Activations are freed and allocated again in every step. By default glibc maps and unmaps such large buffers each
    time, which costs a hundred thousand page faults per step. Does nothing without glibc.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(M_MMAP_MAX, 0)  # older versions refuse a large M_MMAP_THRESHOLD
            mallopt(M_TRIM_THRESHOLD, -1)


@contextmanager
def explain_out_of_memory(train: TrainSpec | None = None) -> Iterator[None]:
    """Turn out-of-memory errors into a `GptlabError` with a remedy: in training, with `train` given, a smaller batch.

    Raises:
        GptlabError: The host or the device ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if train is None:
            raise GptlabError("out of memory; close other programs, or try --device cpu") from error
        raise GptlabError(
            f"out of memory with batch_size {train.batch_size} × sequence_length {train.sequence_length}; "
            f"try --set train.batch_size={max(train.batch_size // 2, 1)} or a smaller model"
        ) from error
