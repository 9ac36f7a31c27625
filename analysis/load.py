"""Runs as pandas tables: a row per run, per logged step, per tensor of a checkpoint, per sample.

- A column's dtype is fixed, also in an empty table (`analysis.columns` lists them all). What a run does not have is
  missing, never zero.
- `run`, `name` and `seed` lead every table and join them.
- `metrics`, `checkpoints`, `headers`, `windows` and `samples` take the rows of `runs()` that you are interested in;
  without them, all.
- A run of which a file cannot be read is left out with a warning that names the file.
- What is parsed is cached (`analysis.cache`): the second look reads only what has changed.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from pandas import DataFrame, Series

from analysis import cache, columns, weights
from analysis.windows import losses
from gptlab.errors import BadInputError
from gptlab.spec import did_you_mean, flatten
from gptlab.tracking.checkpoints import CHECKPOINTS, Progress, list_checkpoints
from gptlab.tracking.lock import holder_of
from gptlab.tracking.metrics import METRICS, Row, read_metrics
from gptlab.tracking.run import ATTEMPTS, RECORD, Run, Status, directories, each
from gptlab.tracking.run import load as load_run

_FILES = (RECORD, ATTEMPTS, METRICS, CHECKPOINTS)
"""What a run's row is made from."""

_LATER = (*columns.NEWEST, *columns.VALIDATION, "flops")
"""Its columns that come from the rows of metrics, read only for the runs that were asked for."""

_STORED = {"datetime64[us, UTC]": "str"}


def runs(
    *,
    name: str | None = None,
    tag: str | None = None,
    status: str | None = None,
    spec: Mapping[str, Any] | None = None,
) -> DataFrame:
    """The runs in the runs directory, one row each, by id.

    Args:
        name: Only runs of that experiment; `*` and `?` stand for any characters, as in `tiny*`.
        tag: Only runs whose last attempt has that tag.
        status: Only runs of that status.
        spec: Only runs whose spec has these values, by dotted key, such as `{"train.learning_rate": 1e-3}`.

    Columns:
        run: The run's id, `NAME-HASH8-sSEED`.
        name, seed, why: The experiment's name, the run's seed, and the question.
        experiment: `NAME-HASH8`: runs that differ only in their seed have the same.
        status: `running`, `complete`, `interrupted`, `diverged` or `failed`.
        step, steps: Optimizer steps done, and asked for last.
        created: When the run began (UTC).
        model.*, data.*, train.*: The spec's fields, as `gptlab.spec` describes them; a list is the JSON that `--set`
            takes.
        precision: What `train.precision` came to, `float32` or `bfloat16`.
        numerics: Revision of the code's arithmetic.
        text.source, text.sha256: The text as it was named, and the hash of its bytes.
        initial_weights: sha256 of the weights that the run started from; missing where they are drawn from the seed.
        parameters: Trainable parameters.
        flops_per_token: FLOPs of training on one token, forward and backward: three times
            `ModelSpec.forward_flops_per_token`.
        val/loss, val/loss_se, val/bpb, val/yardstick: Nats per token, its standard error over windows, bits per byte,
            and what they were measured on, all of the newest validation.
        train/loss: Nats per token, of the newest row that has it.
        tokens: Tokens trained on, up to the newest row.
        elapsed_s: Seconds of training over all attempts, up to the newest row.
        perf/tokens_per_s: Training tokens per second, of the newest row that has it.
        perf/peak_mem_gib: Largest memory in use, in GiB, of the newest row that has it.
        flops: FLOPs of training, up to the newest row.
        best/val_loss, best/step: The lowest validation loss (nats per token) up to the newest checkpoint, and its step.
            Chosen by the very numbers that it is taken from, it is optimistic.
        attempts: How many times the run was started or resumed.
        device, host, torch, threads: Where the last attempt ran, and with what.
        git_commit, git_dirty, diff_sha256: The code of the last attempt, whether it differed from that commit, and the
            hash of how.
        tags, notes: Of the last attempt; tags are joined by commas.
        directory: Where the run lies.

    Raises:
        BadInputError: There is no such status or field of a spec.
    """
    _check(status, spec or {})
    facts = cache.read(
        "runs",
        {column: _STORED.get(dtype, dtype) for column, dtype in columns.RUNS.items() if column not in _LATER},
        {str(directory): [directory / name for name in _FILES] for directory in directories()},
        lambda stale: each(lambda directory: (directory, [_facts(load_run(Path(directory)))]), stale),
    )
    chosen = facts["name"].map(lambda value: name is None or fnmatchcase(value, name)).astype(bool)
    for key, value in (spec or {}).items():
        chosen &= (facts[key] == (json.dumps(list(value)) if isinstance(value, list | tuple) else value)).fillna(False)
    if tag is not None:
        chosen &= facts["tags"].map(lambda tags: tag in tags.split(", ")).astype(bool)
    found = _with_status(facts[chosen])
    found = found if status is None else found[found["status"] == status]
    table = found.merge(_newest(list(found["directory"])), on="directory")
    table["flops"] = table["flops_per_token"] * table["tokens"].astype("float64")
    return table[list(columns.RUNS)].astype(columns.RUNS)


