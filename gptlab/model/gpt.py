"""A GPT, to be read from top to bottom.

- Pre-norm decoder as in GPT-2 (Radford et al. 2019, section 2.3): LayerNorm before each sublayer and after the last.
- Learned positions, tanh-approximated GELU, causal flash attention through `scaled_dot_product_attention`.
- The output layer has no bias and is a matrix of its own unless the spec ties it to the token embedding.
- Initial weights are a function of (seed, parameter name): variants share what they have in common.

B is the batch, T the sequence, C = n_embd the width, V the vocabulary.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptlab.model.loss import mean_cross_entropy, token_cross_entropy
from gptlab.randomness import Purpose, normal_generator
from gptlab.spec import ModelSpec

INIT_STD = 0.02


class KeyValueCache:
    """Keys and values of the positions seen so far, per layer, so that the next token costs one position's work.

    The room is taken once: appending to it copies nothing of what is there.
    """

    def __init__(self, spec: ModelSpec, batch: int, capacity: int, device: torch.device | str = "cpu") -> None:
        """Make room for `capacity` positions of `batch` sequences, in float32."""
        shape = (spec.n_layer, 2, batch, spec.n_head, capacity, spec.n_embd // spec.n_head)
        self._kept = torch.empty(shape, device=device)
        self.length = 0
        """Positions held."""

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put new positions, `(B, n_head, T, C / n_head)`, after those held, and return all of the layer's.

        One sequence is put into every row of the batch: a prompt that all of them continue.
        """
        (batch, _, T, _), kept = key.shape, self._kept[layer]  # (2, B, n_head, capacity, C / n_head)
        for side, new in zip(kept.narrow(3, self.length, T), (key, value), strict=True):
            side.copy_(new)
        keys, values = kept[:, :batch, :, : self.length + T]
        return keys, values


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and what came before (Vaswani et al. 2017, §3.2)."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = spec.n_head
        self.dropout = spec.dropout
        self.query_key_value = nn.Linear(spec.n_embd, 3 * spec.n_embd, bias=spec.bias)
        self.projection = nn.Linear(spec.n_embd, spec.n_embd, bias=spec.bias)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`; with a cache that holds positions already, T is 1."""
        B, T, C = x.shape
        heads = self.query_key_value(x).view(B, T, 3, self.n_head, C // self.n_head)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, n_head, T, C / n_head)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        y = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=T > 1
        )
        x = self.projection(y.transpose(1, 2).reshape(B, T, C))
        return x


class FeedForward(nn.Module):
    """Two matrices around a GELU, four times as wide inside (Hendrycks and Gimpel 2016, the tanh approximation)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.expansion = nn.Linear(spec.n_embd, 4 * spec.n_embd, bias=spec.bias)
        self.projection = nn.Linear(4 * spec.n_embd, spec.n_embd, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`."""
        x = self.expansion(x)  # (B, T, 4C)
        activation = F.gelu(x, approximate="tanh")
        with _gelu_computed_again(x, activation):
            x = self.projection(activation)
        return x


def _gelu_computed_again(x: Tensor, activation: Tensor) -> AbstractContextManager[object]:
    """A context in which autograd keeps nothing of GELU's output, and computes it from its input once more.

    Of all that a block keeps for the backward pass this is a quarter, for less than a hundredth of the time. Only on
    the CPU: elsewhere `torch.compile` weighs such things.
    """
    if x.device.type != "cpu":
        return nullcontext()
    address = activation.data_ptr()
    return torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor.shape if tensor.data_ptr() == address else tensor,
        lambda kept: F.gelu(x, approximate="tanh").view(kept) if isinstance(kept, torch.Size) else kept,
    )


class TransformerDecoderBlock(nn.Module):
    """Attention, then the feed-forward layer, each on a normalised copy and added to the residual stream."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(spec.n_embd, bias=spec.bias)
        self.attention = CausalSelfAttention(spec, layer)
        self.feed_forward_norm = nn.LayerNorm(spec.n_embd, bias=spec.bias)
        self.feed_forward = FeedForward(spec)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), cache))
        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return x


class GPT(nn.Module):
    """Tokens in; logits out, or the loss where targets are given."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.position_embedding = nn.Embedding(spec.context_length, spec.n_embd)
        self.token_embedding = nn.Embedding(spec.vocab_size, spec.n_embd)
        self.dropout = nn.Dropout(spec.dropout)
        self.blocks = nn.ModuleList(TransformerDecoderBlock(spec, layer) for layer in range(spec.n_layer))
        self.final_norm = nn.LayerNorm(spec.n_embd, bias=spec.bias)
        self.output = None if spec.tied else nn.Linear(spec.n_embd, spec.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        reduction: Literal["mean", "none"] = "mean",
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Run the model.

        Args:
            tokens: `(B, T)`, integers below `vocab_size`; T at most `context_length`.
            targets: `(B, T)`, the token that follows each of `tokens`.
            reduction: Of the loss over all B · T targets.
            cache: Positions that came before; the new ones are added to it. Not with targets.

        Returns:
            Logits `(B, T, V)`, with a cache the last position's `(B, 1, V)`, or with targets the cross-entropy in nats:
            a scalar, or `(B, T)` for "none".
        """
        T = tokens.shape[1]
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + T, device=tokens.device).unsqueeze(0)  # (1, T)
        x = self.dropout(self.position_embedding(positions) + self.token_embedding(tokens))  # (B, T, C)
        for block in self.blocks:
            x = block(x, cache)
        if cache is not None:
            cache.length += T
            x = x[:, -1:]  # the others' next tokens are known
        x = self.final_norm(x)
        output = self.token_embedding.weight if self.output is None else self.output.weight  # (V, C)
        if targets is None:
            return F.linear(x, output) if self.output is None else self.output(x)
        if reduction == "mean":
            return mean_cross_entropy(x.flatten(0, 1), output, targets.flatten())
        return token_cross_entropy(x.flatten(0, 1), output, targets.flatten()).view_as(targets)


def build(spec: ModelSpec, seed: int) -> GPT:
    """The model on the CPU with its initial weights: a function of (seed, parameter name), whatever else there is.

    Matrices and embeddings are normal with standard deviation 0.02, the projections into the residual stream scaled by
    1 / sqrt(2 · n_layer) (Radford et al. 2019, §2.3); biases are zero and LayerNorm weights one.
    """
    model = empty(spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                continue
            std = INIT_STD / math.sqrt(2 * spec.n_layer) if name.endswith("projection.weight") else INIT_STD
            normal = normal_generator(seed, Purpose.WEIGHTS, name).standard_normal(tuple(parameter.shape), "float32")
            parameter.copy_(torch.from_numpy(normal)).mul_(std)
    return model


def empty(spec: ModelSpec, device: str = "cpu") -> GPT:
    """The model with uninitialised weights, to be filled by the caller; without memory for them on "meta"."""
    with torch.device(device), _Uninitialised():
        return GPT(spec)


class _Uninitialised(TorchFunctionMode):
    """A context in which torch's modules draw no initial weights of their own.

    Nobody would read them; and on "meta", where drawing costs nothing else, it imports `torch.compile`: a second.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))
