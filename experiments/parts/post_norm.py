"""LayerNorm after the sublayer, as in the first transformer (Vaswani et al. 2017, section 3.1)."""

from torch import Tensor, nn

from gptlab.model import parts
from gptlab.model.cache import KeyValueCache
from gptlab.model.parts import Rotation, unrotated
from gptlab.spec import ModelSpec


class PostNormBlock(nn.Module):
    """Each sublayer is added to the residual stream, and the sum is normalized.

    The model's final norm stays: it normalizes what the last block has normalized, with a scale of its own.
    """

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.attention = parts.attention(spec, layer)
        self.attention_norm = parts.norm(spec)
        self.feed_forward = parts.feed_forward(spec)
        self.feed_forward_norm = parts.norm(spec)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x: Tensor, rotate: Rotation = unrotated, cache: KeyValueCache | None = None) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`."""
        x = self.attention_norm(x + self.dropout(self.attention(x, rotate, cache)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
