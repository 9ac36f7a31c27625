"""Fixtures for all tests: separate directories for runs and cache, a small text, a micro experiment, no network."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache as cache_calls
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts: results depend on it, and workers share the cores
os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # Arrow's own reserves room that a test's limit would count

from gptlab import project as projects
from gptlab.limits import processors
from gptlab.spec import DataSpec, Experiment, ModelSpec, TrainSpec
from gptlab.tracking import working_tree

if TYPE_CHECKING:
    from gptlab.commands.run import Result
    from gptlab.tracking.run import Run
    from gptlab.training.loop import Hooks

# Every test with @given is run by `make test` with a hundred examples and by `make fuzz` with many more. A slow one
# takes its share: @settings(max_examples=settings.default.max_examples // 4).
for profile in ("default", "ci"):  # hypothesis takes the second one by itself where CI is set
    hypothesis.settings.register_profile(
        profile,
        parent=hypothesis.settings.get_profile(profile),
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
    )
hypothesis.settings.register_profile("fast", parent=hypothesis.settings.get_profile("default"), max_examples=10)
hypothesis.settings.register_profile(
    "fuzz", parent=hypothesis.settings.get_profile("default"), max_examples=int(os.environ.get("EXAMPLES", "10000"))
)

ROOT = Path(__file__).parents[1]
SENTENCE = "the a model learns to read one token after another and so it writes what it has read"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="run the tests in tests/gpu on a CUDA device")
    parser.addoption("--slurm", action="store_true", help="start a Slurm, and run the tests in tests/slurm with it")


def pytest_configure(config: pytest.Config) -> None:
    """Hide CUDA from all tests and their processes, except with --gpu, so that `auto` is the CPU on every machine."""
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: kernels are tested on the CPU
    gc.disable()  # until `pytest_collection_finish`: imports and tests that are collected are no garbage
    sys.modules["rfc3987_syntax"] = None  # jsonschema, behind nbformat, works without it; it takes each worker 1.2 s
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before CUDA starts, for deterministic kernels


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Spare the garbage collector the objects that live as long as this process: libraries and collected tests.

    It otherwise looks through all of them again and again. This takes 5% of the CPU time of tests that train.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker more than processors: tests spend a fifth of their time waiting for processes, servers and signals."""
    return processors().threads + 1


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def places(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a test does is seen by another, by the user's runs or by a W&B account."""
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("GPTLAB_CACHE", str(cache))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("analysis.progress.PATIENCE_S", 3600.0)  # what is printed does not depend on the machine's load
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_CONFIG_DIR"]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="session")
def remembered_changes() -> Iterator[None]:
    """Ask git once about this repository, which no test edits: seven processes take half of the time of a short run."""
    ask = working_tree.uncommitted_changes
    ask_once = cache_calls(ask)

    def answer(repository: working_tree.Repository, limit: int) -> bytes:
        return (ask_once if projects.root() == ROOT else ask)(repository, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptlab.tracking.provenance.uncommitted_changes", answer)
        yield


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 20 kB of sentences, always the same."""
    choose = random.Random(0)
    lines = [
        " ".join(choose.choices(SENTENCE.split(), k=choose.randrange(4, 12))).capitalize() + "." for _ in range(500)
    ]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def micro(text_file: Path) -> Experiment:
    """An experiment whose steps take milliseconds; with the tokens of GPT-2 they would take five times as long."""
    return Experiment(
        name="micro",
        why="Does it hold?",
        model=ModelSpec(vocab_size=256, n_layer=2, n_head=2, n_embd=8, context_length=32),
        data=DataSpec(text=str(text_file), tokenizer="bytes", val_windows=4),
        train=TrainSpec(
            sequence_length=16,
            batch_size=2,
            learning_rate=1e-2,
            steps=40,
            log_every=5,
            eval_every=10,
            checkpoint_every=10,
        ),
    )


@pytest.fixture(scope="session")
def gpt2_micro(micro: Experiment) -> Experiment:
    """The same with the tokens of GPT-2, for what depends on them or needs large files."""
    return micro.with_changes({"data.tokenizer": "gpt2", "model.vocab_size": 50257})


@pytest.fixture(scope="session")
def project_under_git(tmp_path_factory: pytest.TempPathFactory, micro: Experiment) -> Path:
    """A project, under git, that has the experiment `micro`; tests get copies."""
    folder = tmp_path_factory.mktemp("committed") / "project"
    (folder / "experiments").mkdir(parents=True)
    (folder / "pyproject.toml").write_text("[tool.gptlab]\n")
    spec = micro.model_dump(include={"name", "why", "model", "data", "train"})
    (folder / "experiments" / "micro.py").write_text(
        f"from gptlab.spec import Experiment\nmicro = Experiment.model_validate({spec!r})\n"
    )
    git = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_under_git: Path) -> Path:
    """A project of its own, under git, that has the experiment `micro`."""
    folder = shutil.copytree(project_under_git, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def train() -> Callable[..., Result]:
    """`train(experiment, seed=0, steps=…, hooks=…, …)` runs an experiment as the command does, with W&B off."""
    from support import run_attempt

    return run_attempt


@pytest.fixture(scope="session")
def long_run(micro: Experiment, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The forty steps of the micro experiment without interruption, in a separate runs directory."""
    from support import run_attempt

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(tmp_path_factory.mktemp("undisturbed")))
        patch.setenv("GPTLAB_CACHE", str(cache))
        return run_attempt(micro).run


@pytest.fixture
def signal_at_step() -> Callable[..., Hooks]:
    """`signal_at_step(step, signal)` returns hooks that send this process a real signal after that step."""
    from gptlab.training.loop import Hooks

    def arrange(step: int, number: signal.Signals = signal.SIGINT) -> Hooks:
        def send(done: int, loss: float | None) -> None:
            if done == step:
                os.kill(os.getpid(), number)

        return Hooks(on_step=[send])

    return arrange