def metrics(runs: DataFrame | None = None) -> DataFrame:
    """All rows of metrics, one per run and logged step, in the order of `runs` and of training.

    Columns are `run`, `name`, `seed`, those of `gptlab.tracking.metrics.COLUMNS`, which says what each one means and
    its unit, and `flops`: FLOPs of training so far. `step`, `tokens` and `attempt` are `Int64`, `val/yardstick` is
    `str`, all others are `float64`.

    Args:
        runs: Rows of `runs()`; all where None.
    """
    table = _all_if_none(runs)
    logged, _ = _logged(list(table["directory"].unique()))
    frame = _joined(logged, table, columns.METRICS)
    per_token = table.drop_duplicates("directory")["flops_per_token"].to_numpy()
    tokens = frame["tokens"].to_numpy("float64", na_value=float("nan"))
    frame["flops"] = tokens * per_token[logged[cache.SOURCE].cat.codes.to_numpy()]
    return frame


def checkpoints(runs: DataFrame | None = None) -> DataFrame:
    """Statistics of the weights: one row per run, kept checkpoint and tensor, by step and tensor within a run.

    The first time all of the weights are read, one tensor at a time.

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
        zeros: Share of elements that are exactly zero.
        stable_rank: Squared Frobenius over squared spectral norm, between 1 and the rank; for matrices.
        update: Frobenius norm of the difference to the previous kept checkpoint.
        cosine: Cosine of the angle between the weights and those of the previous kept checkpoint.
        distance: Frobenius norm of the difference to the first kept checkpoint.

    Args:
        runs: Rows of `runs()`; all where None.
    """
    table = _all_if_none(runs)
    found = dict(each(lambda directory: (directory, load_run(Path(directory))), table["directory"].unique()))
    rows = cache.read(
        "checkpoints",
        columns.TENSORS,
        {directory: weights.files(run) for directory, run in found.items()},
        lambda stale: each(lambda directory: (directory, weights.statistics(found[directory])), stale),
    )
    return _joined(rows, table, columns.CHECKPOINTS)


def headers(runs: DataFrame | None = None) -> DataFrame:
    """What the kept checkpoints say of themselves, one row each, by step within a run; no tensor is read.

    Columns:
        run, name, seed: The run.
        step: Optimizer steps done.
        tokens: Tokens trained on.
        train/loss: Nats per token of that step's batch; missing before the first step.
        val/loss: Nats per token, where that step was validated.
        tensors: How many there are.
        bytes: Size of the file with the weights.
        resumable: Whether training can go on from it; if not, it has weights only.
        directory: Where the checkpoint lies.

    Args:
        runs: Rows of `runs()`; all where None.
    """
    return _frame(_rows_of(runs, weights.headers), columns.HEADERS)


def windows(runs: DataFrame | None = None) -> DataFrame:
    """Losses of single validation windows, as `gptlab eval` left them, one row each.

    Columns:
        run, name, seed: The run.
        step: Of the checkpoint that was judged.
        yardstick: What the windows are; windows of two runs are the same where yardstick and start are.
        start: Where in the validation tokens the window begins.
        loss: Nats per token, mean over the window.

    Args:
        runs: Rows of `runs()`; all where None.
    """
    return _frame(_rows_of(runs, losses), columns.WINDOWS)


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
    return _frame(_rows_of(runs, Run.samples), columns.SAMPLES)


def _check(status: str | None, spec: Mapping[str, Any]) -> None:
    if status is not None and status not in get_args(Status):
        raise BadInputError(f"there is no status '{status}'; there are: {', '.join(get_args(Status))}")
    for key in spec:
        if key not in columns.SPEC:
            raise BadInputError(f"there is no spec field '{key}'{did_you_mean(key, list(columns.SPEC))}")


def _all_if_none(table: DataFrame | None) -> DataFrame:
    return runs() if table is None else table


