"""The replaceable parts of a model: what each field of `ModelSpec` that names one must lead to.

A part is a function or class below `experiments/` of the user's project. The functions here build what a spec names;
a part may call them too, so that a block of one's own has the attention and the norm that the spec names.

- Each part is called while the model is built, on the CPU and on "meta", where tensors have no memory.
- Parameters keep their names in checkpoints. What the constructor puts into them is overwritten: initial weights are a
  function of (seed, parameter name). By default matrices are normal with standard deviation 0.02, `projection.weight`
  is scaled by 1 / sqrt(2 · n_layer), vectors are zero, and those named `…norm.weight` are one. A module with a method
  `initialize` (see `Initializes`) chooses other values.
- Every parameter must get a gradient in every step.
- Buffers work. Those that are not persistent are computed again by the constructor when a checkpoint is loaded.
- A part is compiled on CUDA, and the model runs in float32, float64 and under autocast: take dtypes from the inputs.

B is the batch size, T the sequence length, C = n_embd the width, H = n_head the heads, D = C / n_head a head's width.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from gptlab.errors import BadInputError
from gptlab.model.cache import KeyValueCache
from gptlab.parts import call, resolve
from gptlab.randomness import Purpose, name_word, random_bits
from gptlab.spec import ModelSpec

Rotation = Callable[[Tensor], Tensor]
"""Applies positions to queries or keys, `(B, H, T, D)` to the same shape."""


def unrotated(heads: Tensor) -> Tensor:
    """Return queries or keys as they are."""
    return heads


class Block(Protocol):
    """`model.block(spec, layer)`, one per layer: maps the residual stream to the residual stream."""

    def __call__(self, x: Tensor, rotate: Rotation = unrotated, cache: KeyValueCache | None = None) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`; a position depends on itself and earlier ones only."""


class Attention(Protocol):
    """`model.attention(spec, layer)`: mixes positions.

    Queries and keys pass through `rotate`, then keys and values through `cache.extend(layer, key, value)` if there is a
    cache. With a cache that already holds positions, T is 1.
    """

    def __call__(self, x: Tensor, rotate: Rotation = unrotated, cache: KeyValueCache | None = None) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`; a position depends on itself and earlier ones only."""


class FeedForward(Protocol):
    """`model.feed_forward(spec)`: transforms each position on its own. It may use `activation(spec)`."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`."""


class Norm(Protocol):
    """`model.norm(spec)`: normalizes each position on its own."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`."""


class Activation(Protocol):
    """`model.activation` itself: an elementwise function without parameters."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map a tensor of any shape to the same shape. It must not change `x` in place."""


class Position(Protocol):
    """`model.position(spec)`: what is added to the token embeddings, how queries and keys are rotated, or both.

    A module that rotates has a method `rotate(heads, positions)`, which maps `(B, H, T, D)` to `(B, H, T, D)`.
    """

    def __call__(self, positions: Tensor) -> Tensor | float:
        """Map positions `(1, T)`, counted from 0 at the sequence's start, to `(1, T, C)`, or return 0.0."""


@runtime_checkable
class Initializes(Protocol):
    """A module that chooses the initial values of its parameters and of those of the modules in it."""

    def initialize(self, name: str, parameter: Tensor, generator: torch.Generator) -> bool | None:
        """Fill a parameter in place, or return False to leave it to the default.

        Args:
            name: The parameter's name within this module, such as `projection.weight`.
            parameter: The parameter, without a gradient.
            generator: Seeded with the run's seed and the parameter's full name. Take random numbers from nowhere else.
        """


def block(spec: ModelSpec, layer: int) -> nn.Module:
    """Build the decoder block of a layer."""
    return _module("model.block", spec.block, spec, layer)


def attention(spec: ModelSpec, layer: int) -> nn.Module:
    """Build the attention of a layer."""
    return _module("model.attention", spec.attention, spec, layer)


def feed_forward(spec: ModelSpec) -> nn.Module:
    """Build a feed-forward layer."""
    return _module("model.feed_forward", spec.feed_forward, spec)


def norm(spec: ModelSpec) -> nn.Module:
    """Build a norm of the model's width."""
    return _module("model.norm", spec.norm, spec)


def activation(spec: ModelSpec) -> Activation:
    """Return the activation."""
    return cast(Activation, resolve("model.activation", spec.activation))


def position(spec: ModelSpec) -> nn.Module:
    """Build what tells the model about positions."""
    return _module("model.position", spec.position, spec)


def rotation(module: nn.Module, positions: Tensor) -> Rotation:
    """Return the rotation of queries and keys at these positions, `(1, T)`, by a module for positions."""
    rotate = getattr(module, "rotate", None)
    return partial(rotate, positions=positions) if rotate else unrotated


def initialize(model: nn.Module, name: str, parameter: Tensor, seed: int) -> bool:
    """Let the nearest module around a parameter that has `initialize` choose its values. Returns whether one did."""
    path = name.split(".")
    for depth in range(len(path) - 1, 0, -1):
        module = model.get_submodule(".".join(path[:depth]))
        if isinstance(module, Initializes):
            word = int(random_bits(seed, Purpose.WEIGHTS, name_word(name))[0])
            generator = torch.Generator().manual_seed(word)
            return module.initialize(".".join(path[depth:]), parameter, generator) is not False
    return False


def _module(field: str, name: str, *arguments: object) -> nn.Module:
    module = call(field, name, *arguments)
    if not isinstance(module, nn.Module):
        raise BadInputError(f"{field} is {name}, which returns {type(module).__name__}, not a torch.nn.Module")
    return module
