"""How experiments are found, and the errors of a file that cannot be imported."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptlab import catalog
from gptlab.errors import BadInputError

ROOT = Path(__file__).resolve().parents[1]
ONE = """
from gptlab.spec import Experiment

{name} = Experiment(name="{name}", why="One?")
"""


@pytest.fixture(autouse=True)
def fresh_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget imported `experiments` modules before and after the test."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
            del sys.modules[name]

    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "experiments"}
    forget()
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path or ".").resolve() != ROOT])
    yield
    forget()
    sys.modules.update(before)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`write(a=…, b=…)` creates a project with experiments/a.py and experiments/b.py in the working directory."""
    root = tmp_path / "project"
    (root / "experiments").mkdir(parents=True)
    (root / "pyproject.toml").write_text("[tool.gptlab]\n")
    monkeypatch.chdir(root)

    def write_files(**files: str | bytes) -> None:
        for name, source in files.items():
            (root / "experiments" / f"{name}.py").write_bytes(source if isinstance(source, bytes) else source.encode())

    return write_files


def message_of(function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(BadInputError) as caught:
        function(*arguments)
    return str(caught.value)


# --- Finding ---


def test_experiments_are_found_in_the_order_of_files_and_of_definition(write: Callable[..., None]):
    write(zoo=ONE.format(name="zebra") + ONE.format(name="ape"), first=ONE.format(name="middle"), __init__="")
    assert list(catalog.experiments()) == ["middle", "zebra", "ape"]
    assert catalog.find("ape").why == "One?"


def test_experiments_are_found_from_a_folder_below(write: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    write(a=ONE.format(name="one"))
    monkeypatch.chdir("experiments")
    assert list(catalog.experiments()) == ["one"]


def test_project_without_experiments_has_none(write: Callable[..., None]):
    write()
    assert catalog.experiments() == {}


def test_imported_experiment_is_not_listed_twice(write: Callable[..., None]):
    write(
        baseline=ONE.format(name="baseline"),
        a_variant="from experiments.baseline import baseline\nwide = baseline.vary('wide', why='Wider?')\n",
        renamed="from experiments.baseline import baseline as base\ndeep = base.vary('deep', why='Deeper?')\n",
        starred="from experiments.baseline import *\nflat = baseline.vary('flat', why='Flatter?')\n",
        module="from experiments import baseline as b\ntied = b.baseline.vary('tied', why='Tied?')\n",
    )
    assert list(catalog.experiments()) == ["wide", "baseline", "tied", "deep", "flat"], "each in its own file's place"


def test_alias_is_not_listed_twice(write: Callable[..., None]):
    write(a=ONE.format(name="one") + "\nalias = one\n")
    assert list(catalog.experiments()) == ["one"]


def test_experiments_in_a_list_are_not_found(write: Callable[..., None]):
    write(a="from gptlab.spec import Experiment\nhidden = [Experiment(name='one', why='One?')]\n")
    assert catalog.experiments() == {}


def test_experiment_that_reuses_an_imported_name_is_found(write: Callable[..., None]):
    write(
        baseline=ONE.format(name="baseline"),
        variant="from experiments.baseline import baseline\nbaseline = baseline.vary('wide', why='Wider?')\n",
    )
    assert set(catalog.experiments()) == {"baseline", "wide"}


# --- Mistakes in a file ---


def test_two_experiments_of_one_name_are_an_error_that_names_both_files(write: Callable[..., None]):
    write(a=ONE.format(name="same"), b=ONE.format(name="same"))
    message = message_of(catalog.experiments)
    assert "'same'" in message
    assert "experiments/a.py" in message
    assert "experiments/b.py" in message


def test_two_experiments_of_one_name_in_one_file_are_an_error(write: Callable[..., None]):
    write(a=ONE.format(name="same") + "\nother = Experiment(name='same', why='Another?')\n")
    assert "two experiments are named 'same'" in message_of(catalog.experiments)


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("x = 1\ny = = 2\n", 2, ["SyntaxError", "invalid syntax"]),
        ("def f():\npass\n", 2, ["IndentationError"]),
        ("\n\nx = 1 / 0\n", 3, ["ZeroDivisionError", "division by zero"]),
        ("def f():\n    raise KeyError('k')\n\nf()\n", 2, ["KeyError", "'k'"]),
        ("import json\n\njson.loads('{')\n", 3, ["JSONDecodeError"]),
        ("import no_such_module\n", 1, ["ModuleNotFoundError", "no_such_module"]),
        (
            "from gptlab.spec import Experiment, ModelSpec\n\nx = Experiment(\n    name='x',\n    why='?',\n"
            "    model=ModelSpec(n_layr=3),\n)\n",
            6,
            ["n_layr", "did you mean 'n_layer'?"],
        ),
        (
            "from gptlab.spec import Experiment\nx = Experiment(name='X', why='?')\n",
            2,
            ["name", "'X'"],
        ),
        ("from gptlab.spec import Experiment\nx = Experiment(name='x')\n", 2, ["why", "is required"]),
        (
            ONE.format(name="one") + "two = one.vary('two', why='?', **{'model.tide': True})\n",
            5,
            ["no spec field 'model.tide'", "did you mean 'model.tied'?"],
        ),
    ],
)
def test_mistake_in_a_file_is_one_line_that_names_file_and_line(
    write: Callable[..., None], source: str, line: int, words: list[str]
):
    write(broken=source, fine=ONE.format(name="one"))
    message = message_of(catalog.experiments)
    assert message.startswith(f"experiments/broken.py:{line}: ")
    assert "\n" not in message
    assert "Traceback" not in message
    assert all(word in message for word in words), message


