"""The fingerprint of an experiment's code: what a small training with it computes.

Most questions about training are edits of code, so a run's identity must notice them. Hashing the source would also
notice a renamed variable. Instead, the experiment's own step trains a small model in float64 on one CPU thread, and the
results are the fingerprint: four steps on a fixed text through the experiment's split, tokenizer and windows, a
validation, the schedule, and the moments of the initial weights. Fifteen digits agree across instruction sets and
thread counts; eight of them are hashed.

- The model has the experiment's layers (at most 24) and heads (at most 32) of width 4, and its other options.
- Values that only scale a result, such as the learning rate, are in the identity anyway. Here they are values with
  which four steps show every operation: clipping that takes effect in half of the steps, strong weight decay, a warm-up
  and a decay within the four steps.
- Noise is added to the initial weights. They are so small and regular that GELU is almost linear, and that many
  gradients are zero.
- Code that computes below float64, and code that does not run on a CPU, enters as a hash of its syntax.

What it cannot see: branches on values that the small training does not have, such as `if n_embd > 1000`. With dropout
the fingerprint may differ between builds of torch, because the masks do.
"""

import hashlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gptlab import project
from gptlab.data import tokens
from gptlab.data.text import Text
from gptlab.data.vocabularies import Tokenizer
from gptlab.data.windows import STEPS_PER_BLOCK, Windows, validation_starts
from gptlab.errors import BadInputError, GptlabError, is_out_of_memory
from gptlab.experiment_files import reason
from gptlab.identity import UNTRAINED, Fingerprint
from gptlab.model import gpt, loss
from gptlab.part_names import BUILT_IN
from gptlab.randomness import Purpose, normal_generator
from gptlab.sources import PROJECT, function_hash, import_closure
from gptlab.spec import Experiment, Precision
from gptlab.training import optimizer
from gptlab.training.evaluate import evaluate
from gptlab.training.schedule import learning_rate
from gptlab.training.settings import Settings
from gptlab.training.step import TrainingStep

TEXT = Path(__file__).with_suffix(".txt")
SEED = 0
MAX_LAYERS, MAX_HEADS, HEAD_WIDTH, MAX_VOCABULARY, MAX_CONTEXT = 24, 32, 4, 1 << 16, 1 << 10
MAX_BATCH, MAX_LENGTH, MAX_VAL_WINDOWS = 4, 16, 3
LOSS_CONSTANTS = {"CHUNK_ON_CPU": 24, "BLOCK_ON_CPU": 200, "UNDERFLOW": 6.0}
"""Values of constants in `gptlab.model.loss` with which short batches execute all of it."""
LEARNING_RATE, HORIZON = 0.02, 200
SMALL_CLIP, LARGE_CLIP = 0.05, 1e6
VECTOR_NOISE = 0.3
NOISE = (1.0, 0.1, 0.0)
"""Scales of the noise. Where a model without norms overflows with the first one, the next one is taken."""

PACKAGES = ("gptlab", "experiments")
CAPTURE = "gptlab.training.capture"
"""A module that computes and that the small training does not use."""

UNCHECKED = (
    "gptlab.model.loss:_MeanCrossEntropy.backward",
    "gptlab.model.loss:_add_matmul",
    "gptlab.model.loss:_matmul",
    "gptlab.model.loss:_pad_rows",
    "gptlab.model.loss:_to_matmul_dtype",
    "gptlab.training.optimizer:_divide_gradients",
    "gptlab.training.optimizer:may_update",
    "gptlab.training.settings:Settings.autocast",
)
"""Functions with lines that do not run in a small training on a CPU, such as those for CUDA and bfloat16."""
UNCHECKED_IN_BFLOAT16 = (
    "gptlab.model.fused_loss:_MeanCrossEntropy.backward",
    "gptlab.model.fused_loss:_MeanCrossEntropy.forward",
    "gptlab.model.fused_loss:_cross_entropy",
    "gptlab.model.fused_loss:_losses",
    "gptlab.model.fused_loss:token_cross_entropy",
    "gptlab.model.loss:mean_cross_entropy",
    "gptlab.model.loss:token_cross_entropy",
    "gptlab.model.loss:uses_kernel",
    "gptlab.training.capture:CapturedStep.__call__",
    "gptlab.training.capture:CapturedStep._run",
    "gptlab.training.optimizer:_make_capturable",
    "gptlab.training.optimizer:gradient_norm",
    "gptlab.training.optimizer:skips_on_device",
    "gptlab.training.schedule:set_learning_rate",
    "gptlab.training.step:TrainingStep.may_update",
)
"""More such functions, of experiments in bfloat16, which is the default on CUDA and only there."""


