"""Runs as pandas tables: a row per run, per logged step, per tensor of a checkpoint, per sample.

- A column's dtype is fixed, also in an empty table: `str`, `Int64`, `float64`, `boolean` or a UTC timestamp. What a run
  does not have is missing, never zero.
- `run`, `name` and `seed` lead every table and join them.
- `metrics`, `checkpoints` and `samples` take the rows of `runs()` that you are interested in; without them, all.
- A run of which a file cannot be read is left out with a warning that names the file.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pandas import DataFrame, Series
from safetensors import SafetensorError, safe_open

from gptlab.errors import GptlabError
from gptlab.spec import SECTIONS, Experiment, ModelSpec, flatten, identity_fields
from gptlab.tracking.checkpoints import MODEL, Progress, list_checkpoints, sizes
from gptlab.tracking.metrics import COLUMNS, COUNTS, last_value, read_metrics
from gptlab.tracking.run import Run, all_runs, each
from gptlab.tracking.run import load as load_run

_DEFAULTS = Experiment(name="defaults", why="Which fields does a spec have?")
_JSON_DTYPES = {"integer": "Int64", "number": "float64", "boolean": "boolean"}
_BLOCK = 1 << 20


def _spec_dtypes() -> Iterator[tuple[str, str]]:
    for section in SECTIONS:
        fields = type(getattr(_DEFAULTS, section)).model_json_schema()["properties"]
        for field, schema in fields.items():
            kinds = {option.get("type") for option in schema.get("anyOf", [schema])} - {"null"}
            yield f"{section}.{field}", _JSON_DTYPES.get(kinds.pop(), "str") if len(kinds) == 1 else "str"


_KEYS = {"run": "str", "name": "str", "seed": "Int64"}
_NOT_FLOAT = dict.fromkeys(COUNTS, "Int64") | {"val/yardstick": "str"}
_METRICS = {column: _NOT_FLOAT.get(column, "float64") for column in COLUMNS}
_VALIDATION = ("val/loss", "val/loss_se", "val/bpb", "val/yardstick")
_NEWEST = ("train/loss", "tokens", "elapsed_s", "perf/tokens_per_s")
_FACTS = ("device", "host", "torch", "threads", "git_commit", "git_dirty", "notes")
_SPEC = dict(_spec_dtypes())

RUN_DTYPES = {
    **_KEYS,
    "status": "str",
    "step": "Int64",
    "steps": "Int64",
    "created": "datetime64[us, UTC]",
    "why": "str",
    **_SPEC,
    "precision": "str",
    "numerics": "Int64",
    "text.source": "str",
    "text.sha256": "str",
    **{column: _METRICS[column] for column in (*_VALIDATION, *_NEWEST)},
    "best/val_loss": "float64",
    "best/step": "Int64",
    "attempts": "Int64",
    "device": "str",
    "host": "str",
    "torch": "str",
    "threads": "Int64",
    "git_commit": "str",
    "git_dirty": "boolean",
    "tags": "str",
    "notes": "str",
    "directory": "str",
}
"""Columns of `runs()`."""

METRIC_DTYPES = {**_KEYS, **_METRICS}
"""Columns of `metrics()`."""

CHECKPOINT_DTYPES = {
    **_KEYS,
    "step": "Int64",
    "tensor": "str",
    "layer": "Int64",
    "shape": "str",
    "dtype": "str",
    "parameters": "Int64",
    "rms": "float64",
    "norm": "float64",
    "abs_max": "float64",
}
"""Columns of `checkpoints()`."""

SAMPLE_DTYPES = {**_KEYS, "step": "Int64", "prompt": "str", "text": "str"}
"""Columns of `samples()`."""

IDENTITY_COLUMNS = ("numerics", "precision", "text.sha256", *dict(flatten(identity_fields(_DEFAULTS))))
"""Columns of `runs()` that change what is computed; only in these can runs of two ids differ, besides the seed."""


def runs() -> DataFrame:
    """All runs in the runs directory, one row each, by id.

    Columns:
        run: The run's id, `NAME-HASH8-sSEED`.
        name, seed, why: The experiment's name, the run's seed, and the question.
        status: `running`, `complete`, `interrupted`, `diverged` or `failed`.
        step, steps: Optimizer steps done, and asked for last.
        created: When the run began (UTC).
        model.*, data.*, train.*: The spec's fields, as `gptlab.spec` describes them; a list is the JSON that `--set`
            takes.
        precision: What `train.precision` came to, `float32` or `bfloat16`.
        numerics: Revision of the code's arithmetic.
        text.source, text.sha256: The text as it was named, and the hash of its bytes.
        val/loss, val/loss_se, val/bpb, val/yardstick: Nats per token, its standard error over windows, bits per byte,
            and what they were measured on, all of the newest validation.
        train/loss: Nats per token, of the newest row that has it.
        tokens: Tokens trained on, up to the newest row.
        elapsed_s: Seconds of training over all attempts, up to the newest row.
        perf/tokens_per_s: Training tokens per second, of the newest row that has it.
        best/val_loss, best/step: The lowest validation loss (nats per token) up to the newest checkpoint, and its step.
        attempts: How many times the run was started or resumed.
        device, host, torch, threads: Where the last attempt ran, and with what.
        git_commit, git_dirty: The code of the last attempt, and whether it differed from that commit.
        tags, notes: Of the last attempt; tags are joined by commas.
        directory: Where the run lies.
    """
    return _frame(each(_run_row, all_runs()), RUN_DTYPES)


def metrics(runs: DataFrame | None = None) -> DataFrame:
    """All rows of metrics, one per run and logged step, in the order of `runs` and of training.

    Columns are `run`, `name`, `seed` and those of `gptlab.tracking.metrics.COLUMNS`, which says what each one means
    and its unit. `step`, `tokens` and `attempt` are `Int64`, `val/yardstick` is `str`, all others are `float64`.

    Args:
        runs: Rows of `runs()`; all where None.
    """
    return _frame(_rows_of(runs, lambda run: read_metrics(run.directory)), METRIC_DTYPES)


def checkpoints(runs: DataFrame | None = None) -> DataFrame:
    """Statistics of the weights: one row per run, kept checkpoint and tensor. Reads all of them, one tensor at a time.

    Columns:
        run, name, seed: The run.
        step: Optimizer steps done.
        tensor: The parameter's name in the model, such as `blocks.0.attention.projection.weight`.
        layer: The decoder block's number from 0; missing outside of the blocks.
        shape: Such as `768x3072`.
        dtype: NumPy's name, such as `float32`.
        parameters: Number of elements.
        rms: Root of the mean square.
        norm: Root of the sum of squares (Frobenius).
        abs_max: Largest magnitude.

    Args:
        runs: Rows of `runs()`; all where None.
    """
    return _frame(_rows_of(runs, _weight_rows), CHECKPOINT_DTYPES)


def samples(runs: DataFrame | None = None) -> DataFrame:
    """Texts that the models wrote, one row each, in the order of `runs` and of writing.

    Columns:
        run, name, seed: The run.
        step: Optimizer steps done when it was written.
        prompt: Where the text begins.
        text: What the model wrote after it.

    Args:
        runs: Rows of `runs()`; all where None.
    """
    return _frame(_rows_of(runs, Run.samples), SAMPLE_DTYPES)


def _frame(rows: Iterable[dict[str, Any]], dtypes: dict[str, str]) -> DataFrame:
    """Column by column, so that no value's type is guessed from its neighbours."""
    table = list(rows)
    return DataFrame({column: Series([row.get(column) for row in table], dtype=dtypes[column]) for column in dtypes})