def test_mistake_in_a_file_is_reported_every_time(write: Callable[..., None]):
    write(broken="x = 1 / 0\n")
    assert message_of(catalog.experiments) == message_of(catalog.find, "anything")


def test_file_that_is_not_utf8_is_named(write: Callable[..., None]):
    write(latin=b"x = '\xe9'\n")
    message = message_of(catalog.experiments)
    assert message.startswith("experiments/latin.py")
    assert "utf-8" in message


def test_mistake_in_an_imported_file_names_that_file(write: Callable[..., None]):
    write(a="import os\nfrom experiments.broken import x\n", broken="x = 1 / 0\n")
    assert re.match(r"experiments/(a\.py:2|broken\.py:1): ZeroDivisionError", message_of(catalog.experiments))


def test_syntax_error_in_an_imported_file_names_a_matching_file_and_line(write: Callable[..., None]):
    write(a="import os\nfrom experiments.broken import x\n", broken="\n\n\n\nx = = 1\n")
    assert re.match(r"experiments/(a\.py:2|broken\.py:5): SyntaxError", message_of(catalog.experiments))


# --- An unknown name ---


@pytest.mark.parametrize(("name", "nearest"), [("basline", "baseline"), ("baseline2", "baseline"), ("tin", "tiny")])
def test_unknown_name_suggests_the_nearest(write: Callable[..., None], name: str, nearest: str):
    write(a=ONE.format(name="baseline"), b=ONE.format(name="tiny"))
    assert message_of(catalog.find, name) == f"there is no experiment '{name}'; did you mean '{nearest}'?"


def test_unknown_name_without_a_similar_one_lists_all(write: Callable[..., None]):
    write(a=ONE.format(name="baseline"), b=ONE.format(name="tiny"))
    assert message_of(catalog.find, "zzz") == "there is no experiment 'zzz'; available: baseline, tiny"


# --- The experiments of this project ---


def test_baseline_is_the_reference_model_with_a_small_budget(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    baseline = catalog.find("baseline")
    assert baseline.model.parameters == 163_037_184
    assert baseline.data.text == "pandas-docs"
    train = baseline.train
    assert (train.sequence_length, train.batch_size, train.steps) == (100, 4, 100)
    assert (train.learning_rate, train.betas, train.weight_decay, train.grad_clip) == (3e-4, (0.9, 0.95), 0.1, 1.0)
    assert not train.snapshots


def test_tiny_is_a_small_version_of_the_reference_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    tiny = catalog.find("tiny")
    assert (tiny.model.n_layer, tiny.model.n_head, tiny.model.n_embd) == (4, 4, 128)
    assert (tiny.train.batch_size, tiny.train.sequence_length) == (8, 64)
    assert tiny.data.text == "pandas-docs"
    assert tiny.train.snapshots
    assert (tiny.model.bias, tiny.model.tied, tiny.model.dropout) == (True, False, 0.0)
