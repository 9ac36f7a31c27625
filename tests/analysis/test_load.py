import errno
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import save_file

from analysis import cache, columns, load
from analysis.caveats import find_caveats
from gptlab.checkpoints.manifest import MODEL, checkpoint_directory
from gptlab.errors import BadInputError, GptlabError
from gptlab.identity import NUMERICS
from gptlab.spec import SECTIONS, Experiment
from gptlab.tracking import evaluations
from gptlab.tracking.lock import RunLock
from gptlab.tracking.metrics import COLUMNS, METRICS, MetricsFile
from gptlab.tracking.run import Run

MakeRun = Callable[..., Run]
Tensors = Mapping[str, NDArray[Any]]

HEAVY = "torch wandb tiktoken gptlab.training gptlab.model gptlab.data gptlab.cli"


@pytest.mark.slow
def test_analysis_imports_neither_torch_nor_wandb_nor_training_code() -> None:
    code = (
        "import sys, analysis.compare, analysis.load, analysis.plots, analysis.report\n"
        f"print([name for name in '{HEAVY} scipy.stats statsmodels'.split() if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_is_one_row_with_spec_newest_numbers_and_machine(make_run: MakeRun, weights: Tensors) -> None:
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
        "numerics": NUMERICS,
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
        "git_commit": "c0ffee" + "0" * 34,
        "git_dirty": False,
        "tags": "first, second",
        "directory": str(run.directory),
    }
    assert {key: row[key] for key in expected} == expected
    assert row["created"] == pd.Timestamp(run.record.created)


def test_every_field_of_the_spec_is_a_column_of_its_type(make_run: MakeRun) -> None:
    schedule = {"train.schedule": "wsd", "train.horizon": 100, "train.decay_steps": 10}
    make_run(changes=schedule)
    experiment = Experiment(name="any", why="Which fields are there?").with_changes(schedule)
    fields = {f"{name}.{field}": v for name in SECTIONS for field, v in getattr(experiment, name).model_dump().items()}
    dtypes = {bool: "boolean", int: "Int64", float: "float64", str: "str", tuple: "str"}
    runs = load.runs()
    given = {key: value for key, value in fields.items() if value is not None}
    assert {key: str(runs[key].dtype) for key in given} == {key: dtypes[type(v)] for key, v in given.items()}
    assert runs[list(given)].notna().all(axis=None)


def test_dtypes_do_not_depend_on_the_data(make_run: MakeRun, weights: Tensors) -> None:
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


def test_absent_values_are_missing(make_run: MakeRun) -> None:
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


def test_non_finite_losses_are_numbers(make_run: MakeRun) -> None:
    run = make_run(val_losses=(11.0, math.inf))
    assert load.metrics()["val/loss"].tolist() == [11.0, math.inf]
    with MetricsFile(run.directory, 0) as metrics:
        metrics.append({"step": 0, "val/loss": math.nan, "val/yardstick": "12345678"})
    assert load.metrics()["val/loss"].isna().all()
    assert load.metrics()["val/yardstick"].tolist() == ["12345678"]


