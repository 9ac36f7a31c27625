"""The GPT.

- Pre-norm decoder as in GPT-2 (Radford et al. 2019, section 2.3): LayerNorm before each sublayer and after the last.
- Learned positions and causal flash attention through `scaled_dot_product_attention`.
- The output layer has no bias and its own weight, unless the spec ties it to the token embedding.
- Initial weights are a function of (seed, parameter name), so variants share the weights of the layers they share.
- A spec can replace parts by others; `gptlab.model.parts` describes and builds them.

B is the batch size, T the sequence length, C = n_embd the width, V the vocabulary size.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.errors import BadInputError
from gptlab.model import parts
from gptlab.model.cache import KeyValueCache
from gptlab.model.loss import mean_cross_entropy, token_cross_entropy
from gptlab.model.parts import Rotation, unrotated
from gptlab.model.recompute import compose_with_recompute
from gptlab.model.uninitialized import Embedding, Linear
from gptlab.randomness import Purpose, normal_generator
from gptlab.spec import ModelSpec

INIT_STD = 0.02


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention; each position attends to itself and earlier ones (Vaswani et al. 2017, §3.2)."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = spec.n_head
        self.dropout = spec.dropout
        self.query_key_value = Linear(spec.n_embd, 3 * spec.n_embd, bias=spec.bias)
        self.projection = Linear(spec.n_embd, spec.n_embd, bias=spec.bias)

    def forward(self, x: Tensor, rotate: Rotation = unrotated, cache: KeyValueCache | None = None) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`; T is 1 if the cache already holds positions."""
        B, T, C = x.shape
        heads = self.query_key_value(x).view(B, T, 3, self.n_head, C // self.n_head)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()  # each (B, n_head, T, C / n_head)
        query, key = rotate(query), rotate(key)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        y = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=T > 1
        )
        x = self.projection(y.transpose(1, 2).reshape(B, T, C))
        return x


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, four times as wide inside (Vaswani et al. 2017, §3.3)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.expansion = Linear(spec.n_embd, 4 * spec.n_embd, bias=spec.bias)
        self.activation = parts.activation(spec)
        self.projection = Linear(4 * spec.n_embd, spec.n_embd, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`."""
        x = self.expansion(x)  # (B, T, 4C)
        x = compose_with_recompute(self.projection, self.activation, x)  # (B, T, C), projection(activation(x))
        return x


class TransformerDecoderBlock(nn.Module):
    """Attention, then the feed-forward layer, each applied to a normalized copy and added to the residual stream."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.attention_norm = parts.norm(spec)
        self.attention = parts.attention(spec, layer)
        self.feed_forward_norm = parts.norm(spec)
        self.feed_forward = parts.feed_forward(spec)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x: Tensor, rotate: Rotation = unrotated, cache: KeyValueCache | None = None) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotate, cache))
        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return x


def layer_norm(spec: ModelSpec) -> nn.LayerNorm:
    """Return a LayerNorm of the model's width (Ba et al. 2016)."""
    return nn.LayerNorm(spec.n_embd, bias=spec.bias)


def learned_positions(spec: ModelSpec) -> Embedding:
    """Return an embedding of positions, which is added to that of tokens (Gehring et al. 2017)."""
    return Embedding(spec.context_length, spec.n_embd)


class GPT(nn.Module):
    """A decoder-only transformer that returns logits, or the loss if it is given targets.

    The constructor leaves matrices and embeddings uninitialized: use `build`.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.position_embedding = parts.position(spec)
        self.token_embedding = Embedding(spec.vocab_size, spec.n_embd)
        self.dropout = nn.Dropout(spec.dropout)
        self.blocks = nn.ModuleList(parts.block(spec, layer) for layer in range(spec.n_layer))
        self.final_norm = parts.norm(spec)
        self.output = None if spec.tied else Linear(spec.n_embd, spec.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        reduction: Literal["mean", "none"] = "mean",
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Compute logits or, with targets, the cross-entropy in nats.

        Args:
            tokens: `(B, T)`, integers below V; T is at most `context_length`.
            targets: `(B, T)`, the token that follows each of `tokens`.
            reduction: "mean" for the mean loss over all B · T targets, "none" for per-token losses.
            cache: Earlier positions; the positions of `tokens` are appended. Cannot be combined with targets.

        Returns:
            Logits of shape `(B, T, V)`, or `(B, 1, V)` for the last position only if there is a cache. With targets
            the loss: a scalar, or `(B, T)` for "none".
        """
        T = tokens.shape[1]
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + T, device=tokens.device).unsqueeze(0)  # (1, T)
        x = self.dropout(self.position_embedding(positions) + self.token_embedding(tokens))  # (B, T, C)
        rotate = parts.rotation(self.position_embedding, positions)
        for block in self.blocks:
            x = block(x, rotate, cache)
        if cache is not None:
            cache.length += T
            x = x[:, -1:]  # the tokens that follow the other positions are known
        x = self.final_norm(x)
        output = self.token_embedding.weight if self.output is None else self.output.weight  # (V, C)
        if targets is None:
            return F.linear(x, output) if self.output is None else self.output(x)
        if reduction == "mean":
            return mean_cross_entropy(x.flatten(0, 1), output, targets.flatten())
        return token_cross_entropy(x.flatten(0, 1), output, targets.flatten()).view_as(targets)


def build(spec: ModelSpec, seed: int) -> GPT:
    """Return the model on the CPU with its initial weights, each a function of (seed, parameter name) only.

    Matrices and embeddings are normal with standard deviation 0.02; the projections into the residual stream are
    scaled by 1 / sqrt(2 · n_layer) (Radford et al. 2019, §2.3). Biases are zero and LayerNorm weights one. A part can
    choose other values (`gptlab.model.parts.Initializes`).
    """
    model = empty(spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parts.initialize(model, name, parameter, seed):
                _initialize(name, parameter, spec, seed)
    return model


def _initialize(name: str, parameter: nn.Parameter, spec: ModelSpec, seed: int) -> None:
    if parameter.ndim <= 1:
        parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        return
    std = INIT_STD / math.sqrt(2 * spec.n_layer) if name.endswith("projection.weight") else INIT_STD
    normal = normal_generator(seed, Purpose.WEIGHTS, name).standard_normal(tuple(parameter.shape), "float32")
    parameter.copy_(torch.from_numpy(normal)).mul_(std)


def empty(spec: ModelSpec, device: str = "cpu") -> GPT:
    """Return the model with uninitialized weights; on "meta" they take no memory.

    Raises:
        BadInputError: A part is gone, or is not what `gptlab.model.parts` asks for.
    """
    with torch.device(device):
        model = GPT(spec)
    if spec.has_parts:
        _check_tensors(model)
    return model


def with_weights(spec: ModelSpec, weights: dict[str, Tensor]) -> GPT:
    """Return a model whose parameters are the given tensors, not copies of them.

    Raises:
        BadInputError: See `empty`.
    """
    model = empty(spec, "cpu" if spec.has_parts else "meta")  # parts compute their buffers in the constructor
    model.load_state_dict(weights, assign=True)
    return model


def _check_tensors(model: GPT) -> None:
    """Check that every parameter and buffer has one name and can be saved and restored under it."""
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if (other := first.setdefault(id(tensor), name)) != name:
            raise BadInputError(f"the model's parts use {other} again as {name}; give each parameter one name")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or not parameter.requires_grad:
            kind = parameter.dtype if parameter.requires_grad else "a parameter without gradient"
            raise BadInputError(
                f"the model's part has {name} as {kind}; parameters are trainable and float32, use a buffer instead"
            )
