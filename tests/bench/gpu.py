"""A training step of `gptlab run` on a CUDA device vs. Hugging Face's GPT-2 in the same precision, and whole commands.

Not measured without a CUDA device.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _pairs import Cost, Work, interleave, interleave_processes, timed
from _table import Row
from training import hugging_face

from gptlab import catalog
from gptlab.compiler import keep_kernels
from gptlab.model import gpt
from gptlab.spec import Experiment
from gptlab.training import optimizer
from gptlab.training.capture import CapturedStep, CudaGraphs
from gptlab.training.compilation import compile_blocks
from gptlab.training.settings import Available, Settings, resolve_settings, use_deterministic_kernels
from gptlab.training.step import TrainingStep

ROOT = Path(__file__).parents[2]
GPTLAB = str(Path(sys.executable).with_name("gptlab"))
PAIRS, WARM_UP = 7, 3
MATMUL = 8192
PRODUCT = f"product of two {MATMUL}² matrices"
STARTING = "import torch, first use of CUDA"
LOOP_STEPS = 500


@dataclass(frozen=True)
class Case:
    """A shape, and how many steps one measurement takes."""

    experiment: str
    B: int
    T: int
    steps: int
    captured_reference: bool = False
    """Whether the reference is also captured as a CUDA graph."""

    @property
    def what(self) -> str:
        """The row's name."""
        return f"{self.experiment}, {self.B} × {self.T}, bfloat16"

    @property
    def arguments(self) -> tuple[str, int, int, int]:
        """The arguments of each side."""
        return self.experiment, self.B, self.T, self.steps


LARGE = Case("baseline", 32, 1024, steps=10)
LARGER = Case("baseline", 64, 1024, steps=5)
SMALL = Case("baseline", 4, 100, steps=100, captured_reference=True)
TINY = Case("tiny", 8, 64, steps=300, captured_reference=True)


def rows() -> Iterator[Row]:
    """Speed and memory of a step, the cost of `--deterministic`, what the loop adds, and whole commands."""
    yield from _share_of_product(LARGE, ">= 0.55")
    yield from _share_of_product(LARGER, ">= 0.57")
    yield from _against_transformers(LARGE, speed=">= 1.2", memory="<= 0.75")
    yield from _against_transformers(SMALL, speed=">= 4", alone=">= 80000 tokens/s")
    yield from _against_transformers(TINY, alone=">= 500000 tokens/s")
    for case in (LARGE, SMALL):
        yield from _deterministic(case, ">= 0.85")
    yield from _uncompiled(TINY)
    yield from _loop()
    yield from _commands()


def _speeds(case: Case, sides: dict[str, Callable[..., Work]]) -> tuple[dict[str, list[float]], dict[str, list[Cost]]]:
    """Tokens per second by side, one value per pair; empty without a CUDA device."""
    if not torch.cuda.is_available():
        return {side: [] for side in sides}, {side: [] for side in sides}
    costs = interleave_processes(sides, case.arguments, PAIRS, warm_up=WARM_UP)
    tokens = case.B * case.T * case.steps
    return {side: [tokens / cost.wall_s for cost in took] for side, took in costs.items()}, costs


def _row(what: str, reference: str, unit: str, *values: Any, target: str = "") -> Row:
    note = "" if torch.cuda.is_available() else "needs a CUDA device"
    return Row("GPU", what, reference, unit, *values, target=target, note=note)


def _share_of_product(case: Case, target: str) -> Iterator[Row]:
    speeds, costs = _speeds(case, {"ours": ours, "product": matmul})
    flops_per_token = 3 * catalog.find(case.experiment).model.forward_flops_per_token(case.T)
    mine = [flops_per_token * speed / 1e12 for speed in speeds["ours"]]
    rates = [2 * MATMUL**3 / (cost.value or 0.0) / 1e12 for cost in costs["product"]]
    yield _row(case.what, PRODUCT, "TFLOP/s", mine, rates, target=target)


