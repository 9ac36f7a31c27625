import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from analysis import columns, load
from gptlab.spec import SECTIONS, Experiment
from gptlab.tracking.checkpoints import MODEL, directory_of
from gptlab.tracking.lock import RunLock
from gptlab.tracking.metrics import COLUMNS, METRICS, MetricsFile
from gptlab.tracking.run import Run

MakeRun = Callable[..., Run]
Tensors = Mapping[str, NDArray[Any]]

HEAVY = "torch wandb tiktoken gptlab.training gptlab.model gptlab.data gptlab.cli"


def test_analysis_imports_neither_torch_nor_wandb_nor_what_trains() -> None:
    code = (
        "import sys, analysis.compare, analysis.load, analysis.plots, analysis.report\n"
        f"print([name for name in '{HEAVY}'.split() if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_is_one_row_with_its_spec_its_newest_numbers_and_where_it_ran(
    make_run: MakeRun, weights: Tensors
) -> None:
    run = make_run(changes={"train.learning_rate": 0.5}, seed=3, checkpoints={10: weights, 20: weights})
    (row,) = load.runs().to_dict("records")
    expected = {
        "run": run.id,
        "name": "micro",
        "seed": 3,
        "status": "complete",
        "step": 20,
        "steps": 20,
        "why": "Does it hold?",
        "model.n_layer": 2,
        "model.tied": False,
        "train.learning_rate": 0.5,
        "train.betas": "[0.9, 0.95]",
        "precision": "float32",
        "numerics": 1,
        "text.source": "words",
        "text.sha256": "ab" * 32,
        "train/loss": 5.5,
        "val/loss": 6.0,
        "val/loss_se": 0.25,
        "val/bpb": 3.0,
        "val/yardstick": "aaaaaaaa",
        "best/val_loss": 5.5,
        "best/step": 10,
        "tokens": 640,
        "elapsed_s": 4.0,
        "perf/tokens_per_s": 1600.0,
        "attempts": 1,
        "device": "cpu",
        "git_commit": "c0ffee",
        "git_dirty": False,
        "tags": "first, second",
        "directory": str(run.directory),
    }
    assert {key: row[key] for key in expected} == expected
    assert row["created"] == pd.Timestamp(run.record.created)


def test_every_field_of_the_spec_is_a_column_of_its_type(make_run: MakeRun) -> None:
    make_run()
    experiment = Experiment(name="any", why="Which fields are there?")
    fields = {f"{name}.{field}": v for name in SECTIONS for field, v in getattr(experiment, name).model_dump().items()}
    dtypes = {bool: "boolean", int: "Int64", float: "float64", str: "str", tuple: "str"}
    runs = load.runs()
    assert {key: str(runs[key].dtype) for key in fields} == {key: dtypes[type(v)] for key, v in fields.items()}
    assert runs[list(fields)].notna().all(axis=None)


def test_dtypes_do_not_depend_on_whether_there_is_anything(make_run: MakeRun, weights: Tensors) -> None:
    tables = {
        load.runs: columns.RUNS,
        load.metrics: columns.METRICS,
        load.checkpoints: columns.CHECKPOINTS,
        load.samples: columns.SAMPLES,
    }
    for read, dtypes in tables.items():
        empty = read()
        assert empty.empty
        assert {column: str(dtype) for column, dtype in empty.dtypes.items()} == dtypes
    make_run("without-anything", val_losses=(), git_commit=None, git_dirty=None)
    make_run("with-all", samples=["end"], checkpoints={20: weights})
    for read, dtypes in tables.items():
        table = read()
        assert not table.empty
        assert {column: str(dtype) for column, dtype in table.dtypes.items()} == dtypes


def test_what_a_run_does_not_have_is_missing(make_run: MakeRun) -> None:
    make_run(val_losses=(), git_commit=None, git_dirty=None)
    (row,) = load.runs().to_dict("records")
    absent = ["train/loss", "val/loss", "val/yardstick", "best/step", "tokens", "git_commit", "git_dirty"]
    assert all(pd.isna(row[column]) for column in absent)
    assert row["step"] == 0


def test_an_id_that_looks_like_a_number_stays_a_string(make_run: MakeRun, weights: Tensors) -> None:
    run = make_run("0123", samples=["end"], checkpoints={20: weights})
    for table in (load.runs(), load.metrics(), load.checkpoints(), load.samples()):
        assert set(table["run"]) == {run.id}
        assert set(table["name"]) == {"0123"}


def test_a_run_that_is_being_trained_is_running(make_run: MakeRun) -> None:
    run = make_run()
    with RunLock(run.directory):
        assert list(load.runs()["status"]) == ["running"]
    assert list(load.runs()["status"]) == ["complete"]


