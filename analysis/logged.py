"""The rows of `metrics.jsonl` of several runs, from the cache."""

from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pandas import DataFrame

from analysis import cache, columns
from gptlab.tracking.metrics import METRICS, stream_metrics
from gptlab.tracking.run import load_run, skip_unreadable


def rows(directories: list[str]) -> tuple[DataFrame, set[str]]:
    """Return the rows of these runs, and the runs whose rows cannot be read."""
    unreadable: set[str] = set()

    def read(directory: str) -> tuple[str, pa.Table]:
        run = load_run(Path(directory))
        return directory, cache.to_arrow(directory, stream_metrics(run.directory), columns.LOGGED)

    def read_rows(stale: Iterable[str]) -> Iterator[tuple[str, pa.Table]]:
        unreadable.update(stale := list(stale))
        for directory, table in skip_unreadable(read, stale):
            unreadable.remove(directory)
            yield directory, table

    sources = {directory: [Path(directory, METRICS)] for directory in directories}
    return cache.read("metrics", columns.LOGGED, sources, read_rows), unreadable


def newest(directories: list[str]) -> DataFrame:
    """Return for each run the last known value of each column in `columns.NEWEST`, and the newest validation."""
    kinds = {column: columns.LOGGED[column] for column in (*columns.NEWEST, *columns.VALIDATION)}

    def read_rows(stale: Iterable[str]) -> Iterator[tuple[str, list[dict[Hashable, Any]]]]:
        logged, unreadable = rows(stale := list(stale))
        last = logged.groupby(cache.SOURCE, observed=True)[list(columns.NEWEST)].last()
        validated = logged.dropna(subset="val/loss").drop_duplicates(cache.SOURCE, keep="last").set_index(cache.SOURCE)
        known = last.join(validated[list(columns.VALIDATION)]).astype(object)
        values = known.where(known.notna(), None).to_dict("index")
        yield from ((directory, [values.get(directory, {})]) for directory in stale if directory not in unreadable)

    sources = {directory: [Path(directory, METRICS)] for directory in directories}
    return cache.read("newest", kinds, sources, read_rows).rename(columns={cache.SOURCE: "directory"})
