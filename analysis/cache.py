"""What was read from runs, kept as Parquet: a file that has not changed since is not parsed again.

One file per kind of table and runs directory, in gptlab's cache directory and not among the runs: those may be on a
disk that cannot be written, and what comes with a stranger's runs is never taken for something that we computed.
Whatever is wrong with the cache, the runs are read again; deleting it costs time and nothing else.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pandas import BooleanDtype, Categorical, DataFrame, Index, Int64Dtype, Series

from gptlab import project

VERSION = 1
"""Raised whenever the same files would give other values in a cached table."""

SETTLED_S = 2.0
"""A file that is younger may change again without its time or size telling."""

ROW_GROUP = 1 << 16
"""Rows that are read together: who asks for a few runs reads little."""

SOURCE = "source"
_METADATA = b"gptlab"
_ARROW = {"Int64": pa.int64(), "float64": pa.float64(), "str": pa.string(), "boolean": pa.bool_()}

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[Any, Any]]


def fingerprint(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, time of change (ns) and size of those files that are there."""
    found = []
    for path in files:
        try:
            about = path.lstat()
        except OSError:
            continue
        found.append((str(path), about.st_mtime_ns, about.st_size))
    return found


def read(
    kind: str,
    dtypes: Mapping[str, str],
    sources: Mapping[str, Iterable[Path]],
    rows_of: Callable[[Iterable[str]], Iterator[tuple[str, Rows]]],
) -> DataFrame:
    """The rows of all sources, in their order, from the cache where their files are as they were.

    Args:
        kind: Names the cached table.
        dtypes: Its columns, as `analysis.columns` writes them.
        sources: For each source, the directory of a run, the files that its rows are made from.
        rows_of: Reads those sources that the cache does not have; leaves out what cannot be read.

    Returns:
        The columns, and a categorical `source` in front.
    """
    path = _place(kind)
    schema = pa.schema([(SOURCE, pa.string()), *((column, _ARROW[dtype]) for column, dtype in dtypes.items())])
    marks = {source: json.dumps(fingerprint(files)) for source, files in sources.items()}
    with _Cached(path, schema) as cached:
        kept = [source for source, mark in marks.items() if cached.marks.get(source) == mark]
        stale = marks.keys() - kept
        if not stale:
            return _in_order(cached.table(kept), list(sources))
        fresh = [(source, _table(source, rows, schema)) for source, rows in rows_of(s for s in marks if s in stale)]
        others = [source for source in cached.marks if source not in marks and Path(source).is_dir()]
        table = pa.concat_tables([cached.table([*kept, *others]), *(table for _, table in fresh)])
    now_kept = {source: cached.marks[source] for source in [*kept, *others]}
    now_kept |= {source: marks[source] for source, _ in fresh if _is_settled(marks[source])}
    _write(path, _only(table, now_kept), now_kept)
    return _in_order(_only(table, [*kept, *(source for source, _ in fresh)]), list(sources))


class _Cached:
    """A context with the cached table, which is empty where there is none that can be used."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema, self._file = schema, _opened(path, schema)
        self.marks: dict[str, str] = {}
        if self._file:
            self.marks = json.loads(pq.read_schema(self._file).metadata[_METADATA])["marks"]

    def table(self, sources: Sequence[str]) -> pa.Table:
        """The rows of some sources."""
        if self._file is None or not sources:
            return self._schema.empty_table()
        wanted = None if len(sources) == len(self.marks) else pc.field(SOURCE).isin(list(sources))
        return pq.read_table(self._file, schema=self._schema, filters=wanted)

    def __enter__(self) -> "_Cached":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()


def _opened(path: Path, schema: pa.Schema) -> BinaryIO | None:
    """The cached table's file, if it has those columns and was written by this version."""
    try:
        file = path.open("rb")
        found = pq.read_schema(file)
        about = json.loads((found.metadata or {}).get(_METADATA, "{}"))
        if about.get("version") == VERSION and found.names == schema.names:
            return file
        file.close()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # Arrow's own errors are among them
        logger.warning("%s cannot be used: %s; the runs are read again", path, error)
    return None


def _place(kind: str) -> Path:
    runs = hashlib.sha256(os.fsencode(project.runs_directory())).hexdigest()[:16]
    return project.cache_directory() / "analysis" / runs / f"{kind}.parquet"


def _table(source: str, rows: Rows, schema: pa.Schema) -> pa.Table:
    """Column by column, so that no value's type is guessed from its neighbours."""
    columns = [pa.repeat(source, len(rows))]
    for name, dtype in zip(schema.names[1:], schema.types[1:], strict=True):
        if dtype == pa.float64():  # by far the most, and NumPy takes them faster
            values = np.array([row.get(name) for row in rows], np.float64)  # None is NaN
            columns.append(pa.array(values, from_pandas=True))
        else:
            columns.append(pa.array([row.get(name) for row in rows], dtype))
    return pa.Table.from_arrays(columns, schema=schema)


def _only(table: pa.Table, sources: Iterable[str]) -> pa.Table:
    return table.filter(pc.is_in(table[SOURCE], pa.array(list(sources), pa.string())))


def _is_settled(mark: str) -> bool:
    newest = max((time_ns for _, time_ns, _ in json.loads(mark)), default=0)
    return time.time_ns() - newest > SETTLED_S * 1e9


def _write(path: Path, table: pa.Table, marks: Mapping[str, str]) -> None:
    """Replace the cached table; where that fails it stays as it was."""
    about = json.dumps({"version": VERSION, "marks": marks})
    table = table.replace_schema_metadata({_METADATA: about})
    staged = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, staged = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            pq.write_table(table, file, compression="zstd", row_group_size=ROW_GROUP)
        os.replace(staged, path)
    except OSError as error:
        logger.warning("%s cannot be written: %s; the next look at the runs is as slow as this one", path, error)
        if staged:
            Path(staged).unlink(missing_ok=True)


def _in_order(table: pa.Table, sources: list[str]) -> DataFrame:
    """As pandas has it, the rows of each source together and otherwise in their own order."""
    dtypes = {pa.int64(): Int64Dtype(), pa.bool_(): BooleanDtype()}
    encoded = pc.dictionary_encode(table[SOURCE].combine_chunks())
    numbers = {source: number for number, source in enumerate(sources)}
    known = np.array([numbers[source] for source in encoded.dictionary.to_pylist()], np.int64)
    codes = known[encoded.indices.to_numpy()]
    frame: DataFrame = table.drop_columns(SOURCE).to_pandas(types_mapper=dtypes.get)
    # The categories are objects: what a run's directory is called may be no text that Arrow can hold.
    frame.insert(0, SOURCE, Series(Categorical.from_codes(codes, Index(sources, dtype=object))))
    if (np.diff(codes) < 0).any():
        frame = frame.iloc[np.argsort(codes, kind="stable")].reset_index(drop=True)
    return frame
