"""The key-value cache, with which sampling computes each position once."""

import torch
from torch import Tensor

from gptlab.spec import ModelSpec


class KeyValueCache:
    """Keys and values of all previous positions, so that the next token costs one position's work.

    The buffer is allocated once; appending copies only the new positions.
    """

    def __init__(
        self,
        spec: ModelSpec,
        batch: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate `capacity` positions of `batch` sequences."""
        shape = (spec.n_layer, 2, batch, spec.n_head, capacity, spec.n_embd // spec.n_head)
        buffer = torch.empty(shape, device=device, dtype=dtype)
        self._layers = [layer.unbind() for layer in buffer.unbind()]  # keys and values of each layer
        self.length = 0
        """Positions stored."""

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append T positions to a layer and return all of its keys and values.

        Args:
            layer: Index of the decoder block.
            key: `(B, n_head, T, C / n_head)`; a batch of 1, a shared prompt, is stored for every sequence.
            value: Like `key`.

        Returns:
            Views of shape `(B, n_head, length + T, C / n_head)`.
        """
        (B, _, T, _), (keys, values) = key.shape, self._layers[layer]  # (batch, n_head, capacity, C / n_head)
        keys.narrow(2, self.length, T).copy_(key)
        values.narrow(2, self.length, T).copy_(value)
        length = self.length + T
        return keys[:B, :, :length], values[:B, :, :length]
