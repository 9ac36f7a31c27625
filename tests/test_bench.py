"""The benchmark's table: what it says, and that it says so where nothing can be measured."""

import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "tests" / "bench"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("_table")


def bench(runs, *parts):
    environment = os.environ | {"GPTLAB_RUNS": str(runs), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(BENCH), *parts]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (">= 0.5", True),
        (">= 0.51", False),
        ("<= 0.5", True),
        ("<= 0.49", False),
        ("<= 2 s", True),
        ("<= 1.9 s", False),
        ("", None),
    ],
)
def test_a_target_is_met_by_the_median_ratio_or_with_a_unit_by_the_median(table, target, met):
    row = table.Row("part", "what", "peer", "s", [1, 2, 9], [4, 4, 9], target=target)
    assert row.ratios == [0.25, 0.5, 1]
    assert row.met is met
    document = row.document()
    assert [document[f"ratio_{name}"] for name in ("min", "median", "max")] == [0.25, 0.5, 1]
    assert (document["ours"], document["theirs"], document["pairs"]) == (2, 4, 3)


def test_the_exponent_is_the_slope_between_neighbours(table):
    growth = table.Growth("what", "by", "s", [1, 10, 1000], [3, 30, 30_000_000])
    assert growth.exponents() == pytest.approx([1, 3])
    assert [point["exponent"] for point in growth.documents()] == [None, *growth.exponents()]


def test_rows_that_cannot_be_measured_are_written_empty(tmp_path):
    done = bench(tmp_path, "gpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not measured here") == 3
    document = json.loads((tmp_path / "bench.json").read_text())
    assert [row["ours"] for row in document] == [None] * 3
    assert {row["note"] for row in document} == {"wants a CUDA device"}
    written = pd.read_parquet(tmp_path / "bench.parquet")
    assert written["what"].tolist() == [row["what"] for row in document]


def test_a_part_that_is_not_there_is_one_line_and_exit_2(tmp_path):
    done = bench(tmp_path, "speed")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no part speed")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_a_part_measured_before_an_error_is_kept(table, monkeypatch):
    row = table.Row("part", "what", "peer", "s", [1], [2])

    def rows():
        yield row
        raise RuntimeError("no such peer")

    monkeypatch.setitem(sys.modules, "broken", types.SimpleNamespace(rows=rows))
    measured, error = importlib.import_module("_part").measure("broken")
    assert measured == [row]
    assert error.endswith("RuntimeError: no such peer\n")
