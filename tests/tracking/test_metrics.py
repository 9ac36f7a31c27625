import json
import math

import pytest

from gptlab.errors import GptlabError
from gptlab.tracking.metrics import COLUMNS, DETERMINISTIC, METRICS, MetricsFile, last_value, read_metrics


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


def test_last_value_skips_rows_without_the_column():
    rows = [{"step": 1, "val/loss": 2.0}, {"step": 2}]
    assert last_value(rows, "val/loss") == 2.0
    assert last_value(rows, "val/bpb") is None


def test_every_deterministic_column_is_a_column():
    assert set(DETERMINISTIC) <= set(COLUMNS)


def test_every_column_of_a_real_run_is_documented(run_micro):
    rows = read_metrics(run_micro().directory)
    assert {key for row in rows for key in row} <= set(COLUMNS)