def test_a_torn_last_line_is_skipped_and_a_damaged_line_excludes_the_run(
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


def test_only_selected_runs_are_read_in_the_given_order(make_run: MakeRun, weights: Tensors) -> None:
    ids = [make_run(seed=seed, samples=["end"], checkpoints={20: weights}).id for seed in range(3)]
    runs = load.runs()
    chosen = runs[runs["seed"] != 1].sort_values("seed", ascending=False)
    for read in (load.metrics, load.checkpoints, load.samples):
        assert list(read(chosen)["run"].unique()) == [ids[2], ids[0]]
        assert list(read()["run"].unique()) == ids
        assert read(runs[runs["seed"] == 5]).empty


def test_weight_statistics_equal_hand_computed_ones(make_run: MakeRun) -> None:
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


def test_the_norm_of_a_large_tensor_is_accurate(make_run: MakeRun) -> None:
    size = (1 << 21) + 1
    make_run(changes={"model.n_embd": 64}, checkpoints={20: {"large": np.full(size, 0.1, np.float32)}})
    (row,) = load.checkpoints().to_dict("records")
    assert row["rms"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)
    assert row["norm"] == pytest.approx(float(np.float32(0.1)) * math.sqrt(size), rel=1e-12)


def test_weights_removed_by_retention_are_skipped(make_run: MakeRun, weights: Tensors) -> None:
    run = make_run(checkpoints={10: weights, 20: weights})
    (checkpoint_directory(run.directory, 10) / MODEL).unlink()
    assert set(load.checkpoints()["step"]) == {20}


def test_damaged_weights_exclude_the_run_with_a_warning(
    make_run: MakeRun, weights: Tensors, caplog: pytest.LogCaptureFixture
) -> None:
    run, other = make_run(checkpoints={20: weights}), make_run(seed=1, checkpoints={20: weights})
    path = checkpoint_directory(run.directory, 20) / MODEL
    path.write_bytes(path.read_bytes()[:-4])
    assert set(load.checkpoints()["run"]) == {other.id}
    (warning,) = caplog.messages
    assert f"{path} is not a safetensors file" in warning


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("position", [-1, -40, 12])
def test_a_flipped_bit_in_weights_is_named_and_the_other_runs_are_read(
    make_run: MakeRun, weights: Tensors, caplog: pytest.LogCaptureFixture, position: int
) -> None:
    run, other = make_run(checkpoints={20: weights}), make_run(seed=1, checkpoints={20: weights})
    path = checkpoint_directory(run.directory, 20) / MODEL
    flip(path, position)
    for read in (load.checkpoints, load.headers):
        caplog.clear()
        assert set(read()["run"]) == {other.id}
        (warning,) = caplog.messages
        assert str(path) in warning
    with pytest.raises(GptlabError, match="model.safetensors"):
        load.weights.read_tensor(run.id, 20, "final_norm.weight")


def test_copies_of_a_run_are_left_out_with_one_warning(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run, gone = make_run(), make_run(seed=1)
    for name in ("copy", f"{run.id}-backup"):
        shutil.copytree(run.directory, run.directory.with_name(name))
    for name in ("lost", "lost-2"):
        shutil.copytree(gone.directory, gone.directory.with_name(name))
    shutil.rmtree(gone.directory)
    runs, copies = load.runs_and_copies()
    assert runs["run"].tolist() == [run.id]
    assert [Path(path).name for path in copies["directory"]] == ["copy", "lost", "lost-2", f"{run.id}-backup"]
    assert {column: str(dtype) for column, dtype in copies.dtypes.items()} == columns.COPIES
    (warning,) = caplog.messages
    assert f"{run.directory.with_name('copy')} is a copy of {run.id}, " in warning, "renaming it would harm"
    assert f"lost is a copy of {gone.id}; rename it to {gone.id} to include it" in warning
    assert len(load.metrics()) == 3


@pytest.mark.parametrize("seed", [0, 1])
def test_an_unreadable_run_is_named_in_every_table(
    make_run: MakeRun,
    weights: Tensors,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    made = [make_run(seed=seed, samples=["end"], checkpoints={20: weights}) for seed in range(2)]
    runs = load.runs()
    scandir = os.scandir

    def deny(path: Any) -> Any:  # a test that runs as root is denied nothing
        if str(path) == str(made[seed].directory):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    for read in (load.runs, *(lambda read=read: read(runs) for read in (load.checkpoints, load.headers, load.samples))):
        caplog.clear()
        assert set(read()["run"]) == {made[1 - seed].id}
        (warning,) = caplog.messages
        assert f"{made[seed].directory} cannot be read: Permission denied; this run is skipped" == warning


def test_samples_are_in_the_order_of_generation(make_run: MakeRun) -> None:
    make_run(samples=["first", "second\nline"])
    samples = load.samples()
    assert samples[["step", "prompt", "text"]].values.tolist() == [[20, "The ", "first"], [20, "The ", "second\nline"]]


def test_stable_ranks_and_changes_equal_hand_computed_ones(make_run: MakeRun) -> None:
    first = {"m": np.diag([3.0, 4.0]).astype(np.float32), "v": np.array([1, 0], np.float32)}
    second = {"m": np.diag([3.0, 0.0]).astype(np.float32), "v": np.array([0, 2], np.float32)}
    third = {"m": np.diag([0.0, 4.0]).astype(np.float32), "v": np.array([0, 2], np.float32)}
    make_run(checkpoints={0: first, 1: second, 2: third})
    table = load.checkpoints().set_index(["step", "tensor"])
    assert table["zeros"].tolist() == [0.5, 0.5, 0.75, 0.5, 0.75, 0.5]
    assert table.loc[(0, "m"), "stable_rank"] == pytest.approx(25 / 16)
    assert table.loc[(1, "m"), "stable_rank"] == pytest.approx(1)
    assert table.xs("v", level="tensor")["stable_rank"].isna().all()
    moves = ["update", "cosine", "distance"]
    assert table.loc[0, moves].isna().all(axis=None)
    assert table.loc[(1, "m"), moves].tolist() == pytest.approx([4, 3 / 5, 4])
    assert table.loc[(2, "m"), moves].tolist() == pytest.approx([5, 0, 3])
    assert table.loc[(1, "v"), moves].tolist() == pytest.approx([math.sqrt(5), 0, math.sqrt(5)])
    assert table.loc[(2, "v"), moves].tolist() == pytest.approx([0, 1, math.sqrt(5)])


def test_singular_values_are_those_of_a_full_decomposition() -> None:
    matrix = np.random.default_rng(0).normal(size=(70, 30)).astype(np.float32)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    assert load.weights.singular_values(matrix) == pytest.approx(expected, rel=1e-9)
    assert load.weights.singular_values(matrix.T) == pytest.approx(expected, rel=1e-9)
    assert load.weights.stable_rank(matrix) == pytest.approx((expected**2).sum() / expected[0] ** 2)
    assert math.isnan(load.weights.stable_rank(np.zeros((3, 2), np.float32)))
    assert math.isnan(load.weights.stable_rank(np.full((3, 2), np.nan, np.float32)))


def test_headers_are_read_without_touching_a_tensor(
    make_run: MakeRun, weights: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(checkpoints={10: weights, 20: weights}, header={"tokens": 320, "losses": {"train/loss": 5.5}})
    monkeypatch.setattr(load.weights, "_read_tensor", None)
    headers = load.headers()
    assert {column: str(dtype) for column, dtype in headers.dtypes.items()} == columns.HEADERS
    assert headers[["step", "tokens", "train/loss", "tensors", "resumable"]].values.tolist() == [
        [10, 320, 5.5, 5, False],
        [20, 320, 5.5, 5, False],
    ]
    assert headers["val/loss"].isna().all()


def test_an_invalid_header_excludes_the_run_with_a_warning(
    make_run: MakeRun, weights: Tensors, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(checkpoints={10: weights}, header={"tokens": "many"})
    assert load.headers().empty
    assert "invalid header" in caplog.messages[0]


def test_a_tensor_is_read_by_run_step_and_name(make_run: MakeRun, weights: Tensors) -> None:
    run = make_run(checkpoints={10: weights})
    assert load.weights.read_tensor(run.id, 10, "final_norm.weight").tolist() == [1, 1, 1]
    for step, name, message in ((11, "x", "keeps no checkpoint of step 11"), (10, "x", "has no tensor 'x'")):
        with pytest.raises(BadInputError, match=message):
            load.weights.read_tensor(run.id, step, name)


def test_nearest_rows_have_the_highest_cosine_similarity() -> None:
    rows = np.array([[1, 0], [0, 1], [5, 1], [0, 0], [-1, 0]], np.float32)
    assert load.weights.nearest_rows(rows, 0, 2) == [(2, pytest.approx(5 / math.sqrt(26))), (1, 0.0)]


def test_filters_select_runs_before_metrics_are_read(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    one = make_run("one", tags=["first"])
    two = make_run("two", changes={"train.learning_rate": 0.5, "train.betas": [0.5, 0.9]}, tags=["first", "second"])
    damaged = make_run("damaged", tags=["third"])
    (damaged.directory / METRICS).write_text("torn\n")
    wanted = {
        "one": {"name": "o*"},
        "two": {"tag": "second"},
        "two ": {"spec": {"train.learning_rate": 0.5}},
        "two  ": {"spec": {"train.betas": (0.5, 0.9)}, "name": "two"},
    }
    for name, filters in wanted.items():
        assert list(load.runs(**filters)["name"]) == [name.strip()]
    assert not caplog.messages, "a run that was not selected was read"
    assert load.runs(spec={"train.learning_rate": "fast"}).empty
    with RunLock(two.directory):
        assert list(load.runs(status="running")["run"]) == [two.id]
        assert list(load.runs(status="complete", tag="first")["run"]) == [one.id]
    for filters, message in (
        ({"status": "done"}, "there is no status 'done'; the statuses are: running, complete"),
        ({"spec": {"learning_rate": 1}}, "did you mean 'train.learning_rate'?"),
    ):
        with pytest.raises(BadInputError, match=re.escape(message)):
            load.runs(**filters)


def test_windows_are_those_that_eval_saved(make_run: MakeRun) -> None:
    run = make_run()
    folder = run.directory / "evaluations"
    folder.mkdir()
    (folder / "notes.safetensors").write_text("ignored")
    kept = {"start": np.array([0, 16]), "loss": np.array([5.0, 6.0])}
    save_file(kept, folder / "step-00000020-0123abcd.safetensors")
    windows = load.windows()
    assert {column: str(dtype) for column, dtype in windows.dtypes.items()} == columns.WINDOWS
    assert windows[["run", "step", "yardstick", "start", "loss"]].values.tolist() == [
        [run.id, 20, "0123abcd", 0, 5.0],
        [run.id, 20, "0123abcd", 16, 6.0],
    ]


def test_window_losses_are_verified_by_their_checksum(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run, other = make_run(), make_run(seed=1)
    for each in (run, other):
        folder = each.directory / "evaluations"
        folder.mkdir()
        path = folder / "step-00000020-0123abcd.safetensors"
        path.write_bytes(evaluations.to_bytes(np.array([0, 16]), np.array([5.0, 6.0])))
    runs = load.runs()
    whole = load.windows(runs)
    assert whole["loss"].tolist() == [5.0, 6.0, 5.0, 6.0]
    content = path.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 7
        path.write_bytes(flipped)
        caplog.clear()
        windows = load.windows(runs)
        if len(windows) == 4:  # the flipped bit is in the name of the metadata, or whitespace: the losses are right
            assert windows.equals(whole)
        else:
            assert windows.equals(whole[:2])
            (warning,) = caplog.messages
            assert str(path) in warning


@pytest.mark.parametrize(
    "content",
    [
        {"start": np.array([0, 16])},
        {"start": np.array([0.0]), "loss": np.array([5.0])},
        {"start": np.array([[0]]), "loss": np.array([[5.0]])},
        {"start": np.array([0, 16]), "loss": np.array([5.0])},
        {"start": np.array([0, 0]), "loss": np.array([5.0, 5.0])},
    ],
)
def test_invalid_window_losses_exclude_the_run_with_a_warning(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture, content: dict[str, Any]
) -> None:
    folder = make_run().directory / "evaluations"
    folder.mkdir()
    save_file(content, folder / "step-00000020-0123abcd.safetensors")
    assert load.windows().empty
    assert "step-00000020-0123abcd.safetensors does not contain" in caplog.messages[0]


def test_tables_contain_parameters_and_flops(make_run: MakeRun) -> None:
    run = make_run()
    model = run.record.spec.model
    (row,) = load.runs().to_dict("records")
    assert (row["parameters"], row["flops_per_token"]) == (model.parameters, 3 * model.forward_flops_per_token(16))
    assert row["flops"] == 640 * row["flops_per_token"]
    assert load.metrics()["flops"].tolist() == [0, 320 * row["flops_per_token"], row["flops"]]
    assert row["experiment"] == run.id.removesuffix("-s0")


def test_damaged_metrics_are_named_and_none_of_their_numbers_is_used(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    intact, damaged = make_run(), make_run(seed=1)
    for run in (intact, damaged):
        content = (run.directory / METRICS).read_bytes()
        number = run.start_attempt(steps=20)
        checksum = xxhash.xxh3_128(content).hexdigest()
        run.end_attempt(number, 20, "interrupted", metrics_bytes=len(content), metrics_xxh3=checksum)
    path = damaged.directory / METRICS
    path.write_text(path.read_text().replace('"val/loss": 6.0', '"val/loss": 1.0'))
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        runs = load.runs().set_index("run")
        assert f"{path} is damaged: its rows have changed since they were written; its metrics" in caplog.text
        assert runs["damage"].notna().to_dict() == {intact.id: False, damaged.id: True}
        assert runs["val/loss"].notna().to_dict() == {intact.id: True, damaged.id: False}
        assert runs.loc[damaged.id, "status"] == "interrupted"
        assert set(load.metrics()["run"]) == {intact.id}
    (caveat, *_) = find_caveats(load.runs())
    assert caveat.startswith("The metrics of 1 of 2 runs have changed since they were written")
    assert damaged.id in caveat


def test_many_rows_are_converted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "ROW_GROUP", 3)
    rows = [{"step": step, "train/loss": step / 4} for step in range(7)]
    table = cache.to_arrow("x", iter(rows), {"step": "Int64", "train/loss": "float64"})
    assert table.select(["step", "train/loss"]).to_pylist() == rows
