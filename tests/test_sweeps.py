"""Sweeps as values: grids, random points, and how the catalog finds them."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlab import catalog
from gptlab.errors import BadInputError
from gptlab.spec import Experiment
from gptlab.sweeps import Sweep, grid, log_space, log_uniform, random, uniform

BASE = Experiment(name="base", why="A base?")
POSITIVE = st.floats(1e-9, 1e9)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=4, unique=True), st.lists(st.booleans(), min_size=1))
def test_a_grid_is_every_combination_with_the_name_of_its_base(batches, tied):
    points = grid(BASE, {"train.batch_size": batches, "model.tied": tied})
    expected = [(size, tie) for size in batches for tie in tied]
    assert [(point.train.batch_size, point.model.tied) for point in points] == expected
    assert {point.name for point in points} == {"base"}


@given(POSITIVE, st.floats(1.1, 1e9), st.integers(2, 40))
def test_log_space_goes_from_end_to_end_with_equal_ratios(low, factor, n):
    high = low * factor
    if factor ** (1 / n) < 1.01:
        return  # too close for four digits
    numbers = log_space(low, high, n)
    assert (len(numbers), numbers[0], numbers[-1]) == (n, low, high)
    ratios = [math.log(b / a) for a, b in pairwise(numbers)]
    assert ratios == pytest.approx([math.log(factor) / (n - 1)] * (n - 1), abs=2e-3)
    assert all(float(f"{number:.4g}") == number for number in numbers[1:-1])


def test_log_space_contains_the_round_number_in_the_middle():
    assert log_space(1e-4, 1e-2, 7)[3] == 1e-3, "so that the run of `tiny` is a point of its sweep"


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 8))
def test_random_points_are_reproducible_distinct_and_in_range_and_a_larger_n_adds_some(seed, n, more):
    values = {"train.learning_rate": log_uniform(1e-4, 1e-2), "model.n_layer": [1, 2, 4]}
    points = random(BASE, values, n=n, seed=seed)
    assert points == random(BASE, values, n=n + more, seed=seed)[:n]
    assert len({point.model_dump_json() for point in points}) == n
    assert all(1e-4 <= point.train.learning_rate <= 1e-2 and point.model.n_layer in {1, 2, 4} for point in points)


def test_random_points_are_the_same_in_every_version():
    values = {"train.learning_rate": log_uniform(1e-4, 1e-2), "train.weight_decay": uniform(0, 1)}
    points = random(BASE, values, n=2)
    assert [(point.train.learning_rate, point.train.weight_decay) for point in points] == GOLDEN


def test_another_key_leaves_the_values_of_the_others():
    rate = {"train.learning_rate": log_uniform(1e-4, 1e-2)}
    both = random(BASE, {"model.n_layer": [1, 2], **rate}, n=5)
    assert [p.train.learning_rate for p in both] == [p.train.learning_rate for p in random(BASE, rate, n=5)]


GOLDEN = [(0.001848, 0.8086), (0.0002049, 0.1234)]


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (lambda: grid(BASE, {}), "grid is empty: give values by key"),
        (lambda: grid(BASE, {"train.learning_rate": []}), "grid is empty: train.learning_rate has no values"),
        (lambda: grid(BASE, {"train.learningrate": []}), "did you mean 'train.learning_rate'?"),
        (lambda: grid(BASE, {"train.learning_rate": 1e-3}), "must be a list, not 0.001"),
        (lambda: grid(BASE, {"model.activation": "relu"}), "must be a list, not 'relu'"),
        (lambda: grid(BASE, {"train.learning_rate": [-1.0]}), "train.learning_rate: input should be greater than"),
        (lambda: grid(BASE, {"name": ["a", "b"]}), "grid cannot vary 'name'"),
        (lambda: grid(BASE, {"train.steps": range(1, 10**5)}), "more than 10000 combinations"),
        (lambda: random(BASE, {}, n=3), "random is empty"),
        (lambda: random(BASE, {"model.n_layer": [1, 2]}, n=3), "only 2 different combinations of values, not 3"),
        (lambda: random(BASE, {"model.n_layer": [1, 2]}, n=0), "n must be 1 to 10000, not 0"),
        (lambda: random(BASE, {"model.n_layers": [1, 2]}, n=1), "did you mean 'model.n_layer'?"),
        (lambda: log_space(1e-2, 1e-4, 3), "the smaller one first, not 0.01 and 0.0001"),
        (lambda: log_space(0, 1, 3), "needs two positive numbers"),
        (lambda: log_space(1, 2, 1), "at least 2 numbers, not 1"),
        (lambda: log_space(1, 1.001, 20), "too close for 4 significant digits"),
        (lambda: log_uniform(-1, 1), "needs two positive numbers"),
        (lambda: uniform(1, math.nan), "not 1 and nan"),
    ],
)
def test_a_wrong_grid_is_one_clear_line(make, answer):
    with pytest.raises(BadInputError) as raised:
        make()
    assert answer in str(raised.value)
    assert "\n" not in str(raised.value)


FILE = """from gptlab.spec import Experiment
from gptlab import Sweep, grid, log_space
base = Experiment(name="base", why="A base?")
rates = Sweep("rates", why="Which?", runs=grid(base, {"train.learning_rate": log_space(1e-4, 1e-2, 3)}), seeds=range(2))
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`write(sweeps="…")` makes a project with this file of experiments."""

    def make(**files: str) -> None:
        folder = tmp_path / "experiments"
        folder.mkdir(exist_ok=True)
        (tmp_path / "pyproject.toml").write_text("[tool.gptlab]\n")
        for name, source in files.items():
            (folder / f"{name}.py").write_text(source)
        monkeypatch.chdir(tmp_path)

    return make


def test_the_catalog_finds_sweeps_beside_experiments(write):
    write(sweeps=FILE, more="from experiments.sweeps import rates\n")
    found = catalog.load()
    assert found.problems == []
    assert list(found.experiments) == ["base"]
    sweep = found.sweeps["rates"]
    assert [point.train.learning_rate for point in sweep.runs] == [1e-4, 1e-3, 1e-2]
    assert (sweep.seeds, sweep.why) == ((0, 1), "Which?")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("Sweep('x', why='?', runs=[])", "at least one run and one seed"),
        ("Sweep('x', why='?', runs=[base], seeds=[])", "at least one run and one seed"),
        ("Sweep('x', why='?', runs=[base], seeds=[1, 1])", "seed 1 is there twice"),
        ("Sweep('x', why='?', runs=[base], seeds=[-1])", "seeds.0: input should be greater than or equal to 0"),
        ("Sweep('X y', why='?', runs=[base])", "name: string should match pattern"),
        ("Sweep('x', why='?', runs=[base], sed=[1])", "sed: there is no such field"),
        ("Sweep('x', why='?', runs=grid(base, {'train.learning_rat': [1]}))", "did you mean 'train.learning_rate'?"),
    ],
)
def test_a_mistake_in_a_sweep_names_its_file_and_line(write, line, answer):
    write(sweeps=f"{FILE}wrong = {line}\n")
    (problem,) = catalog.load().problems
    assert problem.message.startswith("experiments/sweeps.py:5: ")
    assert answer in problem.message
    with pytest.raises(BadInputError, match="experiments/sweeps.py:5: "):
        catalog.find_all(["rates"], catalog.load())


def test_a_sweep_needs_a_name_of_its_own(write):
    write(sweeps=FILE.replace('"rates"', '"base"'))
    found = catalog.load()
    assert (list(found.experiments), list(found.sweeps)) == (["base"], [])
    assert found.problems[0].message == "a sweep and an experiment are named 'base'; rename the sweep"
    write(sweeps=FILE, again=FILE.replace('name="base"', 'name="other"'))
    assert "two sweeps are named 'rates'" in catalog.load().problems[0].message


def test_an_unknown_sweep_is_named_with_a_suggestion(write):
    write(sweeps=FILE)
    with pytest.raises(BadInputError, match="there is no sweep or experiment 'rate'; did you mean 'rates'"):
        catalog.find_all(["base", "rate"], catalog.load())
    with pytest.raises(BadInputError, match="'rates' is a sweep, not an experiment; start its runs with: gptlab sweep"):
        catalog.find("rates")


def test_a_sweep_is_immutable():
    sweep = Sweep("x", why="?", runs=[BASE], seeds=range(2))
    with pytest.raises(ValueError, match="frozen"):
        sweep.name = "y"
