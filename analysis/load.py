"""Runs as pandas tables: one row per run, logged step, checkpoint, tensor, validation window or sample.

Select runs with `runs`, then pass them, or any subset of their rows, to the other functions. Without an argument these
read all runs.

    from analysis import load

    runs = load.runs(name="tiny*", status="complete")
    metrics = load.metrics(runs[runs["train.learning_rate"] > 1e-3])

Every table starts with the columns `run`, `name` and `seed`, on which tables can be joined. Dtypes are fixed, also in
an empty table; `analysis.columns` lists them. A value that a run does not have is NA or NaN, never zero.

A run with an unreadable file is left out, with a warning that names the file, and so is a directory with another name
than its run, which is a copy (`runs_and_copies` lists these). Parsed files are cached
(`analysis.cache`): a second call reads only files that have changed.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from pandas import DataFrame, Series, concat

from analysis import attempts, cache, columns, logged, weights
from analysis.windows import window_losses
from gptlab.checkpoints.manifest import CHECKPOINTS, LoopState, list_checkpoints
from gptlab.errors import BadInputError
from gptlab.spec import flatten
from gptlab.tracking.history import ATTEMPTS, Status
from gptlab.tracking.lock import lock_holder
from gptlab.tracking.metrics import METRICS
from gptlab.tracking.run import RECORD, Run, load_run, run_directories, skip_unreadable
from gptlab.tracking.verifications import VERIFICATIONS, current_verification, describe_verification
from gptlab.validation import did_you_mean

_FILES = (RECORD, ATTEMPTS, METRICS, CHECKPOINTS, VERIFICATIONS)
"""Files of a run that the cached part of its row in `runs` depends on."""

_FROM_METRICS = (*columns.NEWEST, *columns.VALIDATION, "flops")
"""Columns of `runs` that come from the metrics, which are read only for the selected runs."""

logger = logging.getLogger(__name__)

PROFILE = "profile"
"""Folder of a profile. Earlier versions did not record `--profile` in the attempts."""

_CACHED_DTYPES = {"datetime64[us, UTC]": "str"}


def runs(
    *,
    name: str | None = None,
    tag: str | None = None,
    status: str | None = None,
    spec: Mapping[str, Any] | None = None,
) -> DataFrame:
    """Return the runs in the runs directory, one row each, sorted by id.

    Args:
        name: Only runs of this experiment; `*` and `?` match any characters, as in `tiny*`.
        tag: Only runs whose last attempt has this tag.
        status: Only runs with this status.
        spec: Only runs whose spec has these values, by dotted key, such as `{"train.learning_rate": 1e-3}`.

    Returns:
        A table with the columns

        run: The run's id, `NAME-HASH8-sSEED`.
        name, seed, why: The experiment's name, the run's seed and the experiment's question.
        experiment: `NAME-HASH8`, shared by runs that differ only in their seed.
        status: `running`, `complete`, `interrupted`, `diverged` or `failed`.
        step, steps: Optimizer steps done, and planned in total.
        created: Time at which the run was created (UTC).
        model.*, data.*, train.*: The fields of the spec, described in `gptlab.spec`. A list is a JSON string, as
            in `--set`.
        precision: The resolved `train.precision`: `float32` or `bfloat16`.
        numerics: Numerics revision of the code that created the run.
        text.source, text.sha256: The name or path of the text, and the SHA-256 of its bytes.
        tokenizer.sha256: The SHA-256 of the tokenizer.
        initial_weights: SHA-256 of the weights that the run started from; missing if they were initialized from the
            seed.
        parent, parent_step: Id of the run that it started from, and the step; missing if there is none.
        branch: `RUN@STEP` if the run continues from another run's weights and optimizer state; else missing.
        branch_tokens, branch_flops: Training tokens and FLOPs of the parent up to that step, which `tokens` and `flops`
            include; 0 if the run is not a branch.
        parameters: Number of trainable parameters.
        flops_per_token: FLOPs to train on one token, forward and backward: three times
            `ModelSpec.forward_flops_per_token`.
        val/loss, val/loss_se, val/bpb, val/yardstick: The newest validation: nats per token, its standard error over
            windows, bits per byte, and the yardstick.
        train/loss: Newest training loss, in nats per token.
        tokens: Training tokens seen up to the newest row, those of a branch's parent included, as in `elapsed_s`,
            `cpu_s` and `flops`.
        elapsed_s: Training time of all attempts up to the newest row, in seconds.
        cpu_s: CPU time of all threads in that time, in seconds; missing if an attempt did not measure it.
        perf/tokens_per_s: Newest training throughput, in tokens per second.
        perf/peak_mem_gib: Newest peak memory in use, in GiB.
        flops: Training FLOPs up to the newest row.
        best/val_loss, best/step: The lowest validation loss up to the newest checkpoint, in nats per token, and its
            step. It is optimistic, because the step was chosen by this loss.
        attempts: Number of times the run was started or resumed.
        device, host, torch, threads, compile: Device, host, PyTorch version, number of threads, and whether the model's
            blocks were compiled, in the last attempt.
        git_commit, git_dirty, diff_sha256: Commit of the last attempt's code, whether it had uncommitted changes, and
            the SHA-256 of their diff.
        fingerprint: Hash of what the code of the last attempt computes. It also depends on the spec.
        code_files: The SHA-256 of each file of code that determines the numbers, as a JSON object, when the run began.
        changed: Which of these facts, `notes` excluded, changed between the attempts, as a JSON object of lists of
            successive values, and `code`, a list of successive versions; missing if nothing changed.
        damage: How the metrics differ from what was written; missing if they do not. A damaged run has no losses and
            no rows of metrics.
        verified: What `gptlab verify` found, such as `bitwise 0–300`; missing if the run was never verified or has
            changed since.
        profiled: Whether an attempt was made with `--profile`. Such a run is never a replicate.
        tags, notes: Tags (joined by commas) and notes of the last attempt.
        directory: The run's directory.

    Raises:
        BadInputError: `status` is not a status, or `spec` has a key that is not a field of the spec.
    """
    return runs_and_copies(name=name, tag=tag, status=status, spec=spec)[0]


def runs_and_copies(
    *,
    name: str | None = None,
    tag: str | None = None,
    status: str | None = None,
    spec: Mapping[str, Any] | None = None,
) -> tuple[DataFrame, DataFrame]:
    """Return what `runs` returns, and the directories that it leaves out because they are copies of runs.

    A directory with another name than its run, such as a backup, is a copy. It is in no other table, so that no run
    counts twice.

    Args:
        name: As in `runs`, as are the others.
        tag: See `runs`.
        status: See `runs`.
        spec: See `runs`.

    Returns:
        The runs, and a table of copies with the columns

        run, name, seed: The run in the directory.
        directory: The directory.

    Raises:
        BadInputError: See `runs`.
    """
    _check(status, spec or {})
    facts = _all_facts()
    chosen = facts["name"].map(lambda value: name is None or fnmatchcase(value, name)).astype(bool)
    for key, value in (spec or {}).items():
        chosen &= (facts[key] == (json.dumps(list(value)) if isinstance(value, list | tuple) else value)).fillna(False)
    if tag is not None:
        chosen &= facts["tags"].map(lambda tags: tag in tags.split(", ")).astype(bool)
    is_copy = _is_copy(facts)
    copies = facts.loc[chosen & is_copy, list(columns.COPIES)].astype(columns.COPIES).reset_index(drop=True)
    if len(copies):
        _warn_of_copies(copies)
    selected = _with_current_status(facts[chosen & ~is_copy])
    selected = selected if status is None else selected[selected["status"] == status]
    newest = logged.newest(_intact(selected))
    table = selected.merge(newest, on="directory", how="left")
    table = table[table["directory"].isin(newest["directory"]) | table["damage"].notna()]  # others cannot be read
    for damage in table["damage"].dropna():
        logger.warning("%s; its metrics are left out", damage)
    own = (table["tokens"] - table["branch_tokens"]).astype("float64")
    table = table.assign(flops=table["branch_flops"] + table["flops_per_token"] * own)
    return table[list(columns.RUNS)].astype(columns.RUNS).reset_index(drop=True), copies


def metrics(runs: DataFrame | None = None) -> DataFrame:
    """Return the metrics of runs, one row per run and logged step.

    Args:
        runs: Rows of `runs()`; all runs by default.

    Returns:
        A table in the order of `runs` and of the steps, with the columns

        run, name, seed: The run.
        step, tokens, attempt, ...: The columns of `gptlab.tracking.metrics.COLUMNS`, which documents their meanings
            and units. Counts are `Int64`, `val/yardstick` is `str`, and all others are `float64`.
        flops: Training FLOPs so far.
    """
    table = _all_if_none(runs)
    directories = _intact(table)
    rows, _ = logged.rows(directories)
    selected = table[table["directory"].isin(directories)]
    frame = _joined(rows, selected, columns.METRICS)
    facts = selected.drop_duplicates("directory")[["flops_per_token", "branch_tokens", "branch_flops"]]
    per_token, before, spent = facts.to_numpy("float64")[rows[cache.SOURCE].cat.codes.to_numpy()].T
    frame["flops"] = spent + per_token * (frame["tokens"].to_numpy("float64", na_value=float("nan")) - before)
    return frame


def checkpoints(runs: DataFrame | None = None) -> DataFrame:
    """Return statistics of the weights, one row per run, kept checkpoint and tensor.

    The first call reads all weights, one tensor at a time.

    Args:
        runs: Rows of `runs()`; all runs by default.

    Returns:
        A table in the order of `runs`, then by step and tensor, with the columns

        run, name, seed: The run.
        step: Step of the checkpoint.
        tensor: Name of the parameter in the model, such as `blocks.0.attention.projection.weight`.
        layer: Index of the decoder block, from 0; missing outside the blocks.
        shape: Shape, such as `768x3072`.
        dtype: NumPy dtype, such as `float32`.
        parameters: Number of elements.
        rms: Root mean square of the elements.
        norm: Frobenius norm.
        abs_max: Largest absolute value.
        zeros: Fraction of elements that are exactly zero.
        stable_rank: Squared Frobenius norm over squared spectral norm, between 1 and the rank; matrices only.
        update: Frobenius norm of the difference from the previous kept checkpoint.
        cosine: Cosine of the angle to the previous kept checkpoint.
        distance: Frobenius norm of the difference from the first kept checkpoint.
    """
    return _from_weights("checkpoints", weights.statistics, runs, columns.CHECKPOINTS)


def headers(runs: DataFrame | None = None) -> DataFrame:
    """Return the headers of the kept checkpoints, one row each.

    The first call reads each file once, to verify its checksum.

    Args:
        runs: Rows of `runs()`; all runs by default.

    Returns:
        A table in the order of `runs`, then by step, with the columns

        run, name, seed: The run.
        step: Step of the checkpoint.
        tokens: Training tokens seen.
        train/loss: Training loss of that step's batch, in nats per token; missing at step 0.
        val/loss: Validation loss in nats per token; missing if there was no validation at that step.
        tensors: Number of tensors.
        bytes: Size of the weight file.
        resumable: Whether a run can be resumed from the checkpoint; otherwise it is weights only.
        directory: The checkpoint's directory.
    """
    return _from_weights("headers", weights.headers, runs, columns.HEADERS)


def windows(runs: DataFrame | None = None) -> DataFrame:
    """Return the losses of individual validation windows that `gptlab eval` saved, one row each.

    Args:
        runs: Rows of `runs()`; all runs by default.

    Returns:
        A table in the order of `runs`, with the columns

        run, name, seed: The run.
        step: Step of the evaluated checkpoint.
        yardstick: Identifies the set of windows. Two runs have a window in common if yardstick and start are equal.
        start: Index of the window's first token in the validation tokens.
        loss: Mean over the window, in nats per token.
    """
    return frame(rows_of(runs, window_losses), columns.WINDOWS)


def samples(runs: DataFrame | None = None) -> DataFrame:
    """Return the samples that were generated during training, one row each.

    Args:
        runs: Rows of `runs()`; all runs by default.

    Returns:
        A table in the order of `runs` and of generation, with the columns

        run, name, seed: The run.
        step: Step at which the sample was generated.
        prompt: The prompt.
        text: The model's continuation of the prompt.
    """
    return frame(rows_of(runs, Run.samples), columns.SAMPLES)


def _check(status: str | None, spec: Mapping[str, Any]) -> None:
    if status is not None and status not in get_args(Status):
        raise BadInputError(f"there is no status '{status}'; the statuses are: {', '.join(get_args(Status))}")
    for key in spec:
        if key not in columns.SPEC:
            section = [field for field in columns.SPEC if field.startswith(f"{key.partition('.')[0]}.")]
            hint = did_you_mean(key, columns.SPEC) or f"; the fields are: {', '.join(section or columns.SPEC)}"
            raise BadInputError(f"there is no spec field '{key}'{hint}")


def _all_facts() -> DataFrame:
    """The columns of `runs` that do not come from the metrics, of every readable directory."""
    return cache.read(
        "runs",
        {
            column: _CACHED_DTYPES.get(dtype, dtype)
            for column, dtype in columns.RUNS.items()
            if column not in _FROM_METRICS
        },
        {str(directory): [directory / name for name in _FILES] for directory in run_directories()},
        lambda stale: skip_unreadable(lambda directory: (directory, [_facts(load_run(Path(directory)))]), stale),
    )


def _is_copy(facts: DataFrame) -> Series:
    names = [Path(directory).name for directory in facts["directory"]]
    return (facts["run"] != Series(names, index=facts.index, dtype="str")).astype(bool)


def _warn_of_copies(facts: DataFrame) -> None:
    """Name copies in one line. Only one whose original is gone can be renamed without harm."""
    listed = []
    for directory, run in facts[["directory", "run"]].itertuples(index=False, name=None):
        remedy = "" if Path(directory).with_name(run).exists() else f"; rename it to {run} to include it"
        listed.append(f"{directory} is a copy of {run}{remedy}")
    logger.warning("left out of comparisons: %s", ", ".join(listed))


def _intact(table: DataFrame) -> list[str]:
    """The directories of the runs whose metrics are not damaged."""
    return list(table.loc[table["damage"].isna(), "directory"].unique())


def _all_if_none(table: DataFrame | None) -> DataFrame:
    if table is None:
        return runs()
    if not (isinstance(table, DataFrame) and {"directory", *columns.KEYS} <= set(table.columns)):
        raise BadInputError(f"expected rows of load.runs(), such as load.runs(name='tiny*'), not {_describe(table)}")
    return table


def _describe(value: object) -> str:
    """What was given instead of rows of `runs()`."""
    if not isinstance(value, DataFrame):
        return f"{value!r:.100}" if isinstance(value, str) else f"a {type(value).__name__}"
    return f"a table without the column '{next(key for key in (*columns.KEYS, 'directory') if key not in value)}'"


def _with_current_status(facts: DataFrame) -> DataFrame:
    """Replace the cached status by the current one. Only a run's lock shows whether it is being trained."""

    def status(row: tuple[str, str]) -> tuple[str, str]:
        return row[0], "running" if lock_holder(Path(row[0])) else row[1]

    rows = facts[["directory", "status"]].itertuples(index=False, name=None)
    now = DataFrame(skip_unreadable(status, rows), columns=["directory", "status"], dtype="str")
    return facts.drop(columns="status").merge(now, on="directory")


