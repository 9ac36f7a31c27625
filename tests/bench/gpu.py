"""A training step of `gptlab run` on a CUDA device vs. Hugging Face's GPT-2 in the same precision."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from _pairs import Work, interleave_processes, timed
from _table import Row
from training import hugging_face

from gptlab import catalog
from gptlab.model import gpt
from gptlab.training import optimizer
from gptlab.training.settings import Available, resolve_settings, use_deterministic_kernels
from gptlab.training.step import TrainingStep

B, T, STEPS, PAIRS = 32, 1024, 10, 7
MATMUL = 8192
CASE = f"baseline, {B} × {T}, bfloat16"


def rows() -> Iterator[Row]:
    """Speed, memory and the cost of `--deterministic`; not measured without a CUDA device."""
    if not torch.cuda.is_available():
        note = "needs a CUDA device"
        yield Row("GPU", CASE, "transformers", "tokens/s", note=note)
        yield Row("GPU", CASE, "transformers", "peak MiB", note=note)
        yield Row("GPU", f"{CASE}, deterministic", "ours, not deterministic", "tokens/s", note=note)
        return
    sides = {"ours": ours, "transformers": transformers, "deterministic": deterministic, "matmul": matmul}
    costs = interleave_processes(sides, (), PAIRS, warm_up=3)
    flops = 3 * catalog.find("baseline").model.forward_flops_per_token(T) * B * T * STEPS
    tokens_per_s = {side: [STEPS * B * T / one.wall_s for one in took] for side, took in costs.items()}
    shares = sorted(
        flops / one.wall_s / (2 * MATMUL**3 / product.value)
        for one, product in zip(costs["ours"], costs["matmul"], strict=True)
    )
    mine, theirs, strict = (tokens_per_s[side] for side in ("ours", "transformers", "deterministic"))
    yield Row("GPU", CASE, "transformers", "tokens/s", mine, theirs, limit=shares[len(shares) // 2])
    peaks = [[took[-1].value] for took in (costs["ours"], costs["transformers"])]
    yield Row("GPU", CASE, "transformers", "peak MiB", *peaks)
    yield Row("GPU", f"{CASE}, deterministic", "ours, not deterministic", "tokens/s", strict, mine)


def ours() -> Work:
    """Ten steps of `gptlab run`; returns the peak memory in MiB."""
    settings = resolve_settings("cuda", "auto", Available.here())
    spec = catalog.find("baseline")
    model = gpt.build(spec.model, seed=0).to("cuda")
    adamw = optimizer.build(model, spec.train, fused=settings.fused)
    training_step = TrainingStep(torch.compile(model), adamw, spec, 0, settings)
    batch = _batch()
    return _steps(lambda: training_step(batch, 0))


def deterministic() -> Work:
    """The same with `--deterministic`."""
    use_deterministic_kernels()
    return ours()


def transformers() -> Work:
    """Hugging Face's GPT-2 with the same optimizer, also compiled."""
    settings = resolve_settings("cuda", "auto", Available.here())
    spec = catalog.find("baseline")
    model = hugging_face(spec.model).train().to("cuda")
    adamw = optimizer.build(model, spec.train, fused=True)
    forward: Any = torch.compile(model)
    batch = _batch()
    tokens, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def step() -> None:
        with settings.autocast():
            loss = forward(input_ids=tokens, labels=targets, shift_labels=targets, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.train.max_grad_norm)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    return _steps(step)


def matmul() -> Work:
    """Seconds of one product of two square bfloat16 matrices: the device's limit."""
    left, right = torch.randn(2, MATMUL, MATMUL, dtype=torch.bfloat16, device="cuda")

    def product() -> None:
        torch.mm(left, right)
        torch.cuda.synchronize()

    return lambda: min(timed(product).wall_s for _ in range(10))


def _batch() -> torch.Tensor:
    return torch.randint(50257, (B, T + 1), device="cuda")


def _steps(step: Callable[[], object]) -> Work:
    def steps() -> float:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20

    return steps
