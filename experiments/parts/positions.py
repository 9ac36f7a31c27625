"""Other positions than learned embeddings: none, and rotations of queries and keys."""

import torch
from torch import Tensor, nn

from gptlab.spec import ModelSpec

BASE = 10000.0


class NoPositions(nn.Module):
    """No positions: only the causal mask tells the order of tokens (Haviv et al. 2022; Kazemnejad et al. 2023)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()

    def forward(self, positions: Tensor) -> float:
        """Return what is added to the token embeddings."""
        return 0.0


class Rotary(NoPositions):
    """Rotary positions (Su et al. 2021, "RoFormer", section 3.2): pairs of elements are rotated by a position's angle.

    Element i of the first half of a head and element i of the second half are a pair. An element of a head of odd
    width without a partner stays as it is.
    """

    def rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Rotate `(B, H, T, D)` by the angles of positions `(1, T)`."""
        half = heads.shape[-1] // 2
        dtype = torch.promote_types(heads.dtype, torch.float32)
        frequencies = BASE ** -(torch.arange(half, device=heads.device, dtype=dtype) / max(half, 1))  # (D / 2,)
        angles = positions[0, :, None] * frequencies  # (T, D / 2)
        cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
        one, two, rest = heads.split([half, half, heads.shape[-1] - 2 * half], dim=-1)
        return torch.cat([one * cos - two * sin, one * sin + two * cos, rest], dim=-1)
