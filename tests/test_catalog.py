"""How experiments are found, and what a file that misbehaves costs: its own experiments."""

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptlab import catalog, cli, experiment_files
from gptlab.errors import BadInputError, GptlabError

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


def message_of(name: str) -> str:
    with pytest.raises(BadInputError) as caught:
        catalog.find(name)
    return str(caught.value)


def only_problem() -> str:
    (problem,) = catalog.load().problems
    return problem.message


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
    write(a=ONE.format(name="same"), b=ONE.format(name="same"), c=ONE.format(name="other"))
    message = message_of("same")
    assert "'same'" in message
    assert "experiments/a.py" in message
    assert "experiments/b.py" in message
    assert list(catalog.experiments()) == ["other"], "experiments of other names can be used"


def test_two_experiments_of_one_name_in_one_file_are_an_error(write: Callable[..., None]):
    write(a=ONE.format(name="same") + "\nother = Experiment(name='same', why='Another?')\n")
    assert "two experiments are named 'same'" in message_of("same")


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
    assert list(catalog.experiments()) == ["one"]
    message = only_problem()
    assert message.startswith(f"experiments/broken.py:{line}: ")
    assert "\n" not in message
    assert "Traceback" not in message
    assert all(word in message for word in words), message


def test_mistake_in_a_file_is_reported_every_time(write: Callable[..., None]):
    write(broken="x = 1 / 0\n")
    assert only_problem() == only_problem() == "experiments/broken.py:1: ZeroDivisionError: division by zero"


def test_file_that_is_not_utf8_is_named(write: Callable[..., None]):
    write(latin=b"x = '\xe9'\n")
    message = only_problem()
    assert message.startswith("experiments/latin.py")
    assert "utf-8" in message


def test_mistake_in_an_imported_file_names_that_file(write: Callable[..., None]):
    write(a="import os\nfrom experiments.broken import x\n", broken="x = 1 / 0\n")
    first, second = (problem.message for problem in catalog.load().problems)
    assert re.match(r"experiments/(a\.py:2|broken\.py:1): ZeroDivisionError", first)
    assert second == "experiments/broken.py:1: ZeroDivisionError: division by zero"


def test_syntax_error_in_an_imported_file_names_a_matching_file_and_line(write: Callable[..., None]):
    write(a="import os\nfrom experiments.broken import x\n", broken="\n\n\n\nx = = 1\n")
    first, second = (problem.message for problem in catalog.load().problems)
    assert re.match(r"experiments/(a\.py:2|broken\.py:5): SyntaxError", first)
    assert second.startswith("experiments/broken.py:5: SyntaxError")


# --- Files that do harm ---


def test_only_regular_files_with_a_modules_name_count(write: Callable[..., None], tmp_path: Path):
    write(one=ONE.format(name="one"), __init__="", _private="x = 1 / 0", **{"._one": b"\0\xff", ".#hidden": "= ="})
    folder = tmp_path / "project" / "experiments"
    (folder / ".#one.py").symlink_to("user@host.4711")  # the lock of an editor
    (folder / "dangling.py").symlink_to("nowhere")
    (folder / "folder.py").mkdir()
    os.mkfifo(folder / "pipe.py")
    for name in ("one.py~", "#one.py#", ".one.py.swp", "one.pyc", "one.ipynb"):
        (folder / name).write_text("x = 1 / 0")
    (folder / "linked.py").symlink_to(tmp_path / "elsewhere.py")
    (tmp_path / "elsewhere.py").write_text(ONE.format(name="two"))
    assert set(catalog.experiments()) == {"one", "two"}
    assert catalog.load().problems == []