def _facts(run: Run) -> dict[str, Any]:
    """The columns of a run's row that do not come from its metrics."""
    record, history = run.record, run.history()
    starts, verified = history.starts, current_verification(run.directory)
    start: Mapping[str, Any] = starts[-1] if starts else {}
    kept = list_checkpoints(run.directory)
    progress = kept[-1].manifest.progress if kept else LoopState()
    spec = flatten(record.spec.model_dump(mode="json"))
    parent, branch = record.parent, record.branch
    return {
        **{key: json.dumps(value) if isinstance(value, list) else value for key, value in spec},
        **{column: start.get(column) for column in columns.START},
        "run": run.id,
        "experiment": run.id.rpartition("-s")[0],
        "seed": record.seed,
        "status": history.outcome,
        "step": history.step,
        "steps": history.target,
        "created": record.created,
        "precision": record.precision,
        "numerics": record.identity["numerics"],
        "text.source": record.text.source,
        "text.sha256": record.text.sha256,
        "tokenizer.sha256": record.tokenizer_sha256,
        "initial_weights": record.initial_weights_sha256,
        "parent": parent and parent.run,
        "parent_step": parent and parent.step,
        "branch": branch and branch.reference,
        "branch_tokens": branch.tokens if branch else 0,
        "branch_flops": branch.flops if branch else 0.0,
        "parameters": record.model_size.parameters,
        "flops_per_token": record.flops_per_token,
        "best/val_loss": progress.best_val_loss,
        "best/step": progress.best_step,
        "attempts": len(starts),
        "changed": attempts.changes(starts),
        "code_files": json.dumps(record.fingerprint.files) if record.fingerprint else None,
        "damage": history.damage,
        "verified": describe_verification(verified) if verified else None,
        "profiled": any(start.get("profile") for start in starts) or (run.directory / PROFILE).exists(),
        "tags": ", ".join(start.get("tags", [])),
        "directory": str(run.directory),
    }


