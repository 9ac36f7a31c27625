"""A training step on the CPU vs. Hugging Face's GPT-2 of the same shape, and vs. our model with full logits.

Each side is a process with its own model, AdamW and batch. Their steps are interleaved, also with products of large
matrices, which are the limit. A step and these products have as many FLOPs, so other processes slow both down alike.
"""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from _pairs import Cost, Work, interleave_processes
from _table import Row

from gptlab import catalog
from gptlab.model import gpt
from gptlab.spec import Experiment, ModelSpec
from gptlab.training import optimizer
from gptlab.training.memory import keep_freed_memory
from gptlab.training.settings import Available, resolve_settings
from gptlab.training.step import TrainingStep

MATMUL = 2048
"""Size of the square matrices whose product measures the machine's speed."""

CASES = {
    "baseline, 4 × 100": ("baseline", 4, 100, 7, {"speed": ">= 1.4", "memory": "<= 0.97"}),
    "baseline, 2 × 1024": ("baseline", 2, 1024, 3, {"speed": ">= 1.4", "memory": "<= 0.6"}),
    "tiny, 16 × 128": ("tiny", 16, 128, 15, {"speed": ">= 2.5", "memory": "<= 0.36"}),
}
"""By name: experiment, batch size, sequence length, pairs, and targets."""


def rows() -> Iterator[Row]:
    """Speed and memory of each case vs. both references."""
    for case, (experiment, B, T, pairs, targets) in CASES.items():
        arguments = (experiment, B, T)
        sides = {"matmul": matmul, "ours": ours, "transformers": transformers, "full logits": full_logits}
        costs = interleave_processes(sides, arguments, pairs, warm_up=1 if T >= 1024 else 2)
        for side, name in (("transformers", "transformers"), ("full logits", "F.cross_entropy on full logits")):
            for clock in ("wall", "cpu"):
                yield Row(
                    "training step",
                    case,
                    name,
                    "tokens/s",
                    _speed(costs["ours"], B * T, clock),
                    _speed(costs[side], B * T, clock),
                    target=targets["speed"] if (side, clock) == ("transformers", "wall") else "",
                    limit=_share(costs, clock, *arguments),
                    clock=clock,
                )
            yield Row(
                "training step",
                case,
                name,
                "peak MiB",
                [costs["ours"][-1].peak_mib],
                [costs[side][-1].peak_mib],
                target=targets["memory"] if side == "transformers" else "",
            )


def _share(costs: dict[str, list[Cost]], clock: str, experiment: str, B: int, T: int) -> float:
    """The step's FLOPs per second as a fraction of those of the products next to it."""
    step, products = (_speed(costs[side], 1, clock) for side in ("ours", "matmul"))
    flops = _flops(experiment, B, T) / (2 * MATMUL**3 * _products(experiment, B, T))
    return statistics.median(flops * ours / limit for ours, limit in zip(step, products, strict=True))


def _flops(experiment: str, B: int, T: int) -> float:
    return 3 * catalog.find(experiment).model.forward_flops_per_token(T) * B * T


def _products(experiment: str, B: int, T: int) -> int:
    return max(1, round(_flops(experiment, B, T) / (2 * MATMUL**3)))


def _speed(costs: list[Cost], tokens: int, clock: str) -> list[float]:
    return [tokens / getattr(step, f"{clock}_s") for step in costs]


def ours(experiment: str, B: int, T: int) -> Work:
    """The step of `gptlab run`."""
    keep_freed_memory()
    spec = catalog.find(experiment)
    model = gpt.build(spec.model, seed=0)
    settings = resolve_settings("cpu", "float32", Available.here())
    adamw = optimizer.build(model, spec.train, fused=settings.fused)
    training_step = TrainingStep(model, adamw, spec, 0, settings)
    batch = _batch(spec, B, T)
    return lambda: training_step(batch, 0)


def full_logits(experiment: str, B: int, T: int) -> Work:
    """The same model with the loss from full logits."""
    keep_freed_memory()
    spec = catalog.find(experiment)
    model = gpt.build(spec.model, seed=0)

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())

    return _plain_step(model, spec, _batch(spec, B, T), loss)


def transformers(experiment: str, B: int, T: int) -> Work:
    """Hugging Face's GPT-2 with the same optimizer."""
    spec = catalog.find(experiment)
    model = hugging_face(spec.model).train()

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return model(input_ids=tokens, labels=targets, shift_labels=targets, use_cache=False).loss

    return _plain_step(model, spec, _batch(spec, B, T), loss)


def matmul(experiment: str, B: int, T: int) -> Work:
    """Products of two square matrices with as many FLOPs as a step: the machine's limit."""
    left, right = torch.randn(MATMUL, MATMUL), torch.randn(MATMUL, MATMUL)
    out, count = torch.empty(MATMUL, MATMUL), _products(experiment, B, T)

    def products() -> None:
        for _ in range(count):
            torch.mm(left, right, out=out)

    return products


def hugging_face(spec: ModelSpec) -> Any:
    """`GPT2LMHeadModel` of that shape without dropout, with an untied output projection and otherwise the defaults."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=spec.vocab_size,
        n_positions=spec.context_length,
        n_embd=spec.n_embd,
        n_layer=spec.n_layer,
        n_head=spec.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
    )
    return GPT2LMHeadModel(config)


def _batch(spec: Experiment, B: int, T: int) -> torch.Tensor:
    return torch.randint(spec.model.vocab_size, (B, T + 1), generator=torch.Generator().manual_seed(0))


def _plain_step(
    model: Any,
    spec: Experiment,
    batch: torch.Tensor,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Work:
    adamw = optimizer.build(model, spec.train, fused=True)
    tokens, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def step() -> None:
        loss_of(tokens, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.train.max_grad_norm)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    return step