def _against_transformers(case: Case, *, speed: str = "", memory: str = "", alone: str = "") -> Iterator[Row]:
    sides = {"ours": ours, "transformers, compiled": transformers}
    if case.captured_reference:
        sides["transformers, compiled and captured"] = captured_transformers
    speeds, costs = _speeds(case, sides)
    mine, *_ = speeds.values()
    for side, theirs in list(speeds.items())[1:]:
        target = speed if theirs is speeds["transformers, compiled"] else alone
        yield _row(case.what, side, "tokens/s", mine, theirs, target=target)
    if memory:
        peaks = [[cost.value for cost in costs[side][-1:]] for side in ("ours", "transformers, compiled")]
        yield _row(case.what, "transformers, compiled", "peak MiB", *peaks, target=memory)


def _deterministic(case: Case, target: str) -> Iterator[Row]:
    speeds, _ = _speeds(case, {"deterministic": deterministic, "ours": ours})
    yield _row(f"{case.what}, deterministic", "ours, not deterministic", "tokens/s", *speeds.values(), target=target)


def _uncompiled(case: Case) -> Iterator[Row]:
    speeds, _ = _speeds(case, {"ours": ours, "uncompiled": uncompiled, "uncaptured": uncaptured})
    for side in ("uncompiled", "uncaptured"):
        yield _row(case.what, f"ours, {side}", "tokens/s", speeds["ours"], speeds[side])


def _loop() -> Iterator[Row]:
    """What batches, metrics and checkpoints add to the steps of a run."""
    for case in (SMALL, TINY):
        what = f"{case.experiment}, {LOOP_STEPS} steps of `gptlab run` with saves"
        if not torch.cuda.is_available():
            yield _row(what, "its steps alone", "tokens/s", target=">= 0.99")
            continue
        steps = ours(*case.arguments)
        tokens = case.B * case.T * case.steps
        both: dict[str, Work] = {"run": lambda case=case: _tokens_per_s(case.experiment), "steps": steps}
        costs = interleave(both, PAIRS)
        speeds = [[cost.value or 0.0 for cost in costs["run"]], [tokens / cost.wall_s for cost in costs["steps"]]]
        yield _row(what, "its steps alone", "tokens/s", *speeds, target=">= 0.99")


def _tokens_per_s(experiment: str) -> float:
    """Tokens per second of training in a run, from its metrics; waiting for checkpoints counts, validation does not."""
    with tempfile.TemporaryDirectory() as folder:
        _command({"GPTLAB_RUNS": folder}, GPTLAB, "run", experiment, f"--steps={LOOP_STEPS}", "--wandb=off")()
        (metrics,) = Path(folder).glob("*/metrics.jsonl")
        rows_ = [json.loads(line) for line in metrics.read_text().splitlines()]
    first, last = rows_[1], rows_[-1]
    saving_s = sum(row.get("perf/ckpt_s", 0.0) for row in rows_[2:])
    return float((last["tokens"] - first["tokens"]) / (last["elapsed_s"] - first["elapsed_s"] + saving_s))


def _commands() -> Iterator[Row]:
    """Complete processes, from the command to its end."""
    starting = (sys.executable, "-c", "import torch; torch.zeros(1, device='cuda')")
    for experiment, cold, warm in (("tiny", "<= 20 s", "<= 10 s"), ("baseline", "", "<= 25 s")):
        run = (GPTLAB, "run", experiment, "--wandb=off")
        for name, target in (("cold", cold), ("warm", warm)):
            what = f"gptlab run {experiment}, {name} cache of kernels"
            if not torch.cuda.is_available():
                yield _row(what, STARTING, "s", target=target)
                continue
            with tempfile.TemporaryDirectory() as folder:
                sides = {"ours": _anew(folder, name == "cold", run), "theirs": _command({}, *starting)}
                if name == "warm":
                    sides["ours"]()
                costs = interleave(sides, pairs=3)
            yield _row(what, STARTING, "s", *([cost.wall_s for cost in took] for took in costs.values()), target=target)