def compute(experiment: Experiment, tokenizer: Tokenizer, precision: Precision = "float32") -> Fingerprint:
    """Compute the fingerprint of the code that this process has imported.

    Args:
        experiment: The experiment.
        tokenizer: Its tokenizer.
        precision: Its precision, resolved for the device.

    Raises:
        BadInputError: A file of the code cannot be read, or a part is gone or raises an error.
        GptlabError: The code does not train the small model.
    """
    low_precision = _LowPrecision()
    try:
        numbers = _finite_numbers(experiment, tokenizer, low_precision)
    except Exception as error:  # a part can raise anything
        if isinstance(error, GptlabError) or not experiment.parts or is_out_of_memory(error):
            raise
        parts = " and ".join(f"{field} {name}" for field, name in experiment.parts.items())
        raise BadInputError(f"a small model cannot be trained with {parts}: {reason(error)}") from error
    unchecked = {*UNCHECKED, *low_precision.functions}
    if precision == "bfloat16":
        unchecked.update(UNCHECKED_IN_BFLOAT16)
    files = import_closure([__name__, CAPTURE, *_part_modules(experiment)], code_folders())
    files["gptlab/training/fingerprint.txt"] = TEXT
    return Fingerprint(
        numbers=numbers,
        code={name: _hash_function(name, files) for name in sorted(unchecked)},
        files={name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
    )


def _finite_numbers(experiment: Experiment, tokenizer: Tokenizer, low_precision: "_LowPrecision") -> dict[str, float]:
    """Return the results by name, with as much noise as they stay finite with; those that never are, are left out."""
    small, numbers = _small(experiment), {}
    for noise in NOISE:
        model = gpt.build(small.model, SEED).double()
        with _reproducible():
            training = _train(model, small, tokenizer, low_precision, noise)
            numbers = dict(chain(_moments(model), training, _schedule(experiment)))
        if all(map(math.isfinite, numbers.values())):
            break
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _small(experiment: Experiment) -> Experiment:
    """Return the experiment with a small model, short batches, and values with which few steps show much."""
    model, data, train = experiment.model, experiment.data, experiment.train
    n_head = min(model.n_head, MAX_HEADS)
    changes = {
        "model.n_layer": min(model.n_layer, MAX_LAYERS),
        "model.n_head": n_head,
        "model.n_embd": HEAD_WIDTH * n_head,
        "model.vocab_size": min(model.vocab_size, MAX_VOCABULARY),
        "model.context_length": min(model.context_length, MAX_CONTEXT),
        "data.val_fraction": 0.1,
        "data.val_windows": min(data.val_windows, MAX_VAL_WINDOWS),
        "train.batch_size": min(train.batch_size, MAX_BATCH),
        "train.sequence_length": min(train.sequence_length, MAX_LENGTH),
        "train.learning_rate": LEARNING_RATE,
        "train.warmup_steps": min(train.warmup_steps, 2),
        "train.horizon": train.horizon and HORIZON,
        "train.decay_steps": train.decay_steps and HORIZON // 2,
        "train.eps": max(train.eps, 1e-8),  # a smaller one would amplify rounding errors
        "train.weight_decay": 0.5 if train.weight_decay else 0.0,
    }
    return experiment.with_changes(changes)


def _train(
    model: gpt.GPT, small: Experiment, tokenizer: Tokenizer, low_precision: "_LowPrecision", noise: float
) -> Iterator[tuple[str, float]]:
    """Train the small model and yield its results by name."""
    settings = Settings(device="cpu", precision="float32", compile=False, fused=False, asynchronous=False)
    train, val = _split(small, tokenizer)
    windows = Windows(train.tokens, small.train.sequence_length, small.train.batch_size, SEED)
    _add_noise(model, noise)
    update = optimizer.build(model, small.train, fused=False)
    steps = [
        TrainingStep(model, update, _clipping_at(clip, small), SEED, settings) for clip in (SMALL_CLIP, LARGE_CLIP)
    ]
    length = small.train.sequence_length
    starts = validation_starts(val, length, small.data.val_windows)
    with low_precision:
        yield UNTRAINED, evaluate(model, val, starts, sequence_length=length, settings=settings).loss
    for index, step in enumerate(_steps(windows)):
        with low_precision:
            mean_loss, norm = steps[index % 2](torch.from_numpy(windows.batch(step)), step)
        yield f"loss {index}", float(mean_loss)
        yield f"gradient norm {index}", float(norm)
    with low_precision:
        evaluation = evaluate(model, val, starts, sequence_length=length, settings=settings)
    yield "validation loss", evaluation.loss
    yield "validation bits per byte", evaluation.bits_per_byte
    if len(starts) > 1:
        yield "validation standard error", evaluation.loss_se


def _steps(windows: Windows) -> tuple[int, int, int, int]:
    """Return the steps to train. Batches depend on the step: these are of three epochs, one of them of two at once."""
    last = windows.per_epoch // windows.batch_size
    return 0, 1, last, 2 * last + STEPS_PER_BLOCK


def _clipping_at(max_norm: float, small: Experiment) -> Experiment:
    return small.with_changes({"train.grad_clip": max_norm}) if small.train.grad_clip else small


def _moments(model: nn.Module) -> Iterator[tuple[str, float]]:
    """Yield mean and root mean square of the initial weights, averaged over the blocks."""
    moments: dict[str, list[tuple[float, float]]] = {}
    for name, parameter in model.named_parameters():
        kind = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        values = parameter.detach()
        if not values.numel():
            continue
        moments.setdefault(kind, []).append((float(values.mean()), float(values.square().mean().sqrt())))
    for kind, pairs in moments.items():
        for moment, values_of_moment in zip(("mean", "rms"), zip(*pairs, strict=True), strict=True):
            yield f"initial {moment} of {kind}", math.fsum(values_of_moment) / len(pairs)


@torch.no_grad()
def _add_noise(model: nn.Module, factor: float) -> None:
    """Add normal noise to the weights, so that no operation is close to linear and no gradient is zero by symmetry."""
    for name, parameter in model.named_parameters():
        scale = 2 / math.sqrt(max(parameter.shape[-1], 1)) if parameter.ndim > 1 else VECTOR_NOISE
        noise = normal_generator(SEED, Purpose.WEIGHTS, f"noise of {name}").standard_normal(tuple(parameter.shape))
        parameter.add_(torch.from_numpy(noise), alpha=factor * scale)


def _split(small: Experiment, tokenizer: Tokenizer) -> tuple[tokens.Split, tokens.Split]:
    content = TEXT.read_bytes()
    text = Text(str(TEXT), TEXT, len(content), hashlib.sha256(content).hexdigest())
    return tokens.encode(text, small.data.val_fraction, tokenizer)


def _schedule(experiment: Experiment) -> Iterator[tuple[str, float]]:
    """Yield the learning rate at steps of each phase of the schedule."""
    train = experiment.train
    end = train.horizon or train.warmup_steps + 1000
    steps = [0, train.warmup_steps // 2, train.warmup_steps, (train.warmup_steps + end) // 2]
    for step in [*steps, end - max(train.decay_length // 2, 1), end]:
        yield f"learning rate of step {step}", learning_rate(step, train)


def _part_modules(experiment: Experiment) -> list[str]:
    """Return the modules of parts, which are imported by name: those that are built in and the experiment's own."""
    built_in = chain.from_iterable(names.values() for names in BUILT_IN.values())
    own = (*experiment.model.parts.values(), *experiment.train.parts.values())
    return [name.partition(":")[0] for name in (*built_in, *own)]


@contextmanager
def _reproducible() -> Iterator[None]:
    """Compute in float64 on one thread, whatever the process does otherwise, and leave its random state alone.

    The loss is computed in several chunks and blocks, and for large values, as in real training.
    """
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    constants = {name: getattr(loss, name) for name in LOSS_CONSTANTS}
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    vars(loss).update(LOSS_CONSTANTS)
    try:
        with torch.random.fork_rng(devices=()), torch.enable_grad():
            yield
    finally:
        vars(loss).update(constants)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


class _LowPrecision(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate its base
    """Collects the functions of this project that compute in less than float64."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.functions: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, because skipping it imports `torch.compile`, which takes a second."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and look at the precision of its results."""
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64:
                self.functions.add(_caller(sys._getframe(1)))
        return result


def _caller(frame: FrameType | None) -> str:
    """Return `module:function` of the innermost frame that belongs to the project."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in PACKAGES and module != __name__:
            return f"{module}:{frame.f_code.co_qualname}"
        frame = frame.f_back
    return f"{__name__}:compute"


def _hash_function(name: str, files: dict[str, Path]) -> str:
    module, _, function = name.partition(":")
    stem = module.replace(".", "/")
    path = next((files[file] for file in (f"{stem}.py", f"{stem}/__init__.py") if file in files), None)
    return function_hash(path, function) if path else "not found"


def code_folders() -> dict[str, Path]:
    """Return the folders whose code can be part of an experiment."""
    root = project.find_root()
    own = {"gptlab": Path(__file__).parents[1]}
    return {**own, "experiments": root / "experiments", PROJECT: root} if root else own