HARMFUL = {
    "exits": ("import sys\nsys.exit(3)", "experiments/m.py:2: SystemExit: 3"),
    "exits without a word": ("exit()", "experiments/m.py:1: SystemExit: None"),
    "ends the interpreter": ("import os\nos._exit(0)", "experiments/m.py: its import exited with 0"),
    "crashes": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "experiments/m.py: its import was ended by SIGKILL",
    ),
    "never ends": ("while True: pass", "experiments/m.py: its import did not end within 0.3 s"),
    "raises what only Ctrl-C does": ("raise KeyboardInterrupt", "experiments/m.py:1: KeyboardInterrupt"),
    "recurses": ("def f(): return f()\nf()", "experiments/m.py:1: RecursionError: maximum recursion depth"),
    "raises what cannot be printed": (
        "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
        "experiments/m.py:3: E",
    ),
    "raises lines and control codes": (
        "raise ValueError('a\\n\\x1b[31mb')",
        "experiments/m.py:1: ValueError: a �[31mb",
    ),
    "closes all files": ("import os\nos.closerange(0, 256)", "experiments/m.py: its import "),
    "removes itself": ("import os\nos.unlink(__file__)\nx = 1 / 0", "experiments/m.py:3: ZeroDivisionError"),
    "makes an invalid experiment": (
        "from gptlab.spec import Experiment\nx = Experiment.model_construct(name='UP', why='?')",
        "experiments/m.py: name: ",
    ),
    "has dots in its name": None,
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_file_costs_its_own_experiments_and_one_line(
    write: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr(experiment_files, "IMPORT_LIMIT_S", 0.3 if name == "never ends" else 60)
    file = "m" if HARMFUL[name] else "m.orig"
    source, message = HARMFUL[name] or (ONE.format(name="copy"), "experiments/m.orig.py: a module's name has no dots")
    write(**{"a": ONE.format(name="one"), file: source, "z": ONE.format(name="two")})
    found = catalog.load()
    assert list(found.experiments) == ["one", "two"]
    (problem,) = found.problems
    assert problem.message.startswith(message)
    assert "\n" not in problem.message


RUDE = {
    "prints": "print('hello')\nimport os\nos.write(1, b'hello')\nos.system('echo hello')",
    "replaces stdout": "import sys\nsys.stdout.close()\nsys.stdout = None\nsys.stderr = None",
    "changes the directory": "import os\nos.chdir('/')",
    "empties the path": "import sys\nsys.path.clear()\nsys.meta_path.clear()",
    "forgets modules": "import sys\nsys.modules.clear()",
    "changes the environment": "import os\nos.environ.clear()",
    "handles signals": "import signal\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)",
    "fails at exit": "import atexit\natexit.register(lambda: print(1 / 0))",
    "leaves a thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()",
    "warns and logs": "import logging, warnings\nlogging.basicConfig(level=0)\nwarnings.warn('w')\nlogging.error('e')",
    "breaks a builtin": "import builtins\nbuiltins.isinstance = None",
    "breaks gptlab": "import gptlab.spec\ngptlab.spec.Experiment.vary = None",
    "is odd to look at": "class Odd:\n    def __eq__(self, other): 1 / 0\n    __repr__ = __eq__\nodd = Odd()",
}


@pytest.mark.parametrize("name", RUDE)
def test_a_rude_file_changes_nothing_for_others_and_keeps_json_clean(
    write: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
):
    write(m=RUDE[name] + ONE.format(name="rude"), z="from experiments.a import one\ntwo = one.vary('two', why='?')\n")
    write(a=ONE.format(name="one"))
    before = (Path.cwd(), list(sys.path), dict(os.environ), signal.getsignal(signal.SIGTERM), threading.active_count())
    monkeypatch.setattr(sys, "argv", ["gptlab", "list", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    names = [experiment["name"] for experiment in json.loads(capfd.readouterr().out)]
    assert [name for name in names if name != "rude"] == ["one", "two"]
    after = (Path.cwd(), list(sys.path), dict(os.environ), signal.getsignal(signal.SIGTERM), threading.active_count())
    assert after == before


def test_experiments_of_a_file_that_does_more_than_define_them_are_found_as_they_are(write: Callable[..., None]):
    write(
        a="import math\n" + ONE.format(name="one"),
        many="from experiments.a import one\nfor n in range(300):\n"
        "    globals()[f'e{n}'] = one.vary(f'e{n}', why='?', **{'train.learning_rate': 1 / (n + 3)})\n",
        same="import experiments.a as other\nalias = other.one\n",
    )
    found = catalog.experiments()
    assert list(found) == ["one", *(f"e{n}" for n in range(300))]
    assert found["e7"] == found["one"].vary("e7", why="?", **{"train.learning_rate": 0.1})


def test_a_file_may_have_the_name_of_a_standard_module(write: Callable[..., None], tmp_path: Path):
    (tmp_path / "project" / "json.py").write_text("x = 1 / 0\n")
    write(json=ONE.format(name="one"), random="import json\n" + ONE.format(name="two"), signal=ONE.format(name="three"))
    assert list(catalog.experiments()) == ["one", "two", "three"]
    assert str(tmp_path / "project") not in sys.path, "the project's json.py would be imported by others"


def test_experiments_of_another_project_are_read_anew(write: Callable[..., None], tmp_path: Path, monkeypatch):
    write(a=ONE.format(name="one"))
    assert list(catalog.experiments()) == ["one"]
    other = tmp_path / "other"
    (other / "experiments").mkdir(parents=True)
    (other / "pyproject.toml").write_text("[tool.gptlab]\n")
    (other / "experiments" / "a.py").write_text(ONE.format(name="two"))
    monkeypatch.chdir(other)
    assert list(catalog.experiments()) == ["two"]


def test_ctrl_c_during_the_import_of_a_file_names_the_file(write: Callable[..., None]):
    write(slow="import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(99)\n")
    with pytest.raises(GptlabError, match=r"^interrupted while importing experiments/slow.py$") as caught:
        catalog.load()
    assert caught.value.exit_code == 130
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


# --- The commands ---


@pytest.fixture
def gptlab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gptlab", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_commands_work_for_other_experiments_and_name_the_broken_file_once(
    write: Callable[..., None], gptlab: Callable[..., tuple[int, str, str]]
):
    write(a=ONE.format(name="one"), broken="\nwide = = 1\n")
    line = "experiments/broken.py:2: SyntaxError: invalid syntax (broken.py, line 2)\n"
    code, out, err = gptlab("list", "--json")
    assert ([e["name"] for e in json.loads(out)], code, err) == (["one"], 0, f"note: {line}")
    assert gptlab("list")[2] == f"note: {line}"
    assert gptlab("run", "wide") == gptlab("show", "wide") == (2, "", f"error: {line}")
    code, out, err = gptlab("run", "other")
    assert (code, out, err) == (2, "", f"note: {line}error: there is no experiment 'other'; available: one\n")
    code, out, err = gptlab("run", "one", "--text", "nowhere.txt")
    assert (code, err.splitlines()[0]) == (2, f"note: {line}".rstrip())
    assert "nowhere.txt" in err.splitlines()[1]


def test_a_folder_that_cannot_be_read_is_named(write: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    write(a=ONE.format(name="one"))

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refused)
    assert message_of("one") == "experiments cannot be read: Permission denied"


# --- An unknown name ---


@pytest.mark.parametrize(("name", "nearest"), [("basline", "baseline"), ("baseline2", "baseline"), ("tin", "tiny")])
def test_unknown_name_suggests_the_nearest(write: Callable[..., None], name: str, nearest: str):
    write(a=ONE.format(name="baseline"), b=ONE.format(name="tiny"))
    assert message_of(name) == f"there is no experiment '{name}'; did you mean '{nearest}'?"


def test_unknown_name_without_a_similar_one_lists_all(write: Callable[..., None]):
    write(a=ONE.format(name="baseline"), b=ONE.format(name="tiny"))
    assert message_of("zzz") == "there is no experiment 'zzz'; available: baseline, tiny"


def test_unknown_name_hints_at_a_file_whose_name_excludes_it(write: Callable[..., None]):
    write(a=ONE.format(name="one"), Two=ONE.format(name="two"))
    message = message_of("two")
    assert message.endswith("available: one; not read, because its name does not begin with a to z: Two.py")


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
    assert not tiny.train.snapshots, "they would take most of the disk space of its runs"
    assert (tiny.model.bias, tiny.model.tied, tiny.model.dropout) == (True, False, 0.0)


def test_the_files_of_this_project_need_no_child_process(monkeypatch):
    monkeypatch.setattr(experiment_files, "_import_in_child", lambda file: pytest.fail(f"{file} starts a process"))
    monkeypatch.chdir(ROOT)
    found = catalog.load()
    assert not found.problems
    assert {"tiny", "baseline"} <= found.experiments.keys()
    assert "learning-rate" in found.sweeps