def _logged(directories: list[str]) -> tuple[DataFrame, set[str]]:
    """The rows of metrics of those runs, through the cache, and the runs whose rows cannot be read."""
    damaged: set[str] = set()

    def rows_of(stale: Iterable[str]) -> Iterator[tuple[str, list[Row]]]:
        damaged.update(asked := list(stale))
        for directory, rows in each(lambda d: (d, read_metrics(load_run(Path(d)).directory)), asked):
            damaged.remove(directory)
            yield directory, rows

    sources = {directory: [Path(directory, METRICS)] for directory in directories}
    return cache.read("metrics", columns.LOGGED, sources, rows_of), damaged


def _newest(directories: list[str]) -> DataFrame:
    """By run, the newest value of each column that not every row has, and the newest validation."""
    kinds = {column: columns.LOGGED[column] for column in (*columns.NEWEST, *columns.VALIDATION)}

    def rows_of(stale: Iterable[str]) -> Iterator[tuple[str, list[dict[Hashable, Any]]]]:
        logged, damaged = _logged(asked := list(stale))
        newest = logged.groupby(cache.SOURCE, observed=True)[list(columns.NEWEST)].last()
        validated = logged.dropna(subset="val/loss").drop_duplicates(cache.SOURCE, keep="last").set_index(cache.SOURCE)
        known = newest.join(validated[list(columns.VALIDATION)]).astype(object)
        rows = known.where(known.notna(), None).to_dict("index")
        yield from ((directory, [rows.get(directory, {})]) for directory in asked if directory not in damaged)

    sources = {directory: [Path(directory, METRICS)] for directory in directories}
    return cache.read("newest", kinds, sources, rows_of).rename(columns={cache.SOURCE: "directory"})


def _with_status(facts: DataFrame) -> DataFrame:
    """The facts with a run's status as it is now: whether it is being trained stands in no file."""

    def status(row: tuple[str, str]) -> tuple[str, str]:
        return row[0], "running" if holder_of(Path(row[0])) else row[1]

    rows = facts[["directory", "status"]].itertuples(index=False, name=None)
    now = DataFrame(each(status, rows), columns=["directory", "status"], dtype="str")
    return facts.drop(columns="status").merge(now, on="directory")


def _facts(run: Run) -> dict[str, Any]:
    """What a run's own files say besides its metrics."""
    record, starts = run.record, run.starts()
    start: Mapping[str, Any] = starts[-1] if starts else {}
    kept = list_checkpoints(run.directory)
    progress = kept[-1].manifest.progress if kept else Progress()
    spec = flatten(record.spec.model_dump(mode="json"))
    forward = record.spec.model.forward_flops_per_token(record.spec.train.sequence_length)
    return {
        **{key: json.dumps(value) if isinstance(value, list) else value for key, value in spec},
        **{column: start.get(column) for column in columns.START},
        "run": run.id,
        "experiment": run.id.rpartition("-s")[0],
        "seed": record.seed,
        "status": run.outcome(),
        "step": run.step(),
        "steps": run.target(),
        "created": record.created,
        "precision": record.precision,
        "numerics": record.identity["numerics"],
        "text.source": record.text.source,
        "text.sha256": record.text.sha256,
        "initial_weights": record.initial_weights.sha256 if record.initial_weights else None,
        "parameters": record.spec.model.parameters,
        "flops_per_token": 3.0 * forward,
        "best/val_loss": progress.best_val_loss,
        "best/step": progress.best_step,
        "attempts": len(starts),
        "tags": ", ".join(start.get("tags", [])),
        "directory": str(run.directory),
    }


def _frame(rows: Iterable[Mapping[str, Any]], dtypes: Mapping[str, str]) -> DataFrame:
    """Column by column, so that no value's type is guessed from its neighbours."""
    table = list(rows)
    return DataFrame({column: Series([row.get(column) for row in table], dtype=dtypes[column]) for column in dtypes})


def _rows_of(table: DataFrame | None, read: Callable[[Run], Iterable[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """What `read` gives for each run of the table, led by the run's keys."""

    def rows(selected: tuple[Any, ...]) -> list[dict[str, Any]]:
        directory, *keys = selected
        return [{**row, **dict(zip(columns.KEYS, keys, strict=True))} for row in read(load_run(Path(directory)))]

    selected = _all_if_none(table)[["directory", *columns.KEYS]].itertuples(index=False, name=None)
    return chain.from_iterable(each(rows, selected))


def _joined(rows: DataFrame, table: DataFrame, dtypes: Mapping[str, str]) -> DataFrame:
    """Cached rows, led by the keys of the runs that they come from."""
    codes = rows[cache.SOURCE].cat.codes.to_numpy()
    keys = table.drop_duplicates("directory")
    leading = {key: keys[key].array.take(codes) for key in columns.KEYS}
    return DataFrame({**leading, **rows.drop(columns=cache.SOURCE)}).astype(
        {column: dtype for column, dtype in dtypes.items() if column in columns.KEYS}
    )
