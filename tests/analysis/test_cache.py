"""Only changed files are parsed again, and an unusable cache costs only time."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from analysis import cache, load, logged, weights
from gptlab import project
from gptlab.checkpoints.manifest import MODEL, checkpoint_directory
from gptlab.errors import GptlabError
from gptlab.tracking.metrics import METRICS, MetricsFile
from gptlab.tracking.run import Run

MakeRun = Callable[..., Run]
Tensors = Mapping[str, NDArray[Any]]


@pytest.fixture(autouse=True)
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The directories of runs whose metrics or weights were parsed during the test."""
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    parsed: list[Path] = []
    metrics, statistics = logged.stream_metrics, weights.statistics
    monkeypatch.setattr(logged, "stream_metrics", lambda directory: parsed.append(directory) or metrics(directory))
    monkeypatch.setattr(weights, "statistics", lambda run: parsed.append(run.directory) or statistics(run))
    return parsed


def settle(*runs: Run) -> None:
    """Set the modification times of all files to a minute ago."""
    past = time.time() - 60
    for run in runs:
        for path in (run.directory, *run.directory.rglob("*")):
            os.utime(path, (past, past))


def test_the_second_load_parses_nothing_and_returns_the_same(
    make_run: MakeRun, weights: Tensors, read: list[Path]
) -> None:
    settle(make_run("one", checkpoints={10: weights, 20: weights}), make_run("two", val_losses=()))
    first = [load.runs(), load.metrics(), load.checkpoints()]
    assert read
    read.clear()
    for table, again in zip(first, [load.runs(), load.metrics(), load.checkpoints()], strict=True):
        assert again.equals(table)
        assert list(again.dtypes) == list(table.dtypes)
    assert not read


def test_a_cached_table_is_decoded_column_by_column(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = {f"column {number}": "float64" for number in range(20)}
    numbers = dict.fromkeys(dtypes, pa.array([None, *range(99_999)], pa.float64()))

    def read_rows(stale: Iterable[str]) -> Iterator[tuple[str, Any]]:
        yield from ((source, pa.table({"source": [source] * 100_000, **numbers})) for source in stale)

    first = cache.read("numbers", dtypes, {"a": [], "b": []}, read_rows)
    read, in_arrow, before = pq.ParquetFile.read, [], pa.total_allocated_bytes()

    def measured(*arguments: Any, **options: Any) -> pa.Table:
        table = read(*arguments, **options)
        in_arrow.append(pa.total_allocated_bytes() - before)
        return table

    monkeypatch.setattr(pq.ParquetFile, "read", measured)
    again = cache.read("numbers", dtypes, {"a": [], "b": []}, read_rows)
    assert again.equals(first)
    assert max(in_arrow) < 1.25 * again.memory_usage().sum(), "includes what is already converted"


def test_only_changed_runs_are_read_again(make_run: MakeRun, read: list[Path]) -> None:
    runs = [make_run(seed=seed) for seed in range(3)]
    settle(*runs)
    load.metrics()
    read.clear()
    with MetricsFile(runs[1].directory, 10**6) as metrics:
        metrics.append({"step": 30, "val/loss": 4.0})
    newest = load.runs()
    assert set(read) == {runs[1].directory}
    assert newest["val/loss"].tolist() == [6.0, 4.0, 6.0]
    assert load.metrics(newest)["step"].tolist() == [0, 10, 20, 0, 10, 20, 30, 0, 10, 20]
    shutil.rmtree(runs[0].directory)
    assert load.metrics()["run"].nunique() == 2


def test_weights_are_read_again_after_a_file_changed(make_run: MakeRun, weights: Tensors, read: list[Path]) -> None:
    run = make_run(checkpoints={10: weights, 20: weights})
    settle(run)
    load.checkpoints()
    shutil.copy(checkpoint_directory(run.directory, 10) / MODEL, checkpoint_directory(run.directory, 20) / MODEL)
    read.clear()
    load.checkpoints()
    assert read


def test_loading_a_few_runs_keeps_the_others_cached(make_run: MakeRun, read: list[Path]) -> None:
    settle(*[make_run(seed=seed) for seed in range(3)])
    runs = load.runs()
    settle(make_run(seed=4))
    load.metrics(load.runs(spec={"model.tied": False})[2:])
    read.clear()
    assert len(load.metrics(runs)) == 9
    assert not read


def test_a_recently_changed_file_is_not_cached(make_run: MakeRun) -> None:
    run = make_run(val_losses=(5.0,))
    assert load.metrics()["val/loss"].tolist() == [5.0]
    path = run.directory / METRICS
    stamp = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes().replace(b"5.0", b"6.0"))
    os.utime(path, ns=(stamp, stamp))  # as if within the resolution of the timestamp
    assert load.metrics()["val/loss"].tolist() == [6.0]


