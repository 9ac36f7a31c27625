"""Device → settings, as one pure function, and the process-wide switches that go with them."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from gptlab.errors import BadInputError, GptlabError
from gptlab.spec import Precision, TrainSpec

Device = Literal["cpu", "cuda", "mps"]

BFLOAT16_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""Dense bfloat16 peak by a part of the device's name, from the vendor's data sheets."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


@dataclass(frozen=True)
class Available:
    """What the machine has."""

    cuda: bool
    mps: bool
    bfloat16: bool
    """Whether the CUDA device computes in bfloat16."""

    @classmethod
    def here(cls) -> "Available":
        """This machine."""
        cuda = torch.cuda.is_available()
        return cls(cuda, torch.backends.mps.is_available(), cuda and torch.cuda.is_bf16_supported())


@dataclass(frozen=True)
class Settings:
    """How a spec is computed on a device."""

    device: Device
    precision: Precision
    compile: bool
    """Whether the model goes through `torch.compile`."""
    fused: bool
    """Whether AdamW is one kernel."""
    asynchronous: bool
    """Whether the device runs behind the host, so that reading a number waits for it."""


def resolve(device: str, precision: str, available: Available) -> Settings:
    """The settings for a wanted device and precision, either of which may be `auto`.

    Raises:
        BadInputError: The device is not there or cannot compute in that precision.
    """
    if device not in {"auto", "cpu", "cuda", "mps"}:
        raise BadInputError(f"there is no device '{device}'; choose auto, cpu, cuda or mps")
    if (device == "cuda" and not available.cuda) or (device == "mps" and not available.mps):
        raise BadInputError(f"this machine's PyTorch has no {device} device; choose --device auto")
    if device == "auto":
        device = "cuda" if available.cuda else "mps" if available.mps else "cpu"
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" and available.bfloat16 else "float32"
    if precision == "bfloat16" and (device == "mps" or (device == "cuda" and not available.bfloat16)):
        raise BadInputError(f"this {device} device cannot train in bfloat16; --set train.precision=float32")
    return Settings(
        device=cast(Device, device),
        precision=cast(Precision, precision),
        compile=device == "cuda",
        fused=device in {"cpu", "cuda"},
        asynchronous=device != "cpu",
    )


def peak_flops(device: Device) -> float | None:
    """The device's dense bfloat16 peak in FLOP/s, where it is known."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((flops for part, flops in BFLOAT16_PEAK_FLOPS.items() if part in name), None)


def machine(settings: Settings) -> dict[str, Any]:
    """What the numbers depend on besides the spec and the code, as `attempts.jsonl` records it."""
    return {
        "device": device_name(settings.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def device_name(device: Device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of giving it back to the kernel.

    Activations are freed and taken again in every step; by default glibc maps and unmaps such large buffers each time,
    which costs a hundred thousand page faults per step.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(M_MMAP_MAX, 0)  # older versions refuse a large M_MMAP_THRESHOLD
            mallopt(M_TRIM_THRESHOLD, -1)


@contextmanager
def memory_errors_explained(train: TrainSpec | None = None) -> Iterator[None]:
    """A context in which running out of memory is an error that says how to mend it, in training by a smaller batch.

    Raises:
        GptlabError: Memory ran out, on the host or on the device.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = ("can't allocate memory", "out of memory")
        if not isinstance(error, MemoryError) and not any(word in str(error) for word in words):
            raise
        if train is None:
            raise GptlabError("out of memory; end other programs, or try --device cpu") from error
        raise GptlabError(
            f"out of memory with batch_size {train.batch_size} × sequence_length {train.sequence_length}; "
            f"try --set train.batch_size={max(train.batch_size // 2, 1)} or a smaller model"
        ) from error


def be_deterministic() -> None:
    """Let every kernel give the same bits each time, where it can be had at the cost of speed; before CUDA starts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
