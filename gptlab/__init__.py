"""Named GPT pretraining experiments on one `.txt` file.

For notebooks: `run` an experiment, `load` a trained model, `generate` text with it, measure its `perplexity`,
read `runs`, `metrics` and `samples` into pandas, define an `Experiment`. For files of experiments: a `Sweep` over a
`grid` or `random` points.
"""

from __future__ import annotations

import time

STARTED_NS = time.time_ns()
"""When this process imported the package: code that is changed later is not what it runs."""

TYPE_CHECKING = False  # importing `typing` would triple the time in which Ctrl-C is not handled yet; see `entry`

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal

    from analysis.load import metrics, runs, samples
    from gptlab.commands.from_python import Run
    from gptlab.data.vocabularies import Tokenizer
    from gptlab.model.gpt import GPT
    from gptlab.spec import DataSpec, Experiment, ModelSpec, TrainSpec
    from gptlab.sweeps import Sweep, grid, log_space, log_uniform, random, uniform

__all__ = [
    "DataSpec",
    "Experiment",
    "ModelSpec",
    "Sweep",
    "TrainSpec",
    "generate",
    "grid",
    "load",
    "log_space",
    "log_uniform",
    "metrics",
    "perplexity",
    "random",
    "run",
    "runs",
    "samples",
    "uniform",
]


def run(
    experiment: str | Experiment,
    *,
    seed: int = 0,
    steps: int | None = None,
    text: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    wandb: Literal["online", "offline", "off"] | None = None,
    tags: Sequence[str] = (),
) -> Run:
    """Start, resume or extend a run, as `gptlab run` does, and print its progress.

    A complete run is returned at once. An interrupt saves the run; the same call goes on with it.

    Args:
        experiment: The name of an experiment in `experiments/`, or an `Experiment`.
        seed: Seed for initialization, data order and dropout.
        steps: Total number of optimizer steps; more extend the run. By default as in the spec.
        text: A named text or the path of a .txt file. By default as in the spec.
        settings: Fields of the spec to change, by dotted key, such as `{"train.learning_rate": 1e-3}`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        wandb: Where to log; by default online if there is an API key and the server responds, else offline.
        tags: Tags for W&B and reports.

    Returns:
        The run, with `id`, `directory`, `status`, `metrics()`, `samples()` and `load()`.

    Raises:
        BadInputError: There is no such experiment, or a value is invalid. Nothing was written.
        DivergedError: The run diverges, or has diverged before.
        GptlabError: Another process is training the run, a file is damaged or cannot be written, or memory runs out.
        KeyboardInterrupt: A signal stopped training; the run is saved.
    """
    from gptlab.commands.from_python import train
    from gptlab.commands.run import Options
    from gptlab.errors import BadInputError
    from gptlab.terminal.console import Console

    if isinstance(tags, str):
        raise BadInputError(f"tags is a string; give a list of them, such as ['{tags}']")
    changes = dict(settings or {})
    changes |= {} if text is None else {"data.text": text}
    changes |= {} if steps is None else {"train.steps": steps}
    options = Options(device=device, wandb=wandb, tags=tuple(tags), next_commands=False)
    return train(experiment, seed, changes, options, console=Console())


def load(run: str, step: int | None = None) -> tuple[GPT, Tokenizer]:
    """Load a run's model, on the CPU and in evaluation mode, and its tokenizer.

    The model has the tokenizer as its attribute `tokenizer`, and the length of its training windows in tokens as
    `trained_length`, which `generate` and `perplexity` use.

    Args:
        run: A run's id, a unique prefix of one, or its directory.
        step: Step of a checkpoint; the newest by default.

    Raises:
        BadInputError: There is no such run or checkpoint.
        GptlabError: The run, the checkpoint or the tokenizer is damaged.
    """
    import logging

    from gptlab.checkpoints.manifest import select_checkpoint
    from gptlab.checkpoints.read import load_model
    from gptlab.tracking.run import find_run
    from gptlab.training.run_code import changed_model
    from gptlab.training.run_tokenizer import run_tokenizer

    found = find_run(run)
    model = load_model(select_checkpoint(found.directory, step), found.record.spec.model)
    if problem := changed_model(found):
        logging.getLogger(__name__).warning(problem)
    tokenizer = run_tokenizer(found)
    vars(model).update(tokenizer=tokenizer, trained_length=found.record.spec.train.sequence_length)
    return model, tokenizer


