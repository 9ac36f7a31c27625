"""A cache of parsed runs: unchanged files are not parsed again.

There is one file per table and runs directory, in gptlab's cache directory: a checksum, then a Parquet table. It is not
in the runs directory, which may be read-only, and where an untrusted run could bring a forged cache. If the cache is
missing or damaged, the runs are read again; deleting it costs only time.

The checksum covers the whole file. Parquet's own checksums cover its data pages only: not their headers, nor the footer
with the offsets of the columns and the fingerprints of the runs.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from pandas import BooleanDtype, Categorical, DataFrame, Index, Int64Dtype, Series
from pydantic import TypeAdapter

from gptlab import project
from gptlab.errors import GptlabError
from gptlab.files import atomic_write

VERSION = 3
"""Incremented when the same files would give different values in a cached table. It is part of the file's name."""

CHECKSUM_BYTES = 16

SETTLED_S = 2.0
"""A file that changed more recently is not cached: it may change again without a new time or size."""

ROW_GROUP = 1 << 16
"""Rows per row group: small enough that selecting a few runs reads little."""

SOURCE = "source"
_METADATA = b"gptlab"
_ARROW = {"Int64": pa.int64(), "float64": pa.float64(), "str": pa.string(), "boolean": pa.bool_()}

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[Any, Any]]
_ReadColumns = Callable[[list[str]], pa.Table]


def fingerprint(files: Iterable[Path]) -> list[tuple[str, int, int, int, int]]:
    """Return path, modification time (ns), time of the last change of any kind (ns), inode and size of existing files.

    Programs can set the modification time, as `cp -a` does, but not the time of the last change.
    """
    existing = []
    for path in files:
        try:
            status = path.lstat()
        except OSError:
            continue
        existing.append((str(path), status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size))
    return existing


def read(
    kind: str,
    dtypes: Mapping[str, str],
    sources: Mapping[str, Iterable[Path]],
    read_rows: Callable[[Iterable[str]], Iterator[tuple[str, Rows | pa.Table]]],
) -> DataFrame:
    """Return the rows of all sources, from the cache where their files have not changed.

    Args:
        kind: Name of the cached table.
        dtypes: Its columns with their dtypes, as in `analysis.columns`.
        sources: For each source (the directory of a run) the files that its rows depend on.
        read_rows: Reads the rows of sources that are not in the cache. Sources that it does not yield are left out.

    Returns:
        The columns, preceded by the categorical column `source`. Rows are in the order of `sources`.

    Raises:
        GptlabError: The path of the runs directory is not UTF-8.
    """
    path, warned = _cache_file(kind), False
    schema = _schema(dtypes)
    current = {source: json.dumps(fingerprint(files)) for source, files in sources.items()}
    try:
        cached = _CachedTable.load(path, schema)
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be used: %s; the runs are read again", path, error)
        cached, warned = _CachedTable(schema), True
    kept = [source for source, value in current.items() if cached.fingerprints.get(source) == value]
    stale = current.keys() - kept
    if not stale:
        return _to_pandas(cached.reader(kept), schema.names, list(sources))
    fresh = [
        (source, rows if isinstance(rows, pa.Table) else to_arrow(source, rows, dtypes))
        for source, rows in read_rows(s for s in current if s in stale)
    ]
    others = [source for source in cached.fingerprints if source not in current and Path(source).is_dir()]
    table = pa.concat_tables([cached.rows([*kept, *others]), *(table for _, table in fresh)])
    fingerprints = {source: cached.fingerprints[source] for source in [*kept, *others]}
    fingerprints |= {source: current[source] for source, _ in fresh if _is_settled(current[source])}
    try:
        _write(path, _select(table, fingerprints), fingerprints)
    except (OSError, GptlabError) as error:
        if not warned:
            reason = error.strerror if isinstance(error, OSError) else error
            logger.warning(
                "the cache in %s cannot be written: %s; the runs will be read again next time", path.parent, reason
            )
    chosen = _select(table, [*kept, *(source for source, _ in fresh)])
    return _to_pandas(chosen.select, schema.names, list(sources))