def test_metrics_are_one_row_per_logged_step_with_every_column(make_run: MakeRun) -> None:
    run = make_run(seed=7)
    metrics = load.metrics()
    assert list(metrics.columns) == ["run", "name", "seed", *COLUMNS, "flops"]
    assert list(metrics["step"]) == [0, 10, 20]
    assert list(metrics["val/loss"]) == [11.0, 8.0, 6.0]
    assert math.isnan(metrics["train/loss"][0])
    assert set(metrics["run"]) == {run.id}
    assert set(metrics["seed"]) == {7}


def test_a_loss_that_is_not_finite_is_a_number(make_run: MakeRun) -> None:
    run = make_run(val_losses=(11.0, math.inf))
    assert load.metrics()["val/loss"].tolist() == [11.0, math.inf]
    with MetricsFile(run.directory, 0) as metrics:
        metrics.append({"step": 0, "val/loss": math.nan, "val/yardstick": "12345678"})
    assert load.metrics()["val/loss"].isna().all()
    assert load.metrics()["val/yardstick"].tolist() == ["12345678"]


def test_a_torn_last_line_is_left_out_and_a_damaged_one_costs_the_run(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run, other = make_run(), make_run(seed=1, val_losses=(7.0,))
    runs = load.runs()
    path = run.directory / METRICS
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 30, "val/lo')
    assert list(load.metrics()["step"]) == [0, 10, 20, 0]
    path.write_bytes(b'{"step": 30, "val/lo\n' + whole)
    assert not caplog.messages
    for read in (load.metrics, lambda: load.metrics(runs), load.runs):
        assert set(read()["run"]) == {other.id}
        (warning,) = caplog.messages
        assert f"{path}:1: " in warning
        caplog.clear()


def test_only_the_chosen_runs_are_read_in_the_order_they_were_given(make_run: MakeRun, weights: Tensors) -> None:
    ids = [make_run(seed=seed, samples=["end"], checkpoints={20: weights}).id for seed in range(3)]
    runs = load.runs()
    chosen = runs[runs["seed"] != 1].sort_values("seed", ascending=False)
    for read in (load.metrics, load.checkpoints, load.samples):
        assert list(read(chosen)["run"].unique()) == [ids[2], ids[0]]
        assert list(read()["run"].unique()) == ids
        assert read(runs[runs["seed"] == 5]).empty


def test_weights_have_the_rms_norm_and_largest_magnitude_of_hand_computed_tensors(make_run: MakeRun) -> None:
    tensors = {
        "token_embedding.weight": np.array([[3, -4], [0, 0]], np.float32),
        "blocks.11.attention.projection.bias": np.array([-2, 2, 1, 0], np.float32),
        "final_norm.weight": np.array([1], np.float32),
    }
    make_run(checkpoints={10: tensors, 20: tensors})
    table = load.checkpoints()
    assert list(table["step"]) == [10, 10, 10, 20, 20, 20]
    rows = table[table["step"] == 20].set_index("tensor")
    embedding = rows.loc["token_embedding.weight"]
    assert embedding[["shape", "dtype", "parameters"]].tolist() == ["2x2", "float32", 4]
    assert embedding[["rms", "norm", "abs_max"]].tolist() == [2.5, 5.0, 4.0]
    bias = rows.loc["blocks.11.attention.projection.bias"]
    assert bias[["layer", "shape", "parameters"]].tolist() == [11, "4", 4]
    assert bias[["rms", "norm", "abs_max"]].tolist() == [1.5, 3.0, 2.0]
    assert rows["layer"].isna().sum() == 2


def test_the_norm_of_a_large_tensor_does_not_drift(make_run: MakeRun) -> None:
    size = (1 << 21) + 1
    make_run(changes={"model.n_embd": 64}, checkpoints={20: {"large": np.full(size, 0.1, np.float32)}})
    (row,) = load.checkpoints().to_dict("records")
    assert row["rms"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)
    assert row["norm"] == pytest.approx(float(np.float32(0.1)) * math.sqrt(size), rel=1e-12)


def test_weights_that_retention_removes_meanwhile_are_passed_over(make_run: MakeRun, weights: Tensors) -> None:
    run = make_run(checkpoints={10: weights, 20: weights})
    (directory_of(run.directory, 10) / MODEL).unlink()
    assert set(load.checkpoints()["step"]) == {20}


def test_damaged_weights_cost_the_run_and_are_named(
    make_run: MakeRun, weights: Tensors, caplog: pytest.LogCaptureFixture
) -> None:
    run, other = make_run(checkpoints={20: weights}), make_run(seed=1, checkpoints={20: weights})
    path = directory_of(run.directory, 20) / MODEL
    path.write_bytes(path.read_bytes()[:-4])
    assert set(load.checkpoints()["run"]) == {other.id}
    (warning,) = caplog.messages
    assert f"{path} is not a safetensors file" in warning


def test_samples_come_in_the_order_of_writing(make_run: MakeRun) -> None:
    make_run(samples=["first", "second\nline"])
    samples = load.samples()
    assert samples[["step", "prompt", "text"]].values.tolist() == [[20, "The ", "first"], [20, "The ", "second\nline"]]