def generate(
    model: GPT,
    prompt: str = "The",
    *,
    max_tokens: int | None = None,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> str:
    """Continue a prompt, as `gptlab sample` does: the same arguments give the same text.

    Args:
        model: A model, such as that of `load`; its mode is restored.
        prompt: Text of at least one token.
        max_tokens: New tokens; by default as many as fit into the windows of training.
        temperature: Divides the logits; 0 always takes the most likely token.
        top_k: Draw from this many most likely tokens; 0 draws from all.
        top_p: Of those, draw from the fewest most likely tokens whose probabilities add up to this; 1 draws from all.
        min_p: Of those, draw from tokens at least this many times as likely as the most likely one; 0 draws from all.
        seed: The same seed gives the same text.
        tokenizer: The model's tokenizer; by default the one with which `load` returned the model.

    Returns:
        The continuation, without the prompt.

    Raises:
        BadInputError: The prompt is empty, a number is out of range, prompt and new tokens do not fit, or the model's
            tokenizer is unknown.
        GptlabError: The model's output is not finite.
    """
    from gptlab.errors import BadInputError
    from gptlab.model.sample import samples

    least = {"max_tokens": (1, max_tokens), "temperature": (0, temperature), "top_k": (0, top_k), "seed": (0, seed)}
    for name, (lowest, value) in least.items():
        if value is not None and not value >= lowest:  # NaN is not, either
            raise BadInputError(f"{name} must be {lowest} or more, not {value}")
    for name, number in {"max_tokens": max_tokens, "top_k": top_k, "seed": seed}.items():
        if number is not None and not (hasattr(number, "__index__") and number < 2**63):
            raise BadInputError(f"{name} must be a whole number below 2**63, not {number}")
    (text,) = samples(
        model,
        prompt,
        1,
        trained_length=_trained_length(model),
        tokenizer=tokenizer or _tokenizer(model),
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
    )
    return text


def perplexity(model: GPT, text: str, *, tokenizer: Tokenizer | None = None) -> float:
    """Return the perplexity of a text: the exponential of the mean loss in nats per token.

    It is that of `gptlab eval --string`, in float32. A text is evaluated in adjacent windows of the length of training.
    Each token is scored once, except the first one, which cannot be predicted, and those at the end of a longer text
    that do not fill a window. A shorter text is one window.

    Args:
        model: A model, such as that of `load`, on any device; its mode is restored.
        text: A text of at least two tokens.
        tokenizer: The model's tokenizer; by default the one with which `load` returned the model.

    Raises:
        BadInputError: The text has no token that can be predicted, or the model's tokenizer is unknown.
    """
    from gptlab.data.tokens import encode_string, window_length
    from gptlab.data.windows import validation_starts
    from gptlab.training.evaluate import evaluate
    from gptlab.training.settings import Available, resolve_settings

    tokens = encode_string(text, tokenizer or _tokenizer(model))
    length = window_length(tokens, _trained_length(model))
    settings = resolve_settings(model.token_embedding.weight.device.type, "float32", Available.here())
    starts = validation_starts(tokens, length, None)
    return evaluate(model, tokens, starts, sequence_length=length, settings=settings).perplexity


def _tokenizer(model: GPT) -> Tokenizer:
    """Return the tokenizer with which `load` returned a model."""
    from gptlab.errors import BadInputError

    found: Tokenizer | None = getattr(model, "tokenizer", None)
    if found is None:
        raise BadInputError("the model's tokenizer is unknown: pass tokenizer=, or a model that gptlab.load returned")
    return found


def _trained_length(model: GPT) -> int:
    """Return the length of the windows of training, in tokens; of a model that is not from `load`, its context."""
    length: int = getattr(model, "trained_length", model.spec.context_length)
    return length


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import gptlab` is fast and works without pandas."""
    if name in {"metrics", "runs", "samples"}:
        try:
            from analysis import load as tables
        except ModuleNotFoundError as error:
            raise ImportError(f"gptlab.{name} needs {error.name}: pip install 'gptlab[analysis]'") from error
        return getattr(tables, name)
    if name in __all__:
        from gptlab import spec, sweeps

        return getattr(spec if hasattr(spec, name) else sweeps, name)
    raise AttributeError(f"module 'gptlab' has no attribute '{name}'")
