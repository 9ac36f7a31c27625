"""Recompute an activation in the backward pass instead of keeping its output."""

from collections.abc import Callable

import torch
from torch import Tensor

Geometry = tuple[torch.Size, tuple[int, ...], int]
"""Size, stride and storage offset of a tensor."""


def compose_with_recompute(outer: Callable[[Tensor], Tensor], inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `outer(inner(x))`, but call `inner(x)` again in the backward pass if `outer` needs its value there.

    The gradients are those of the plain composition, to the bit. In the reference model this saves 24 MiB per block at
    2 × 1024 tokens, a fifth of what a block keeps for backward. There it costs no measurable time (0.98 times the plain
    CPU time); `tiny`'s blocks take 1.07 times as long. `torch.utils.checkpoint` would save the same memory, but its
    first call imports `torch.compile`: 1.2 to 1.6 s of CPU time.

    Only on the CPU and not compiled: `torch.compile` decides by itself what to recompute.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return outer(inner(x))
    rng_state, version = torch.get_rng_state(), x._version
    y = inner(x)
    storage = y.untyped_storage().data_ptr()

    def pack(saved: Tensor) -> Tensor | Geometry:
        if saved.untyped_storage().data_ptr() == storage:
            return saved.size(), saved.stride(), int(saved.storage_offset())
        return saved

    def unpack(packed: Tensor | Geometry) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        if x._version != version:
            raise RuntimeError(f"{inner} cannot be recomputed: its input was modified in place")
        with torch.random.fork_rng(devices=()):  # in case `inner` draws random numbers
            torch.set_rng_state(rng_state)
            return inner(x).as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return outer(y)
