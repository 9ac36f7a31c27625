"""Calls of the library with an argument that does not exist end with one line that names the choices."""

from collections.abc import Callable

import pytest

from analysis import choices, compare, load, optimum, plots, replicates, stats, weights
from gptlab.errors import BadInputError
from gptlab.tracking.run import Run

MakeRun = Callable[..., Run]
NOTHING = stats.estimate([])


def values():
    runs = load.runs()
    return replicates.at_equal(runs, load.metrics(runs)).merge(runs[["run", "train.learning_rate"]], on="run")


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda r, m: replicates.at_equal(r, m, by="steps"), "by is 'steps', which is none of: step, tokens, flops, "),
        (
            lambda r, m: replicates.budget(r, m, by="time"),
            "by is 'time', which is none of: step, tokens, flops, elapsed",
        ),
        (lambda r, m: replicates.at_equal(r, m, column="val/los"), "did you mean 'val/loss'?"),
        (
            lambda r, m: replicates.at_equal(r, m, column="val/yardstick"),
            "column is 'val/yardstick', which is none of: se",
        ),
        (lambda r, m: replicates.steps_to_reach(m, 5.0, by="steps"), "by is 'steps'"),
        (lambda r, m: replicates.steps_to_reach(m, 5.0, column="loss"), "column is 'loss'"),
        (
            lambda r, m: replicates.differences(r, values(), "tinny"),
            "against is 'tinny', but the experiments are: tiny-",
        ),
        (lambda r, m: compare.at_steps(m, "loss"), "column is 'loss', which is none of: seed, step, "),
        (lambda r, m: compare.sparklines(m, "loss"), "column is 'loss'"),
        (lambda r, m: plots.loss_curves(m, x="steps"), "x is 'steps', which is none of: seed, step, tokens"),
        (lambda r, m: plots.loss_curves(m, column="val/lo"), "column is 'val/lo', which is none of: step, tokens"),
        (lambda r, m: plots.heat_map(load.checkpoints(r), "rank"), "statistic is 'rank', which is none of: "),
        (lambda r, m: plots.statistic_over_training(load.checkpoints(r), "rank"), "stable_rank"),
        (
            lambda r, m: plots.loss_over_setting(values(), "lr", NOTHING),
            "setting is 'lr', which is none of: seed, value, ",
        ),
        (lambda r, m: optimum.over_seeds(values(), "learning_rate"), "did you mean 'train.learning_rate'?"),
        (
            lambda r, m: load.runs(spec={"model.tide": 1}),
            "there is no spec field 'model.tide'; did you mean 'model.tied'?",
        ),
        (lambda r, m: load.runs(spec={"model.zzz": 1}), "'model.zzz'; the fields are: model.n_layer, model.n_head, "),
        (lambda r, m: load.runs(spec={"zzz": 1}), "data.text, "),
        (lambda r, m: load.runs(status="done"), "there is no status 'done'; the statuses are: running, complete"),
        (
            lambda r, m: load.metrics("tiny"),
            "expected rows of load.runs(), such as load.runs(name='tiny*'), not 'tiny'",
        ),
        (lambda r, m: load.checkpoints(r["run"]), "not a Series"),
        (lambda r, m: load.samples(r.drop(columns="directory")), "not a table without the column 'directory'"),
        (lambda r, m: weights.read_tensor("tiny", 10, "x"), "has no tensor 'x'; its tensors are: blocks.0.attention."),
        (lambda r, m: weights.read_tensor("tiny", 11, "x"), "keeps no checkpoint of step 11; available: 10, 20"),
    ],
)
def test_an_unknown_argument_is_one_line_that_names_the_choices(make_run: MakeRun, weights_, call, answer) -> None:
    make_run("tiny", checkpoints={10: weights_, 20: weights_})
    runs = load.runs()
    with pytest.raises(BadInputError) as error:
        call(runs, load.metrics(runs))
    assert answer in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def weights_(request: pytest.FixtureRequest):
    """The fixture `weights`, whose name a module has here."""
    return request.getfixturevalue("weights")


def test_a_call_with_known_arguments_is_not_refused(make_run: MakeRun) -> None:
    make_run("tiny")
    runs = load.runs()
    metrics = load.metrics(runs)
    for by in replicates.BUDGETS:
        assert len(replicates.at_equal(runs, metrics, by=by)) == 1
    assert plots.loss_curves(metrics, x="flops", column="val/bpb").data


def test_of_many_choices_the_first_are_named() -> None:
    with pytest.raises(BadInputError) as error:
        choices.check_choice("by", "steps", ("step", "tokens"))
    assert str(error.value) == "by is 'steps', which is none of: step, tokens; did you mean 'step'?"
    assert choices.listed([str(number) for number in range(50)]).endswith(", 39 and 10 more")