def frame(rows: Iterable[Mapping[str, Any]], dtypes: Mapping[str, str]) -> DataFrame:
    """Return a table built column by column, so that no dtype is inferred from the values."""
    table = list(rows)
    return DataFrame({column: Series([row.get(column) for row in table], dtype=dtypes[column]) for column in dtypes})


def rows_of(table: DataFrame | None, read: Callable[[Run], Iterable[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield the rows that `read` returns for each run of `runs()` or of some of its rows, with the run's keys.

    A run with an unreadable file is left out, with a warning that names the file.
    """

    def rows(selected: tuple[Any, ...]) -> list[dict[str, Any]]:
        directory, *keys = selected
        return [{**row, **dict(zip(columns.KEYS, keys, strict=True))} for row in read(load_run(Path(directory)))]

    selected = _all_if_none(table)[["directory", *columns.KEYS]].itertuples(index=False, name=None)
    return chain.from_iterable(skip_unreadable(rows, selected))


def _from_weights(
    kind: str, read: Callable[[Run], cache.Rows], runs: DataFrame | None, dtypes: Mapping[str, str]
) -> DataFrame:
    """The cached rows that `read` returns for the weights of each run, with the run's keys."""
    table = _all_if_none(runs)
    directories = table["directory"].unique()
    loaded = dict(skip_unreadable(lambda directory: (directory, load_run(Path(directory))), directories))
    rows = cache.read(
        kind,
        {column: dtype for column, dtype in dtypes.items() if column not in columns.KEYS},
        {directory: weights.files(run) for directory, run in loaded.items()},
        lambda stale: skip_unreadable(lambda directory: (directory, read(loaded[directory])), stale),
    )
    return _joined(rows, table[table["directory"].isin(list(loaded))], dtypes)


def _joined(rows: DataFrame, table: DataFrame, dtypes: Mapping[str, str]) -> DataFrame:
    """Cached rows with the keys of their runs as first columns. The table has exactly their sources, in this order."""
    codes = rows[cache.SOURCE].cat.codes.to_numpy()
    keys = table.drop_duplicates("directory")
    leading = {key: keys[key].array.take(codes).astype(dtypes[key]) for key in columns.KEYS}
    return concat([DataFrame(leading), rows.drop(columns=cache.SOURCE)], axis=1)  # does not copy the rows
