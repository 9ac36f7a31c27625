import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from analysis import compare, load, plots
from gptlab.tracking.run import Run

MakeRun = Callable[..., Run]
Tensors = Mapping[str, NDArray[Any]]


def test_runs_are_ranked_by_validation_loss_and_those_without_come_last(make_run: MakeRun) -> None:
    for name, losses in {"worse": (9.0,), "none": (), "diverged": (math.inf,), "best": (11.0, 5.0)}.items():
        make_run(name, val_losses=losses)
    assert list(compare.ranked(load.runs())["name"]) == ["best", "worse", "diverged", "none"]


def test_differing_columns_are_those_that_change_the_numbers(make_run: MakeRun) -> None:
    make_run("one")
    make_run("two", changes={"train.log_every": 7, "train.steps": 99, "model.tied": True})
    assert compare.differing_columns(load.runs()) == ["model.tied"]
    make_run("three", source="other", sha256="ef" * 32, changes={"train.betas": [0.8, 0.9]})
    assert compare.differing_columns(load.runs()) == ["text.sha256", "model.tied", "train.betas", "text.source"]


def test_a_comparison_of_seeds_has_no_spec_columns(make_run: MakeRun) -> None:
    for seed in range(2):
        make_run(seed=seed)
    table = compare.comparison(load.runs())
    assert list(table.columns)[-1] == "perf/tokens_per_s"
    assert len(table) == 2


def test_different_yardsticks_cause_a_caveat_and_a_column(make_run: MakeRun) -> None:
    one = make_run("one", yardstick="aaaaaaaa")
    make_run("none", val_losses=())
    assert compare.yardstick_caveat(load.runs()) is None
    two = make_run("two", yardstick="bbbbbbbb")
    caveat = compare.yardstick_caveat(load.runs())
    assert caveat is not None
    assert "are not comparable" in caveat
    assert f"aaaaaaaa: {one.id}; bbbbbbbb: {two.id}" in caveat
    assert "val/yardstick" in compare.comparison(load.runs())


def test_losses_at_a_handful_of_steps_include_the_first_and_the_last(make_run: MakeRun) -> None:
    long = make_run("long", val_losses=[float(loss) for loss in range(20, 0, -1)])
    short = make_run("short", val_losses=(30.0, 29.0))
    table = compare.at_steps(load.metrics(), "val/loss", count=4)
    assert list(table.columns) == [0, 60, 130, 190]
    assert table.loc[long.id].tolist() == [20.0, 14.0, 7.0, 1.0]
    assert table.loc[short.id, 0] == 30.0
    assert table.loc[short.id, 60:].isna().all()


def test_sparklines_of_several_runs_have_one_scale(make_run: MakeRun) -> None:
    falling = make_run("falling", val_losses=(8.0, 4.0, 1.0))
    flat = make_run("flat", val_losses=(1.0, 1.0, math.inf))
    assert compare.sparklines(load.metrics(), "val/loss") == {falling.id: "█▄▁", flat.id: "▁▁×"}
    assert compare.sparklines(load.metrics(), "val/loss", width=1)[falling.id] in set("▁▂▃▄▅▆▇█")


def test_without_runs_tables_and_figures_are_empty() -> None:
    runs, metrics = load.runs(), load.metrics()
    assert compare.comparison(runs).empty
    assert compare.yardstick_caveat(runs) is None
    assert compare.at_steps(metrics, "val/loss").empty
    assert compare.sparklines(metrics, "val/loss") == {}
    assert not plots.loss_curves(metrics).data


def test_each_run_has_one_loss_curve_with_its_own_color(make_run: MakeRun) -> None:
    only_start = make_run("one", val_losses=(11.0,))
    other = make_run("two")
    training = plots.loss_curves(load.metrics())
    assert [(line.name, list(line.x), list(line.y)) for line in training.data] == [(other.id, [10, 20], [7.5, 5.5])]
    validation = plots.loss_curves(load.metrics(), x="tokens", column="val/loss")
    assert [(line.name, list(line.x)) for line in validation.data] == [(only_start.id, [0]), (other.id, [0, 320, 640])]
    assert validation.data[0].line.color != validation.data[1].line.color == training.data[0].line.color
    assert "nats per token" in validation.layout.yaxis.title.text


def test_a_copied_run_directory_does_not_stop_a_comparison(make_run: MakeRun) -> None:
    make_run()
    metrics = pd.concat([load.metrics(), load.metrics()], ignore_index=True)
    assert len(compare.at_steps(metrics, "val/loss")) == 1