def _anew(folder: str, cold: bool, command: tuple[str, ...]) -> Work:
    """Run a command with a new directory of runs and, if `cold`, a new directory of kernels."""
    started = 0

    def work() -> None:
        nonlocal started
        started += 1
        kernels = f"{folder}/kernels-{started if cold else 0}"
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{kernels}/inductor", "TRITON_CACHE_DIR": f"{kernels}/triton"}
        _command({"GPTLAB_RUNS": f"{folder}/runs-{started}", **caches}, *command)()

    return work


def _command(variables: dict[str, str], *command: str) -> Work:
    environment = {**os.environ, **variables}
    return lambda: subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)


def ours(experiment: str, B: int, T: int, steps: int) -> Work:
    """Steps of `gptlab run`; returns the peak memory in MiB."""
    return _ours(experiment, B, T, steps, _settings())


def deterministic(experiment: str, B: int, T: int, steps: int) -> Work:
    """The same with `--deterministic`."""
    use_deterministic_kernels()
    return ours(experiment, B, T, steps)


def uncompiled(experiment: str, B: int, T: int, steps: int) -> Work:
    """The same with `--no-compile`."""
    return _ours(experiment, B, T, steps, replace(_settings(), compile=False))


def uncaptured(experiment: str, B: int, T: int, steps: int) -> Work:
    """The same with `--no-capture`."""
    return _ours(experiment, B, T, steps, replace(_settings(), capture=False))


def _settings() -> Settings:
    keep_kernels()
    return resolve_settings("cuda", "auto", Available.here())


def _ours(experiment: str, B: int, T: int, steps: int, settings: Settings) -> Work:
    spec, batch = catalog.find(experiment), _batch(B, T)
    model = gpt.build(spec.model, seed=0).to("cuda").train()
    adamw = optimizer.build(model, spec.train, fused=settings.fused, capturable=settings.capturable)
    if settings.compile:
        compile_blocks(model)
    step = TrainingStep(model, adamw, spec, 0, settings)
    run = CapturedStep(step, batch, CudaGraphs()) if settings.capture else step
    return _steps(lambda: run(batch, 0), steps)


def transformers(experiment: str, B: int, T: int, steps: int) -> Work:
    """Hugging Face's GPT-2 with the same optimizer, compiled."""
    return _steps(_transformers_step(catalog.find(experiment), _batch(B, T)), steps)


def captured_transformers(experiment: str, B: int, T: int, steps: int) -> Work:
    """The same, with the whole step as a CUDA graph."""
    step, graphs = _transformers_step(catalog.find(experiment), _batch(B, T), capturable=True), CudaGraphs()
    for _ in range(WARM_UP):
        graphs.warm_up(step, strict=False)
    return _steps(graphs.capture(step), steps)


def _transformers_step(spec: Experiment, batch: torch.Tensor, *, capturable: bool = False) -> Callable[[], None]:
    settings = resolve_settings("cuda", "auto", Available.here())
    model = hugging_face(spec.model).train().to("cuda")
    adamw = optimizer.build(model, spec.train, fused=True, capturable=capturable)
    forward: Any = torch.compile(model)
    tokens, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def step() -> None:
        with settings.autocast():
            loss = forward(input_ids=tokens, labels=targets, shift_labels=targets, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.train.max_grad_norm)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    return step


def matmul(experiment: str, B: int, T: int, steps: int) -> Work:
    """Seconds of one product of two square bfloat16 matrices: the device's limit."""
    left, right = torch.randn(2, MATMUL, MATMUL, dtype=torch.bfloat16, device="cuda")

    def product() -> None:
        torch.mm(left, right)
        torch.cuda.synchronize()

    return lambda: min(timed(product).wall_s for _ in range(10))


def _batch(B: int, T: int) -> torch.Tensor:
    return torch.randint(50257, (B, T + 1), device="cuda")


def _steps(step: Callable[[], object], count: int) -> Work:
    def steps() -> float:
        for _ in range(count):
            step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20

    return steps
