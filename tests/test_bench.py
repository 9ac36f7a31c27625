"""The benchmark's table is right, and its parts can be imported."""

import importlib
import json
import subprocess
import sys
import types
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "tests" / "bench"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("_table")


@pytest.mark.parametrize(
    ("target", "met"), [(">= 0.5", True), (">= 0.51", False), ("<= 2 s", True), ("<= 1.9 s", False), ("", None)]
)
def test_target_is_compared_with_the_median_ratio_or_the_median(table, target, met):
    row = table.Row("part", "what", "reference", "s", [1, 2, 9], [4, 4, 9], target=target)
    assert row.ratios == [0.25, 0.5, 1]
    assert row.met is met
    document = row.document()
    assert [document[f"ratio_{name}"] for name in ("min", "median", "max")] == [0.25, 0.5, 1]
    assert (document["ours"], document["theirs"], document["pairs"]) == (2, 4, 3)


def test_unmeasured_row_is_shown_and_written_as_such(table, tmp_path):
    row = table.Row("part", "what", "reference", "s", target=">= 1", note="needs a CUDA device")
    console = Console(width=200)
    with console.capture() as shown:
        console.print(table.table([row]))
    assert "not measured" in shown.get()
    assert "missed" not in shown.get()
    table.write([row.document()], tmp_path, "bench")
    (written,) = json.loads((tmp_path / "bench.json").read_text())
    assert (written["ours"], written["ratio_median"], written["met"]) == (None, None, None)
    assert pd.read_parquet(tmp_path / "bench.parquet")["note"].tolist() == ["needs a CUDA device"]


def test_exponent_is_the_slope_between_neighbors(table):
    growth = table.Growth("what", "by", "s", [1, 10, 1000], [3, 30, 30_000_000])
    assert growth.exponents() == pytest.approx([1, 3])
    assert [point["exponent"] for point in growth.documents()] == [None, *growth.exponents()]


def test_rows_before_an_error_are_kept(table, monkeypatch):
    row = table.Row("part", "what", "reference", "s", [1], [2])

    def rows():
        yield row
        raise RuntimeError("no such reference")

    monkeypatch.setitem(sys.modules, "broken", types.SimpleNamespace(rows=rows))
    measured, error = importlib.import_module("_part").measure("broken")
    assert measured == [row]
    assert error.endswith("RuntimeError: no such reference\n")


def test_unknown_part_is_one_line_and_exit_2():
    done = subprocess.run([sys.executable, BENCH, "speed"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no part speed")
    assert len(done.stderr.splitlines()) == 1


def test_every_part_can_be_imported():
    parts = [path.stem for path in BENCH.glob("[!_]*.py")]
    code = f"import importlib\nfor part in {parts}: assert importlib.import_module(part).rows"
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCH, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