def test_a_runs_directory_whose_path_is_not_utf8_is_a_one_line_error(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "caf\udce9"))
    make_run()
    with pytest.raises(GptlabError, match="is not UTF-8, which tables need; rename the directory"):
        load.runs()


def caches() -> list[Path]:
    return sorted(project.cache_directory().rglob("*.parquet"))


@pytest.mark.parametrize("content", [b"", b"PAR1 no more", b"PAR1" + bytes(100) + b"PAR1", None])
def test_a_damaged_cache_is_replaced_with_a_warning(
    make_run: MakeRun, read: list[Path], caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    settle(make_run())
    whole = load.metrics()
    for path in caches():
        path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    assert load.metrics().equals(whole)
    assert all("the runs are read again" in message for message in caplog.messages)
    assert caplog.messages
    read.clear()
    caplog.clear()
    assert load.metrics().equals(whole)
    assert not read
    assert not caplog.messages


def test_any_flipped_bit_in_the_cache_is_noticed(make_run: MakeRun) -> None:
    settle(make_run())
    load.runs()
    for path in caches():
        content = path.read_bytes()
        table = cache.pq.read_schema(cache.pa.BufferReader(content[cache.CHECKSUM_BYTES :])).remove_metadata()
        cache._CachedTable.load(path, table)
        for position in range(0, len(content), 97):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match="checksum is wrong"):
                cache._CachedTable.load(path, table)


def test_fingerprints_of_the_wrong_type_make_a_cache_damaged(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    settle(make_run())
    whole = load.metrics()
    for path in caches():
        table = cache.pq.read_table(cache.pa.BufferReader(path.read_bytes()[cache.CHECKSUM_BYTES :]))
        for fingerprints in (b"[]", b'{"run": 1}', b"{", b"\xff"):
            stream = cache.pa.BufferOutputStream()
            cache.pq.write_table(table.replace_schema_metadata({b"gptlab": fingerprints}), stream)
            content = memoryview(stream.getvalue())
            path.write_bytes(cache.xxhash.xxh3_128(content).digest() + content)
            caplog.clear()
            assert load.metrics().equals(whole)
            assert caplog.messages


def test_a_directory_in_place_of_the_cache_is_one_warning(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    settle(make_run())
    whole = load.metrics(load.runs())
    for path in caches():
        path.unlink()
        path.mkdir()
    runs = load.runs()
    caplog.clear()
    assert load.metrics(runs).equals(whole)
    (warning,) = caplog.messages
    assert "metrics" in warning


def test_a_file_with_a_forged_modification_time_is_read_again(make_run: MakeRun) -> None:
    run = make_run(val_losses=(5.0,))
    settle(run)
    assert load.metrics()["val/loss"].tolist() == [5.0]
    path = run.directory / METRICS
    stamp = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes().replace(b"5.0", b"6.0"))
    os.utime(path, ns=(stamp, stamp))
    assert load.metrics()["val/loss"].tolist() == [6.0]


def test_a_cache_of_another_version_is_not_used(
    make_run: MakeRun, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(make_run())
    load.metrics()
    read.clear()
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    load.metrics()
    assert read


def test_tables_are_the_same_if_the_cache_cannot_be_written(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settle(make_run())
    monkeypatch.setenv("GPTLAB_CACHE", "/proc/nowhere")
    assert len(load.metrics()) == 3
    assert "cannot be written" in caplog.messages[0]


def test_each_runs_directory_has_its_own_cache(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settle(make_run())
    load.metrics()
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "others"))
    assert load.metrics().empty
