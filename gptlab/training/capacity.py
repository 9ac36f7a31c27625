"""Fit a run to the processors and the memory that this process may use, and say so where they do not suffice."""

import os

import torch

from gptlab.limits import THREAD_VARIABLES, memory_limit, out_of_memory_kills, processors
from gptlab.terminal.text import plural
from gptlab.tracking.records import End, Start
from gptlab.training.settings import Device

STATE_BYTES = {"cpu": 16, "mps": 16, "cuda": 12}
"""Host memory per parameter: weights, gradients and two moments in float32; a GPU's host holds a save's copy only."""
TIGHT = 0.8
"""Above this part of the limit, memory probably killed an attempt that has no end: activations come on top."""


def limit_threads() -> None:
    """Use no more threads than the processors allow: threads that share one quota wait for each other.

    The user's own choice in the environment holds.
    """
    allowed = processors().threads
    if allowed < torch.get_num_threads() and not any(map(os.environ.get, THREAD_VARIABLES)):
        torch.set_num_threads(allowed)


def describe_threads() -> str:
    """Return the number of threads, and the quota if there is one."""
    found, threads = processors(), plural(torch.get_num_threads(), "thread")
    cores = plural(found.cores, "core")
    return threads if found.quota is None else f"{threads} (CPU quota {found.quota:.3g} of {cores})"


def memory_notice(parameters: int, device: Device, attempts: list[Start | End], *, killed: bool) -> str | None:
    """Say if a run needs more memory than it may use, and if this is why the last attempt was killed.

    Args:
        parameters: Number of parameters of the model to train.
        device: The device to train on.
        attempts: The rows of earlier attempts.
        killed: Whether the last attempt was killed, perhaps before it could record its start.
    """
    limit = memory_limit()
    if limit is None:
        return None
    state = STATE_BYTES[device] * parameters
    needed = state + limit.in_use
    purpose = "a copy of weights and moments" if device == "cuda" else "weights, gradients and moments"
    facts = (
        f"the run needs at least {_gib(needed)} ({_gib(state)} of it for {purpose}), and {limit.name} is "
        f"{_gib(limit.bytes)}"
    )
    remedy = "raise the limit, or start a run with a smaller model or batch"
    if killed and (needed > TIGHT * limit.bytes or _kernel_has_killed(attempts)):
        return f"the last attempt was killed, probably for its memory: {facts}; {remedy}"
    return f"memory may not suffice: {facts}; {remedy}" if needed > limit.bytes else None


def _kernel_has_killed(attempts: list[Start | End]) -> bool:
    """Whether the kernel has killed a process of this control group since the last attempt started."""
    last = attempts[-1] if attempts else None
    before: int | None = last.get("out_of_memory_kills") if last and last["event"] == "start" else None
    now = out_of_memory_kills()
    return before is not None and now is not None and now > before


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
