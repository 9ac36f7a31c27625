"""Settings that determine how a spec is computed on a device: precision, compilation and kernels."""

import os
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch

from gptlab import compiler
from gptlab.errors import BadInputError
from gptlab.spec import Precision

Device = Literal["cpu", "cuda", "mps"]

BFLOAT16_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""Dense bfloat16 peak in FLOP/s by a part of the device's name, from the vendor's data sheets."""


@dataclass(frozen=True)
class Available:
    """The accelerators of a machine."""

    cuda: bool
    mps: bool
    bfloat16: bool
    """Whether the CUDA device supports bfloat16."""
    compiler: bool = True
    """Whether kernels can be compiled for the CUDA device."""

    @classmethod
    def here(cls) -> "Available":
        """Return the accelerators of this machine."""
        cuda = torch.cuda.is_available()
        bfloat16 = cuda and torch.cuda.is_bf16_supported()
        return cls(cuda, torch.backends.mps.is_available(), bfloat16, cuda and compiler.missing("cuda") is None)


@dataclass(frozen=True)
class Settings:
    """How a spec is computed on a device."""

    device: Device
    precision: Precision
    compile: bool
    """Whether the model's blocks are compiled by `torch.compile`."""
    fused: bool
    """Whether AdamW is one fused kernel."""
    asynchronous: bool
    """Whether the device runs asynchronously to the host, so that reading a number waits for it."""
    capture: bool = False
    """Whether the step is captured as a CUDA graph."""

    @property
    def capturable(self) -> bool:
        """Whether the optimizer's step could be captured. On CUDA always, so that `capture` changes no number."""
        return self.device == "cuda" or self.capture

    @property
    def copies_in_background(self) -> bool:
        """Whether the device copies results to the host while it goes on with the next step."""
        return self.asynchronous and self.device != "mps"

    def autocast(self) -> torch.autocast:
        """Return a context manager in which matrix products use `precision`."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def environment(self) -> dict[str, Any]:
        """Return what the numbers depend on besides spec and code, as `attempts.jsonl` records it."""
        return {
            "device": self.device_name(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "compile": self.compile,
            "capture": self.capture,
        }

    def device_name(self) -> str:
        """Return the name of the GPU, or the kind of device."""
        return torch.cuda.get_device_name() if self.device == "cuda" else self.device


def resolve_settings(device: str, precision: str, available: Available) -> Settings:
    """Return the settings for a device and a precision, each of which may be `auto`.

    Raises:
        BadInputError: The device is not available or does not support the precision.
    """
    if device not in {"auto", *get_args(Device)}:
        raise BadInputError(f"there is no device '{device}'; choose auto, cpu, cuda or mps")
    if (device == "cuda" and not available.cuda) or (device == "mps" and not available.mps):
        raise BadInputError(f"PyTorch finds no {device} device on this machine; use --device auto")
    if device == "auto":
        device = "cuda" if available.cuda else "mps" if available.mps else "cpu"
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" and available.bfloat16 else "float32"
    if precision == "bfloat16" and (device == "mps" or (device == "cuda" and not available.bfloat16)):
        raise BadInputError(f"this {device} device cannot train in bfloat16; use --set train.precision=float32")
    return Settings(
        device=cast(Device, device),
        precision=cast(Precision, precision),
        compile=device == "cuda" and available.compiler,
        fused=device in {"cpu", "cuda"},
        asynchronous=device != "cpu",
        capture=device == "cuda",
    )


def choose_kernels(settings: Settings, compile_: bool | None, capture: bool | None) -> Settings:
    """Return settings with another choice of kernels; None keeps the default.

    Raises:
        BadInputError: The machine lacks what compiling needs, or the device has no CUDA graphs.
    """
    if compile_ and (lacking := compiler.missing(settings.device)):
        raise BadInputError(f"--compile needs {lacking}; or leave --compile out")
    if capture and settings.device != "cuda":
        raise BadInputError(f"--capture needs a CUDA device, not {settings.device}; leave it out")
    return replace(
        settings,
        compile=settings.compile if compile_ is None else compile_,
        capture=settings.capture if capture is None else capture,
    )


def peak_flops(device: Device) -> float | None:
    """Return the device's dense bfloat16 peak in FLOP/s, or None if it is unknown."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((flops for part, flops in BFLOAT16_PEAK_FLOPS.items() if part in name), None)


def use_deterministic_kernels() -> None:
    """Use kernels that give the same bits each time, which are slower. Call it before CUDA is initialized."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
