"""Named GPT pretraining experiments on one `.txt` file.

For notebooks: `load` a trained model, read `runs`, `metrics` and `samples` into pandas, define an `Experiment`.
"""

from __future__ import annotations

import time

STARTED_NS = time.time_ns()
"""When this process imported the package: code that is changed later is not what it runs."""

TYPE_CHECKING = False  # importing `typing` would triple the time in which Ctrl-C is not handled yet; see `entry`

if TYPE_CHECKING:
    from typing import Any

    from analysis.load import metrics, runs, samples
    from gptlab.data.vocabularies import Tokenizer
    from gptlab.model.gpt import GPT
    from gptlab.spec import DataSpec, Experiment, ModelSpec, TrainSpec

__all__ = ["DataSpec", "Experiment", "ModelSpec", "TrainSpec", "load", "metrics", "runs", "samples"]


def load(run: str, step: int | None = None) -> tuple[GPT, Tokenizer]:
    """Load a run's model, on the CPU and in evaluation mode, and its tokenizer.

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
    return model, run_tokenizer(found)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import gptlab` is fast and works without pandas."""
    if name in {"metrics", "runs", "samples"}:
        try:
            from analysis import load as tables
        except ModuleNotFoundError as error:
            raise ImportError(f"gptlab.{name} needs {error.name}: pip install 'gptlab[analysis]'") from error
        return getattr(tables, name)
    if name in __all__:
        from gptlab import spec

        return getattr(spec, name)
    raise AttributeError(f"module 'gptlab' has no attribute '{name}'")
