"""Check a part of a model against the protocol of its field (`gptlab.model.parts`).

The part is checked inside of a small model whose other parts are today's, in float64 and with weights so large that
attention, norms and activations matter. Call `check_part` in a test of your own:

    assert all(check.passed for check in check_part("model.norm", "experiments.parts.rms_norm:RMSNorm"))
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gptlab.errors import BadInputError, is_out_of_memory
from gptlab.experiment_files import reason
from gptlab.model import gpt, parts
from gptlab.model.cache import KeyValueCache
from gptlab.model.gpt import GPT
from gptlab.parts import resolve
from gptlab.spec import ModelSpec

SMALL = ModelSpec(n_layer=2, n_head=2, n_embd=8, context_length=16).model_copy(update={"vocab_size": 64})
"""A model that is checked in milliseconds; no text needs so small a vocabulary, so that a spec could not have it."""
B, T = 2, 9
NOISE = 0.3
DIRECTIONS = 3
EPSILON = 1e-6


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    """What must hold."""
    problem: str = ""
    """What does not; empty if it holds."""

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        return not self.problem


Problem = str | None
"""What is wrong; empty or None if nothing is."""


def run_checks(checks: dict[str, Callable[[], Problem]]) -> list[Check]:
    """Call every check. One that raises an error has failed with that error."""
    return [Check(name, _problem(check)) for name, check in checks.items()]


def check_part(field: str, name: str) -> list[Check]:
    """Check what a field of a model names, built in or a part.

    Raises:
        BadInputError: There is no such field or part.
    """
    resolve(field, name)
    spec = SMALL.model_copy(update={field.partition(".")[2]: name})
    return run_checks(
        {
            "builds, with and without memory": partial(_builds, spec),
            "keeps the shape and the dtype": partial(_keeps_shapes, field, spec),
            "a later token changes no earlier output": partial(_is_causal, spec),
            "gradients agree with finite differences": partial(_gradients_agree, spec),
            "every parameter has a gradient": partial(_gradients_exist, spec),
            "a key-value cache changes nothing": partial(_cache_agrees, spec),
            "the same input gives the same bits": partial(_repeats, spec),
            "a restored model gives the same bits": partial(_restores, spec),
            "float32 agrees with float64": partial(_precisions_agree, spec),
        }
    )


def _problem(check: Callable[[], Problem]) -> str:
    try:
        return check() or ""
    except BadInputError as error:
        return str(error)
    except Exception as error:  # a part can raise anything
        if is_out_of_memory(error):
            raise
        return reason(error)


def _model(spec: ModelSpec, dtype: torch.dtype = torch.float64) -> GPT:
    """A model with noise on its weights."""
    model = gpt.build(spec, seed=0).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise.to(dtype), alpha=NOISE)
    return model


def _tokens() -> Tensor:
    return torch.randint(SMALL.vocab_size, (B, T + 1), generator=torch.Generator().manual_seed(2))


def _builds(spec: ModelSpec) -> Problem:
    here, nowhere = (gpt.empty(spec, device).state_dict() for device in ("cpu", "meta"))
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (here, nowhere)]
    if shapes[0] != shapes[1]:
        return "it has other parameters on the meta device"
    one, two = (gpt.build(spec, seed=0).state_dict() for _ in range(2))
    differing = [name for name in one if not torch.equal(one[name], two[name])]
    return f"{differing[0]} has other initial values each time; see `initialize`" if differing else None


def _keeps_shapes(field: str, spec: ModelSpec) -> Problem:
    for dtype in (torch.float64, torch.float32):
        x = torch.randn((B, T, spec.n_embd), generator=torch.Generator().manual_seed(3)).to(dtype)
        for shape, call in _calls(field, spec, dtype):
            y = call(x)
            if not isinstance(y, Tensor) or (y.shape, y.dtype) != (shape, dtype):
                found = (tuple(y.shape), y.dtype) if isinstance(y, Tensor) else type(y).__name__
                return f"it returns {found}, not {(tuple(shape), dtype)}"
            if not y.isfinite().all():
                return "its output is not finite"
    return None


def _calls(field: str, spec: ModelSpec, dtype: torch.dtype) -> list[tuple[torch.Size, Callable[[Tensor], Any]]]:
    """The shape that each way of calling the part on `(B, T, C)` must return, and the way."""
    build: dict[str, Callable[[], Any]] = {
        "model.block": lambda: parts.block(spec, 0),
        "model.attention": lambda: parts.attention(spec, 0),
        "model.feed_forward": lambda: parts.feed_forward(spec),
        "model.norm": lambda: parts.norm(spec),
        "model.position": lambda: parts.position(spec),
    }
    stream, heads = torch.Size((B, T, spec.n_embd)), torch.Size((B, spec.n_head, T, spec.n_embd // spec.n_head))
    if field == "model.activation":
        function = parts.activation(spec)
        return [(stream, function), (torch.Size((spec.n_embd,)), lambda x: function(x[0, 0]))]
    module = build[field]().to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0.1)
    if field != "model.position":
        return [(stream, module)]
    positions = torch.arange(T).unsqueeze(0)
    rotate = parts.rotation(module, positions)
    return [
        (stream, lambda x: x + module(positions)),
        (heads, lambda x: rotate(x.view(B, T, spec.n_head, -1).transpose(1, 2))),
    ]


@torch.no_grad()
def _is_causal(spec: ModelSpec) -> Problem:
    model, tokens = _model(spec), _tokens()[:, :T]
    logits = model(tokens)
    for position in (1, T // 2, T - 1):
        changed = tokens.clone()
        changed[:, position:] = (changed[:, position:] + 1) % spec.vocab_size
        if not torch.allclose(model(changed)[:, :position], logits[:, :position], rtol=1e-9, atol=1e-9):
            return f"another token at position {position} changes the output before it"
    return None


def _gradients_agree(spec: ModelSpec) -> Problem:
    model, tokens = _model(spec), _tokens()
    parameters = list(model.parameters())
    values = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(4)
    model(tokens[:, :-1], tokens[:, 1:]).backward()

    @torch.no_grad()
    def loss(directions: list[Tensor], distance: float) -> float:
        for parameter, value, direction in zip(parameters, values, directions, strict=True):
            parameter.copy_(value + distance * direction)
        return float(model(tokens[:, :-1], tokens[:, 1:]))

    for _ in range(DIRECTIONS):
        directions = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in values]
        slope = math.fsum(
            float((p.grad * d).sum()) for p, d in zip(parameters, directions, strict=True) if p.grad is not None
        )
        difference = (loss(directions, EPSILON) - loss(directions, -EPSILON)) / (2 * EPSILON)
        if not math.isclose(slope, difference, rel_tol=1e-4, abs_tol=1e-6):
            return f"in a random direction the gradient says {slope:.6g} and finite differences {difference:.6g}"
    return None


def _gradients_exist(spec: ModelSpec) -> Problem:
    model, tokens = _model(spec), _tokens()
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    return f"{missing[0]} has none: the forward pass does not use it" if missing else None


@torch.no_grad()
def _cache_agrees(spec: ModelSpec) -> Problem:
    model, tokens = _model(spec), _tokens()[:, :T]
    whole = model(tokens)
    cache = KeyValueCache(spec, B, T, dtype=torch.float64)
    for start, end in [(0, 3), *((position, position + 1) for position in range(3, T))]:
        logits = model(tokens[:, start:end], cache=cache)
        if not torch.allclose(logits[:, -1], whole[:, end - 1], rtol=1e-8, atol=1e-8):
            return f"with a cache, the output at position {end - 1} is another"
    return None


@torch.no_grad()
def _repeats(spec: ModelSpec) -> Problem:
    model, tokens = _model(spec), _tokens()[:, :T]
    for mode in (False, True):
        model.train(mode)
        outputs = []
        for _ in range(2):
            torch.manual_seed(5)
            outputs.append(model(tokens))
        if not torch.equal(*outputs):
            return f"the output differs from call to call in {'training' if mode else 'evaluation'} mode"
    return None


@torch.no_grad()
def _restores(spec: ModelSpec) -> Problem:
    model, tokens = _model(spec, torch.float32), _tokens()[:, :T]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    restored = gpt.with_weights(spec, weights).eval()
    return None if torch.equal(restored(tokens), model(tokens)) else "the output is another after loading its weights"


@torch.no_grad()
def _precisions_agree(spec: ModelSpec) -> Problem:
    tokens = _tokens()[:, :T]
    single, double = _model(spec, torch.float32)(tokens), _model(spec)(tokens)
    if single.dtype != torch.float32 or double.dtype != torch.float64:
        return f"the logits are {single.dtype} and {double.dtype}"
    error = float((single.double() - double).abs().max() / double.abs().max())
    return None if error < 1e-4 else f"float32 differs by {error:.1e} of the largest output"