def _rows_of(table: DataFrame | None, read: Callable[[Run], Iterable[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """What `read` gives for each run of the table, led by the run's keys."""

    def rows(selected: tuple[Any, ...]) -> list[dict[str, Any]]:
        directory, *keys = selected
        return [{**row, **dict(zip(_KEYS, keys, strict=True))} for row in read(load_run(Path(directory)))]

    table = runs() if table is None else table
    return chain.from_iterable(each(rows, table[["directory", *_KEYS]].itertuples(index=False, name=None)))


def _run_row(run: Run) -> dict[str, Any]:
    record, starts, rows = run.record, run.starts(), read_metrics(run.directory)
    start: Mapping[str, Any] = starts[-1] if starts else {}
    validation = next((row for row in reversed(rows) if "val/loss" in row), {})
    kept = list_checkpoints(run.directory)
    progress = kept[-1].manifest.progress if kept else Progress()
    spec = flatten(record.spec.model_dump(mode="json"))
    return {
        **{key: json.dumps(value) if isinstance(value, list) else value for key, value in spec},
        **{column: validation.get(column) for column in _VALIDATION},
        **{column: last_value(rows, column) for column in _NEWEST},
        **{column: start.get(column) for column in _FACTS},
        "run": run.id,
        "seed": record.seed,
        "status": run.status(),
        "step": run.step(),
        "steps": run.target(),
        "created": record.created,
        "precision": record.precision,
        "numerics": record.identity.get("numerics"),
        "text.source": record.text.source,
        "text.sha256": record.text.sha256,
        "best/val_loss": progress.best_val_loss,
        "best/step": progress.best_step,
        "attempts": len(starts),
        "tags": ", ".join(start.get("tags", [])),
        "directory": str(run.directory),
    }


def _weight_rows(run: Run) -> Iterator[dict[str, Any]]:
    for checkpoint in list_checkpoints(run.directory):
        for row in _tensor_rows(checkpoint.directory / MODEL, run.record.spec.model):
            yield {"step": checkpoint.step, **row}


def _tensor_rows(path: Path, model: ModelSpec) -> list[dict[str, Any]]:
    try:
        if path.stat().st_size >= sizes(model).stop:
            raise GptlabError(f"{path} is too long for a model of {model.parameters:,} parameters")
        with safe_open(path, framework="numpy") as file:
            return [_tensor_row(path, name, file) for name in sorted(file.keys())]
    except FileNotFoundError:  # training goes on meanwhile, and keeps only its newest checkpoints
        return []
    except (SafetensorError, OSError) as error:
        raise GptlabError(f"{path} is not a safetensors file: {error}") from error


def _tensor_row(path: Path, name: str, file: Any) -> dict[str, Any]:
    about = file.get_slice(name)
    if about.get_dtype() != "F32" or 0 in about.get_shape():
        raise GptlabError(f"{path} has {name:.80} as {about.get_shape()} {about.get_dtype()}, which is no weight")
    flat = file.get_tensor(name).ravel()
    # Squares in float64 add up without loss, and block by block they cost no copy of an embedding.
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    norm = math.sqrt(sum(float(np.square(block, dtype=np.float64).sum()) for block in blocks))
    layer = re.match(r"blocks\.([0-9]{1,9})\.", name)
    return {
        "tensor": name,
        "layer": int(layer[1]) if layer else None,
        "shape": "x".join(map(str, about.get_shape())),
        "dtype": flat.dtype.name,
        "parameters": flat.size,
        "rms": norm / math.sqrt(flat.size),
        "norm": norm,
        "abs_max": float(max(flat.max(), -flat.min())),
    }
