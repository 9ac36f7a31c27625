"""A cache of parsed runs: unchanged files are not parsed again.

There is one Parquet file per table and runs directory, in gptlab's cache directory. It is not in the runs directory,
which may be read-only, and where an untrusted run could bring a forged cache. If the cache is missing or damaged, the
runs are read again; deleting it costs only time.
"""

import hashlib
import json
import logging
import os
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
from gptlab.errors import GptlabError
from gptlab.files import atomic_write

VERSION = 1
"""Incremented when the same files would give different values in a cached table."""

SETTLED_S = 2.0
"""A file that changed more recently is not cached: it may change again without a new time or size."""

ROW_GROUP = 1 << 16
"""Rows per row group: small enough that selecting a few runs reads little."""

SOURCE = "source"
_METADATA = b"gptlab"
_ARROW = {"Int64": pa.int64(), "float64": pa.float64(), "str": pa.string(), "boolean": pa.bool_()}

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[Any, Any]]


def fingerprint(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return the path, modification time (ns) and size of each file that exists."""
    existing = []
    for path in files:
        try:
            status = path.lstat()
        except OSError:
            continue
        existing.append((str(path), status.st_mtime_ns, status.st_size))
    return existing


def read(
    kind: str,
    dtypes: Mapping[str, str],
    sources: Mapping[str, Iterable[Path]],
    read_rows: Callable[[Iterable[str]], Iterator[tuple[str, Rows]]],
) -> DataFrame:
    """Return the rows of all sources, from the cache where their files have not changed.

    Args:
        kind: Name of the cached table.
        dtypes: Its columns with their dtypes, as in `analysis.columns`.
        sources: For each source (the directory of a run) the files that its rows depend on.
        read_rows: Reads the rows of sources that are not in the cache. Sources that it does not yield are left out.

    Returns:
        The columns, preceded by the categorical column `source`. Rows are in the order of `sources`.
    """
    path = _cache_file(kind)
    schema = pa.schema([(SOURCE, pa.string()), *((column, _ARROW[dtype]) for column, dtype in dtypes.items())])
    current = {source: json.dumps(fingerprint(files)) for source, files in sources.items()}
    with _CachedTable(path, schema) as cached:
        kept = [source for source, value in current.items() if cached.fingerprints.get(source) == value]
        stale = current.keys() - kept
        if not stale:
            return _to_pandas(cached.rows(kept), list(sources))
        fresh = [
            (source, _to_arrow(source, rows, schema)) for source, rows in read_rows(s for s in current if s in stale)
        ]
        others = [source for source in cached.fingerprints if source not in current and Path(source).is_dir()]
        table = pa.concat_tables([cached.rows([*kept, *others]), *(table for _, table in fresh)])
    fingerprints = {source: cached.fingerprints[source] for source in [*kept, *others]}
    fingerprints |= {source: current[source] for source, _ in fresh if _is_settled(current[source])}
    _write(path, _select(table, fingerprints), fingerprints)
    return _to_pandas(_select(table, [*kept, *(source for source, _ in fresh)]), list(sources))


class _CachedTable:
    """A context manager for the cached table. The table is empty if there is no usable cache."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema, self._file = schema, _open(path, schema)
        self.fingerprints: dict[str, str] = {}
        """The fingerprint of each cached source."""
        if self._file:
            self.fingerprints = json.loads(pq.read_schema(self._file).metadata[_METADATA])["marks"]

    def rows(self, sources: Sequence[str]) -> pa.Table:
        """The rows of some sources."""
        if self._file is None or not sources:
            return self._schema.empty_table()
        wanted = None if len(sources) == len(self.fingerprints) else pc.field(SOURCE).isin(list(sources))
        return pq.read_table(self._file, schema=self._schema, filters=wanted)

    def __enter__(self) -> "_CachedTable":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()


def _open(path: Path, schema: pa.Schema) -> BinaryIO | None:
    """Open the cached table if it exists, has this schema and was written by this version."""
    try:
        file = path.open("rb")
        stored = pq.read_schema(file)
        metadata = json.loads((stored.metadata or {}).get(_METADATA, "{}"))
        if metadata.get("version") == VERSION and stored.names == schema.names:
            return file
        file.close()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # includes Arrow's own errors
        logger.warning("%s cannot be used: %s; the runs are read again", path, error)
    return None


def _cache_file(kind: str) -> Path:
    runs = hashlib.sha256(os.fsencode(project.runs_directory())).hexdigest()[:16]
    return project.cache_directory() / "analysis" / runs / f"{kind}.parquet"


def _to_arrow(source: str, rows: Rows, schema: pa.Schema) -> pa.Table:
    """The rows of one source, built column by column with the types of the schema."""
    columns = [pa.repeat(source, len(rows))]
    for name, dtype in zip(schema.names[1:], schema.types[1:], strict=True):
        if dtype == pa.float64():  # most columns; converting with NumPy is faster
            values = np.array([row.get(name) for row in rows], np.float64)  # None becomes NaN
            columns.append(pa.array(values, from_pandas=True))
        else:
            columns.append(pa.array([row.get(name) for row in rows], dtype))
    return pa.Table.from_arrays(columns, schema=schema)


def _select(table: pa.Table, sources: Iterable[str]) -> pa.Table:
    return table.filter(pc.is_in(table[SOURCE], pa.array(list(sources), pa.string())))


def _is_settled(fingerprint_json: str) -> bool:
    newest = max((time_ns for _, time_ns, _ in json.loads(fingerprint_json)), default=0)
    return time.time_ns() - newest > SETTLED_S * 1e9


def _write(path: Path, table: pa.Table, fingerprints: Mapping[str, str]) -> None:
    """Replace the cached table atomically. If that fails, log a warning and keep the old one."""
    metadata = json.dumps({"version": VERSION, "marks": fingerprints})
    table = table.replace_schema_metadata({_METADATA: metadata})
    try:
        with atomic_write(path, make_parents=True) as file:
            pq.write_table(table, file, compression="zstd", row_group_size=ROW_GROUP)
    except (OSError, GptlabError) as error:
        logger.warning("%s cannot be written: %s; the runs will be read again next time", path, error)


def _to_pandas(table: pa.Table, sources: list[str]) -> DataFrame:
    """The table with the rows grouped by source, in the order of `sources`."""
    dtypes = {pa.int64(): Int64Dtype(), pa.bool_(): BooleanDtype()}
    encoded = pc.dictionary_encode(table[SOURCE].combine_chunks())
    numbers = {source: number for number, source in enumerate(sources)}
    known = np.array([numbers[source] for source in encoded.dictionary.to_pylist()], np.int64)
    codes = known[encoded.indices.to_numpy()]
    frame: DataFrame = table.drop_columns(SOURCE).to_pandas(types_mapper=dtypes.get)
    # The categories are Python objects: a directory's name can be invalid UTF-8, which Arrow refuses.
    frame.insert(0, SOURCE, Series(Categorical.from_codes(codes, Index(sources, dtype=object))))
    if (np.diff(codes) < 0).any():
        frame = frame.iloc[np.argsort(codes, kind="stable")].reset_index(drop=True)
    return frame
