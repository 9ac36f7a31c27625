"""Comparison of experiments with their seeds as replicates."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from analysis import caveats, compare, load, replicates
from gptlab.tracking import evaluations
from gptlab.tracking.metrics import MetricsFile
from gptlab.tracking.run import Run

MakeRun = Callable[..., Run]

BASE = {0: (11.0, 8.0, 6.00), 1: (11.0, 8.1, 6.10), 2: (11.0, 8.2, 6.20)}
BETTER = {0: (11.0, 7.0, 5.80), 1: (11.0, 7.1, 5.95), 2: (11.0, 7.2, 6.00)}


def make(make_run: MakeRun, name: str, losses: dict[int, tuple[float, ...]], **options: object) -> str:
    """Make one run per seed of an experiment; return its `NAME-HASH8`."""
    runs = [make_run(name, seed, val_losses=values, **options) for seed, values in losses.items()]
    return runs[0].id.rpartition("-s")[0]


def tables(by: str = "step", at: float | None = None):
    runs = load.runs()
    return runs, replicates.at_equal(runs, load.metrics(runs), by, at=at)


def test_the_summary_has_mean_and_interval_over_seeds_best_first(make_run: MakeRun) -> None:
    base, better = make(make_run, "base", BASE), make(make_run, "better", BETTER)
    _, values = tables()
    table = replicates.summary(values)
    assert table["experiment"].tolist() == [better, base]
    assert table["seeds"].tolist() == [3, 3]
    row = table.iloc[1]
    assert row["mean"] == pytest.approx(6.1)
    assert row["high"] - row["mean"] == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)


def test_differences_are_paired_by_seed_and_corrected_for_multiple_comparisons(make_run: MakeRun) -> None:
    base = make(make_run, "base", BASE)
    better = make(make_run, "better", BETTER, changes={"train.learning_rate": 1e-2})
    make(make_run, "worse", {seed: (11.0, 9.0, 7.0 + seed / 10) for seed in range(3)}, changes={"model.bias": False})
    runs, values = tables()
    table = replicates.differences(runs, values, base).set_index("experiment")
    row = table.loc[better]
    assert row["how"] == "paired by seed"
    # differences −0.20, −0.15, −0.20: mean −0.1833, standard error 0.016667, t = −11, 2 degrees of freedom: p = 0.00816
    assert row["mean"] == pytest.approx(-0.55 / 3)
    assert row["p"] == pytest.approx(0.008163, abs=1e-6)
    assert row["p_holm"] >= row["p"]
    assert row["seeds_needed"] == 3
    assert row["why"] == ""
    assert table["mean"].is_monotonic_increasing
    assert table.iloc[-1]["mean"] == pytest.approx(1.0)


def test_diverged_seeds_count_as_infinite_and_unfinished_ones_are_reported(make_run: MakeRun) -> None:
    base = make(make_run, "base", BASE)
    make_run("odd", 0, val_losses=(11.0, 5.0, 4.0))
    make_run("odd", 1, val_losses=(11.0,), outcome="diverged")
    odd = make_run("odd", 2, val_losses=(11.0, 5.0), outcome="interrupted").id.rpartition("-s")[0]
    runs, values = tables()
    row = replicates.summary(values).set_index("experiment").loc[odd]
    assert (row["seeds"], row["diverged"], row["unfinished"], row["mean"]) == (3, 1, 1, math.inf)
    assert math.isnan(row["low"])
    difference = replicates.differences(runs, values, base).iloc[0]
    assert difference["mean"] == math.inf
    assert difference["why"] == "1 diverged; 1 unfinished; 1 unpaired"
    words = " ".join(caveats.find_caveats(runs))
    assert "1 of 6 runs diverged; they count as an infinite loss" in words
    assert "1 of 6 runs are unfinished" in words


def test_experiments_with_different_yardsticks_are_not_compared(make_run: MakeRun) -> None:
    base = make(make_run, "base", BASE)
    make(make_run, "other", BETTER, yardstick="bbbbbbbb")
    mixed = make(make_run, "mixed", {0: (9.0,)}, yardstick="aaaaaaaa", changes={"model.bias": False})
    make_run("mixed", 1, val_losses=(9.0,), yardstick="bbbbbbbb", changes={"model.bias": False})
    runs, values = tables(at=0)
    table = replicates.differences(runs, values, base)
    assert set(table["how"]) == {"not compared"}
    assert all("measured on different windows (aaaaaaaa, bbbbbbbb)" in why for why in table["why"])
    assert table["mean"].isna().all()
    assert math.isnan(replicates.summary(values).set_index("experiment").loc[mixed, "mean"])
    assert "are not comparable" in caveats.find_caveats(runs)[0]


def test_different_batches_or_too_few_common_seeds_are_not_paired(make_run: MakeRun) -> None:
    base = make(make_run, "base", BASE)
    make(make_run, "batch", BETTER, changes={"train.batch_size": 4})
    make(make_run, "seeds", {seed + 7: losses for seed, losses in BETTER.items()}, changes={"model.tied": True})
    runs, values = tables()
    table = replicates.differences(runs, values, base).sort_values("why", ignore_index=True)
    assert set(table["how"]) == {"unpaired"}
    assert table["why"].tolist() == ["different batches (train.batch_size)", "too few seeds in common"]
    assert table["p"].notna().all()
    assert table["seeds_needed"].isna().all()


def test_single_seeds_have_a_difference_without_an_interval(make_run: MakeRun) -> None:
    base, _ = make(make_run, "base", {0: BASE[0]}), make(make_run, "other", {0: BETTER[0]})
    runs, values = tables()
    (row,) = replicates.differences(runs, values, base).to_dict("records")
    assert row["mean"] == pytest.approx(-0.2)
    assert math.isnan(row["p"])
    assert row["why"] == "a single seed gives no interval"


@pytest.mark.parametrize(("by", "budget"), [("step", 10), ("tokens", 320), ("elapsed_s", 2.0)])
def test_the_default_budget_is_the_largest_that_all_complete_runs_reached(
    make_run: MakeRun, by: str, budget: float
) -> None:
    make_run("long", val_losses=(11.0, 8.0, 6.0))
    make_run("short", val_losses=(11.0, 7.0))
    _, values = tables(by)
    assert values["value"].tolist() == [8.0, 7.0]
    runs = load.runs()
    assert replicates.budget(runs, load.metrics(runs), by) == budget


def losses(steps: int, last: float = 5.0) -> list[float]:
    """A loss every ten steps that falls to `last`."""
    return [last + (steps - step) / 10 for step in range(0, steps + 1, 10)]


def test_one_short_seed_is_left_out_and_never_interpolated(make_run: MakeRun) -> None:
    long = [make_run("long", seed, val_losses=losses(100)).id for seed in range(3)]
    short = make_run("long", 3, val_losses=losses(20, 1.0)).id
    make_run("other", val_losses=losses(100, 6.0), changes={"model.tied": True})
    runs = load.runs()
    assert replicates.budget(runs, load.metrics()) == 100
    values = replicates.at_equal(runs, load.metrics()).set_index("run")
    assert values.loc[long, "value"].tolist() == [5.0] * 3
    assert values.loc[short, "state"] == "unfinished"
    assert not values["interpolated"].any()
    row = replicates.summary(values.reset_index()).iloc[0]
    assert (row["mean"], row["seeds"], row["n"], row["unfinished"]) == (5.0, 4, 3, 1)


@pytest.mark.parametrize(
    ("grids", "budget"),
    [
        ([{0: [50, 100]}, {0: [30, 60, 90, 100]}], 100),  # different grids that meet at the end
        ([{0: [70, 140]}, {0: [30, 60, 90]}], 140),  # never meet: as many experiments as possible, then the largest
        ([{0: [20], 1: [20], 2: [90]}, {0: [20, 90]}], 20),  # one of three is less than half
        ([{0: [20], 1: [20, 90]}, {0: [20, 90]}], 90),  # one of two is half
        ([{0: [10, 20]}, {0: [10, 20, 30]}], 20),  # a short experiment
        ([{0: [10]}, {0: [10]}], 10),  # all are short
        ([{0: []}, {0: []}], 0),  # nothing but the start
    ],
)
@pytest.mark.parametrize("by", ["step", "tokens"])
def test_the_budget_is_the_largest_step_that_half_of_each_experiment_was_measured_at(
    grids: list[dict[int, list[int]]], budget: int, by: str
) -> None:
    names = [
        (f"{number}-s{seed}", str(number), steps) for number, grid in enumerate(grids) for seed, steps in grid.items()
    ]
    runs = pd.DataFrame(names, columns=["run", "experiment", "steps"]).assign(status="complete", profiled=False)
    rows = [(run, step) for run, _, steps in names for step in [0, *steps]]
    metrics = pd.DataFrame(rows, columns=["run", by]).assign(**{"val/loss": 5.0})
    assert replicates.budget(runs, metrics, by) == budget


def test_diverged_profiled_and_unfinished_runs_do_not_lower_the_budget(make_run: MakeRun) -> None:
    make(make_run, "base", BASE)
    make_run("diverged", val_losses=losses(10), outcome="diverged", changes={"model.tied": True})
    make_run("profiled", val_losses=losses(10), profile=True, changes={"model.bias": False})
    make_run("started", val_losses=losses(10), outcome="interrupted", changes={"model.n_layer": 1})
    runs, values = tables()
    assert replicates.budget(runs, load.metrics(runs)) == 20
    states = dict(zip(runs["name"], values["state"], strict=True))
    assert states == {"base": "reached", "diverged": "diverged", "profiled": "profiled", "started": "unfinished"}


def test_a_run_that_was_not_measured_at_the_budget_has_no_value(make_run: MakeRun) -> None:
    make_run("all", val_losses=losses(20))
    run = make_run("gap", val_losses=(), changes={"model.tied": True})
    with MetricsFile(run.directory, 0) as metrics:
        for step in (0, 15, 30):
            metrics.append({"step": step, "tokens": 32 * step, "val/loss": 1.0})
    for by, at in {"step": 20, "tokens": 640}.items():
        _, values = tables(by, at)
        row = values.set_index("run").loc[run.id]
        assert (row["state"], math.isnan(row["value"])) == ("unmeasured", True)
    row = replicates.summary(values).set_index("experiment").loc[run.id.removesuffix("-s0")]
    assert (row["seeds"], row["unmeasured"], row["n"]) == (1, 1, 0)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_profiled_run_is_listed_but_never_a_replicate(make_run: MakeRun, recorded: bool) -> None:
    base = make(make_run, "base", BASE)
    profiled = make_run("base", 3, val_losses=(11.0, 1.0, 1.0), profile=recorded)
    if not recorded:  # as by an earlier version
        (profiled.directory / "profile").mkdir()
    runs, values = tables()
    assert profiled.id in set(runs["run"])
    row = replicates.summary(values).set_index("experiment").loc[base]
    assert (row["seeds"], row["profiled"], row["n"], row["mean"]) == (3, 1, 3, pytest.approx(6.1))
    (caveat,) = caveats.find_caveats(runs)
    assert caveat == (
        f"1 of 4 runs were made with --profile; they are listed, but are never replicates: {profiled.id}. "
        "Repeat their command with --fresh and without --profile to use them."
    )


def test_values_at_equal_flops_and_seconds_say_whether_they_are_interpolated(make_run: MakeRun) -> None:
    make_run(val_losses=(11.0, 8.0, 6.0))
    for at, interpolated in {2.0: False, 3.0: True}.items():
        _, values = tables("elapsed_s", at)
        assert values["interpolated"].tolist() == [interpolated]
        assert replicates.summary(values)["interpolated"].tolist() == [int(interpolated)]


def test_values_with_different_yardsticks_are_not_interpolated(make_run: MakeRun) -> None:
    run = make_run(val_losses=())
    with MetricsFile(run.directory, 0) as metrics:
        for second, yardstick in enumerate("ab"):
            metrics.append({"step": second, "elapsed_s": float(second), "val/loss": 5.0, "val/yardstick": yardstick})
    _, values = tables("elapsed_s", 0.5)
    assert values["state"].tolist() == ["unmeasured"]


def test_equal_flops_mean_fewer_steps_for_a_larger_model(make_run: MakeRun) -> None:
    large = make_run("large", val_losses=(11.0, 8.0, 6.0, 5.0), changes={"model.n_embd": 16}).id
    small = make_run("small", val_losses=(11.0, 9.0, 7.0, 6.0)).id
    runs, values = tables("flops")
    per_token = runs.set_index("run")["flops_per_token"]
    step = 30 * per_token[small] / per_token[large]
    assert 10 < step < 20
    assert values.set_index("run")["value"][[large, small]].tolist() == pytest.approx([8 - 2 * (step - 10) / 10, 6.0])
    assert set(values["state"]) == {"reached"}


def test_steps_to_reach_a_loss_are_interpolated(make_run: MakeRun) -> None:
    first = make_run("first", val_losses=(11.0, 8.0, 6.0)).id
    never = make_run("never", val_losses=(11.0, 10.0)).id
    at_once = make_run("once", val_losses=(7.0, 6.0)).id
    after = make_run("after", val_losses=(math.inf, 7.0)).id
    reached = replicates.steps_to_reach(load.metrics(), 7.0)
    assert reached[[first, at_once, after]].tolist() == [15.0, 0.0, 10.0]
    assert math.isnan(reached[never])
    assert replicates.steps_to_reach(load.metrics(), 7.0, by="tokens")[first] == 480


def test_windows_of_two_runs_are_compared_at_equal_steps(make_run: MakeRun) -> None:
    ids = []
    for name, step, loss in (("a", 20, 5.0), ("b", 20, 6.0), ("b", 300, 1.0), ("c", 300, 2.0)):
        run = make_run(name)
        (run.directory / "evaluations").mkdir(exist_ok=True)
        content = evaluations.to_bytes(np.arange(4), np.full(4, loss))
        (run.directory / "evaluations" / f"step-{step:08d}-0123abcd.safetensors").write_bytes(content)
        ids.append(run.id)
    windows = load.windows()
    assert replicates.window_difference(windows, ids[0], ids[1]).mean == 1.0
    assert replicates.window_difference(windows, ids[1], ids[3]).mean == 1.0
    with pytest.raises(ValueError, match="were not evaluated at the same step"):
        replicates.window_difference(windows, ids[0], ids[3])


def test_two_single_runs_are_compared_over_their_common_windows(make_run: MakeRun) -> None:
    losses = np.random.default_rng(0).normal(5, 1, (2, 40))
    ids = []
    for name, values, starts in zip("ab", losses, (range(40), range(1, 41)), strict=True):
        run = make_run(name)
        (run.directory / "evaluations").mkdir()
        kept = {"start": np.array(starts), "loss": values}
        save_file(kept, run.directory / "evaluations" / "step-00000020-0123abcd.safetensors")
        ids.append(run.id)
    difference = replicates.window_difference(load.windows(), *ids)
    expected = losses[1][:-1] - losses[0][1:]
    assert (difference.n, difference.mean) == (39, pytest.approx(expected.mean()))
    assert difference.se == pytest.approx(expected.std(ddof=1) / math.sqrt(39))
    with pytest.raises(ValueError, match="were not evaluated on the same windows; run `gptlab eval` on both"):
        replicates.window_difference(load.windows(), ids[0], "nobody")


def test_labels_contain_the_settings_that_differ_within_a_name(make_run: MakeRun) -> None:
    plain = make(make_run, "one", {0: (5.0,)})
    slow = make(make_run, "two", {0: (5.0,), 1: (5.0,)}, changes={"train.learning_rate": 1e-4})
    fast = make(make_run, "two", {0: (5.0,)}, changes={"train.learning_rate": 1e-2})
    assert compare.labels(load.runs()) == {
        plain: "one",
        slow: "two learning_rate=0.0001",
        fast: "two learning_rate=0.01",
    }


def test_different_texts_code_and_environments_are_caveats(make_run: MakeRun) -> None:
    make_run("clean")
    assert caveats.find_caveats(load.runs()) == []
    make_run("other", sha256="ef" * 32, source="book.txt", git_commit="deadbeef" * 5, threads=1, torch="2.14")
    make_run("changed", diff_sha256="12" * 32, git_dirty=True)
    words = caveats.find_caveats(load.runs())
    assert words[0].startswith("Different texts: these runs were trained on 2 texts: words (2), book.txt (1). Compare ")
    assert words[1].startswith("Mixed code: these runs were made by 3 different versions of the code: ")
    assert "c0ffee00 with changes 12121212 (1)" in words[1]
    assert words[2:] == [
        "These runs were made with 2 different versions of PyTorch: 2.13.0 (2), 2.14 (1). Train all of them in one "
        "environment.",
        "These runs were made with 2 different thread counts: 2 (2), 1 (1). Train all of them with the same "
        "OMP_NUM_THREADS.",
    ]


def test_all_attempts_of_a_run_count_as_its_code_and_environment(
    make_run: MakeRun, add_attempt: Callable[..., None]
) -> None:
    make_run("clean")
    run = make_run("mixed")
    add_attempt(run, git_commit="deadbeef" * 5, threads=1)
    runs = load.runs()
    assert runs["threads"].tolist() == [2, 1], "the last attempt's"
    words = caveats.find_caveats(runs)
    assert words == [
        "1 of 2 runs consist of attempts that differ in code or environment, so they are not exact replicates: "
        f"{run.id} (code: c0ffee00, then deadbeef; threads: 2, then 1). Repeat their command with --fresh for exact "
        "ones.",
        "Mixed code: these runs were made by 2 different versions of the code: c0ffee00 (2), deadbeef (1). "
        "`gptlab diff RUN OTHER --patch` shows whether that matters.",
        "These runs were made with 2 different thread counts: 2 (2), 1 (1). Train all of them with the same "
        "OMP_NUM_THREADS.",
    ]


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({}, {}, None),
        ({"cpu_share": 1.9}, {"cpu_share": 1.8}, None),
        ({"cpu_share": 1.9}, {"cpu_share": 0.9}, "from 0.90 (two-"),
        ({}, {"host": "elsewhere"}, "2 different hosts"),
        ({}, {"threads": 1}, "2 different thread counts"),
        ({}, {"device": "cuda"}, "2 different devices"),
    ],
)
def test_seconds_of_a_busy_machine_or_of_another_one_are_a_caution(
    make_run: MakeRun, first: dict[str, object], second: dict[str, object], reason: str | None
) -> None:
    make_run("one", **first)
    make_run("two", **second)
    caution = caveats.seconds_caveat(load.runs())
    assert caution is None if reason is None else reason in str(caution)


def test_without_runs_the_tables_are_empty() -> None:
    runs, values = tables()
    assert values.empty
    assert replicates.summary(values).empty
    assert replicates.steps_to_reach(load.metrics(), 5.0).empty
    assert caveats.find_caveats(runs) == []
    assert compare.labels(runs) == {}