@dataclass(frozen=True)
class _CachedTable:
    """A cached table whose checksum has been verified. It is empty if there is no usable cache."""

    schema: pa.Schema
    parquet: bytes | memoryview = b""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """The fingerprint of each cached source."""

    @classmethod
    def load(cls, path: Path, schema: pa.Schema) -> Self:
        """Load a cached table; an empty one if the file does not exist or has other columns.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is damaged.
        """
        try:
            content = memoryview(path.read_bytes())
        except FileNotFoundError:
            return cls(schema)
        checksum, parquet = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
        if xxhash.xxh3_128(parquet).digest() != checksum:
            raise ValueError("its checksum is wrong")
        stored = pq.read_schema(pa.BufferReader(parquet))
        if not stored.equals(schema):
            return cls(schema)
        fingerprints = TypeAdapter(dict[str, str]).validate_json((stored.metadata or {}).get(_METADATA, b""))
        return cls(schema, parquet, fingerprints)

    def rows(self, sources: Sequence[str]) -> pa.Table:
        """The rows of some sources."""
        if not sources:
            return self.schema.empty_table()
        wanted = None if len(sources) == len(self.fingerprints) else pc.field(SOURCE).isin(list(sources))
        return pq.read_table(pa.BufferReader(self.parquet), schema=self.schema, filters=wanted)

    def reader(self, sources: Sequence[str]) -> _ReadColumns:
        """Return a function that reads columns of these rows. A table without other rows is decoded only then."""
        read: _ReadColumns
        if sources and len(sources) == len(self.fingerprints):
            file = pq.ParquetFile(pa.BufferReader(self.parquet), read_dictionary=[SOURCE])
            read = partial(file.read, use_threads=False)  # a column is too short for threads
        else:
            read = self.rows(sources).select
        return read


def _cache_file(kind: str) -> Path:
    directory = project.runs_directory()
    if str(directory).encode(errors="replace") != os.fsencode(directory):
        raise GptlabError(f"the path {directory} is not UTF-8, which tables need; rename the directory")
    runs = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return project.cache_directory() / "analysis" / runs / f"{kind}-{VERSION}.parquet"


def _schema(dtypes: Mapping[str, str]) -> pa.Schema:
    return pa.schema([(SOURCE, pa.string()), *((column, _ARROW[dtype]) for column, dtype in dtypes.items())])


def to_arrow(source: str, rows: Iterable[Mapping[Any, Any]], dtypes: Mapping[str, str]) -> pa.Table:
    """Return the rows of one source as a table with these columns. Few of the rows are Python objects at a time."""
    remaining, schema = iter(rows), _schema(dtypes)
    blocks = iter(lambda: list(islice(remaining, ROW_GROUP)), [])
    return pa.concat_tables([schema.empty_table(), *(_block_to_arrow(source, block, schema) for block in blocks)])


def _block_to_arrow(source: str, rows: Rows, schema: pa.Schema) -> pa.Table:
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
    newest = max((time_ns for _, time_ns, *_ in json.loads(fingerprint_json)), default=0)
    return time.time_ns() - newest > SETTLED_S * 1e9


def _write(path: Path, table: pa.Table, fingerprints: Mapping[str, str]) -> None:
    """Replace the cached table atomically."""
    buffer = pa.BufferOutputStream()
    table = table.replace_schema_metadata({_METADATA: json.dumps(fingerprints)})
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP)
    parquet = memoryview(buffer.getvalue())
    with atomic_write(path, make_parents=True) as file:
        file.write(xxhash.xxh3_128(parquet).digest())
        file.write(parquet)


def _to_pandas(read_columns: _ReadColumns, names: list[str], sources: list[str]) -> DataFrame:
    """A table of these columns with the rows grouped by source, in the order of `sources`.

    One column is converted at a time: memory for all of them twice takes the kernel longer than everything else.
    """
    dtypes = {pa.int64(): Int64Dtype(), pa.bool_(): BooleanDtype()}
    encoded = read_columns([SOURCE])[SOURCE].dictionary_encode().unify_dictionaries().combine_chunks()
    numbers = {source: number for number, source in enumerate(sources)}
    known = np.array([numbers[source] for source in encoded.dictionary.to_pylist()], np.int64)
    codes = known[encoded.indices.to_numpy()]
    # The categories are Python objects: a directory's name can be invalid UTF-8, which Arrow refuses.
    columns = {SOURCE: Series(Categorical.from_codes(codes, Index(sources, dtype=object)))}
    for name in names[1:]:
        columns[name] = read_columns([name]).to_pandas(types_mapper=dtypes.get)[name]
    frame = DataFrame(columns, copy=False)
    if (np.diff(codes) < 0).any():
        frame = frame.iloc[np.argsort(codes, kind="stable")].reset_index(drop=True)
    return frame
