import itertools
import json
import math
import resource
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlab import untrusted
from gptlab.errors import GptlabError
from gptlab.tracking.metrics import (
    COLUMNS,
    DETERMINISTIC,
    METRICS,
    MetricsFile,
    NewRows,
    newest_values,
    read_metrics,
    sample_metrics,
)
from gptlab.untrusted import lines_backwards


def write(directory, rows, size=0):
    with MetricsFile(directory, size) as file:
        for row in rows:
            file.append(row)
        return file.size


def test_rows_read_back_exactly(tmp_path):
    rows = [{"step": 1, "train/loss": 0.1 + 0.2, "val/yardstick": "0123e4"}, {"step": 2, "train/loss": 1e-300}]
    write(tmp_path, rows)
    assert read_metrics(tmp_path) == rows


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_non_finite_numbers_are_strings_that_every_reader_can_parse(tmp_path, value):
    write(tmp_path, [{"step": 1, "train/loss": value}])
    text = (tmp_path / METRICS).read_text()
    assert isinstance(json.loads(text, parse_constant=pytest.fail)["train/loss"], str)
    assert str(read_metrics(tmp_path)[0]["train/loss"]) == str(value)


def test_opening_truncates_the_file_to_the_length_in_the_manifest(tmp_path):
    size = write(tmp_path, [{"step": 1}])
    write(tmp_path, [{"step": 2}, {"step": 3}], size)
    write(tmp_path, [{"step": 2, "attempt": 2}], size)
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2, "attempt": 2}]


def test_opening_never_makes_the_file_longer(tmp_path):
    size = write(tmp_path, [{"step": 1}])
    (tmp_path / METRICS).write_text('{"step": 1}\n{"st')
    write(tmp_path, [{"step": 2}], size + 100)
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_torn_last_row_is_skipped_and_one_elsewhere_is_an_error(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1}\n{"ste')
    assert read_metrics(tmp_path) == [{"step": 1}]
    (tmp_path / METRICS).write_text('{"ste\n{"step": 1}\n')
    with pytest.raises(GptlabError, match=r"metrics\.jsonl:1"):
        read_metrics(tmp_path)


def test_the_newest_values_are_those_of_the_last_rows_that_have_them(tmp_path):
    assert newest_values(tmp_path, ["step"]) == {}
    write(tmp_path, [{"step": 1, "val/loss": 2.0}, {"step": 2, "train/loss": 3.0}, {"step": 3, "train/loss": 2.5}])
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "val/loss": 1.')
    assert newest_values(tmp_path, ["step", "val/loss", "val/bpb"]) == {"step": 3, "val/loss": 2.0}


@given(lengths=st.lists(st.integers(0, 40), max_size=30), torn=st.integers(0, 40))
def test_lines_are_read_backwards_whatever_the_block_size(tmp_path_factory, lengths, torn):
    path = tmp_path_factory.getbasetemp() / "lines"
    lines = [str(number).encode() + b"x" * length for number, length in enumerate(lengths)]
    path.write_bytes(b"".join(line + b"\n" for line in lines) + b"t" * torn)
    for block in (43, 64, 1 << 20):  # the longest line has 42 bytes
        with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
            patch.setattr(untrusted, "MAX_LINE_BYTES", block)
            assert [line for line in lines_backwards(file) if line] == lines[::-1]


def test_a_long_file_is_sampled_evenly_and_a_short_one_is_read_whole(tmp_path):
    assert list(sample_metrics(tmp_path)) == []
    write(tmp_path, [{"step": step} for step in range(20_000)])
    assert [row["step"] for row in sample_metrics(tmp_path)] == list(range(20_000))
    steps = [row["step"] for row in sample_metrics(tmp_path, max_bytes=50_000)]
    assert len(steps) < 4_000
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, 19_999)
    assert max(later - step for step, later in itertools.pairwise(steps)) < 300


def test_the_history_of_a_long_run_has_no_maximum_length(tmp_path, monkeypatch):
    monkeypatch.setattr(untrusted, "MAX_ROWS_BYTES", 1_000)
    write(tmp_path, [{"step": step} for step in range(100)])
    assert len(read_metrics(tmp_path)) == 100
    assert len(list(NewRows(tmp_path))) == 100


def test_a_row_that_was_written_in_part_is_not_written_again_on_closing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    file = MetricsFile(tmp_path, 0)
    file.append({"step": 1})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.size + 5, before[1]))
        with pytest.raises(OSError, match="File too large"):
            file.append({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    with file:
        pass
    assert read_metrics(tmp_path) == [{"step": 1}]
    assert (tmp_path / METRICS).stat().st_size == file.size + 5


def test_every_deterministic_column_is_a_column():
    assert set(DETERMINISTIC) <= set(COLUMNS)


def test_every_column_of_a_real_run_is_documented(run_micro):
    rows = read_metrics(run_micro().directory)
    assert {key for row in rows for key in row} <= set(COLUMNS)
