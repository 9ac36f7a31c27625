"""The project, the undisturbed runs, and the copies of them that trials break."""

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from operations import Operations

from gptlab.checkpoints.manifest import CHECKPOINTS, MODEL, OPTIMIZER, compute_digest, list_checkpoints
from gptlab.spec import Experiment
from gptlab.tracking.metrics import DETERMINISTIC, METRICS
from gptlab.tracking.run import SAMPLES
from torture import process
from torture.process import check_manners
from torture.trial import require

SENTENCE = "the a model learns to read one token after another and so it writes what it has read"
MICRO = {
    "name": "micro",
    "why": "Does it hold?",
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 4, "context_length": 32},
    "data": {"val_windows": 4},
    "train": {
        "sequence_length": 16,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "steps": 40,
        "log_every": 5,
        "eval_every": 10,
        "checkpoint_every": 10,
    },
}
OTHER = {
    **MICRO,
    "name": "other",
    "why": "Does it hold with dropout and many saves?",
    "model": {**MICRO["model"], "n_layer": 1, "dropout": 0.1},
    "train": {**MICRO["train"], "checkpoint_every": 3, "log_every": 2, "snapshots": True},
}
STEPS = 40
KILLED = 77
"""Exit code of a process that dies on purpose."""
EXPERIMENTS = ("micro", "other")
TRAIN = ("--wandb", "off")


@dataclass(frozen=True)
class Place:
    """The folder of a campaign.

    Attributes:
        root: Everything is below it.
        mounts: Whether file systems can be mounted.
        experiments: The names of the experiments.
        operations: The number of file operations of an undisturbed run of each.

    project/    experiments/{micro,other}.py; the working directory
    words.txt   the text
    finished/   runs/: micro and other, seeds 0 and 1, each with its 40 steps and an evaluation; cache/
    extended/   the same of micro and other, begun with 20 steps each
    killed/     micro and other, killed between two checkpoints
    """

    root: Path
    mounts: bool
    experiments: tuple[str, ...] = ()
    operations: dict[str, int] = field(default_factory=dict)

    def copy(self, name: str, folder: Path, *, only: str = "*") -> Path:
        """Copy runs and the cache of that name into a trial's folder, and let this process use them.

        The times of the files stay, so that they count as settled.

        Args:
            name: `finished`, `extended` or `killed`.
            folder: The trial's folder.
            only: A pattern of the runs' ids.
        """
        copied = folder / "copy"
        shutil.copytree(self.root / name / "cache", copied / "cache")
        for run in (self.root / name / "runs").glob(only):
            if run.is_dir():
                shutil.copytree(run, copied / "runs" / run.name, symlinks=True)
        use(copied)
        return copied

    def empty(self, folder: Path) -> Path:
        """Make empty runs and an empty cache in a trial's folder, and let this process use them."""
        (folder / "copy" / "runs").mkdir(parents=True)
        (folder / "copy" / "cache").mkdir()
        use(folder / "copy")
        return folder / "copy"

    @functools.cached_property
    def ids(self) -> dict[str, str]:
        """The runs' ids by experiment and seed, if that is not 0: `micro`, `micro 1`, `other`, `other 1`."""
        found = sorted(path.name for path in (self.root / "finished" / "runs").glob("*-s*"))
        names = [name for experiment in self.experiments for name in (experiment, f"{experiment} 1")]
        return dict(zip(names, found, strict=True))


def use(folder: Path) -> None:
    """Let this process and its children use the runs and the cache of a folder."""
    os.environ["GPTLAB_RUNS"], os.environ["GPTLAB_CACHE"] = str(folder / "runs"), str(folder / "cache")


def _nothing() -> None:
    pass


def make_place(root: Path, *, mounts: bool, experiments: Sequence[str] = EXPERIMENTS) -> Place:
    """Make the project and the undisturbed runs. The working directory changes to the project."""
    _make_project(root)
    os.chdir(root / "project")
    place = Place(root, mounts, tuple(experiments))
    for name in ("finished", "extended", "killed"):
        (root / name / "runs").mkdir(parents=True)
        (root / name / "cache").mkdir()
    for name in experiments:
        use(root / "finished")
        place.operations[name] = count_operations("run", name, *TRAIN)
        must("run", name, "--seed", "1", *TRAIN)
        use(root / "extended")
        must("run", name, "--steps", "20", *TRAIN)
        use(root / "killed")
        dies = acts_at(int(0.7 * place.operations[name]), lambda: os._exit(KILLED))
        must("run", name, *TRAIN, code=KILLED, prepare=dies)
    use(root / "finished")
    for run in place.ids.values():
        must("eval", run)
    return place


def must(
    *words: str, code: int = 0, prepare: Callable[[], object] = _nothing, at_end: Callable[[], object] = _nothing
) -> None:
    """Run a command that is not disturbed, or dies in a way that is known."""
    outcome = process.run(*words, prepare=prepare, at_end=at_end)
    require(outcome.code == code, f"an undisturbed command failed: {outcome}")
    check_manners(outcome, {code})


def count_operations(*words: str) -> int:
    """Run a command and return the number of its operations on files."""
    operations, counted = Operations(0, _nothing), _folder_of_runs() / "counted"
    must(
        *words,
        prepare=lambda: operations.watch(_folder_of_runs()),
        at_end=lambda: counted.write_text(str(operations.count)),
    )
    number = int(counted.read_text())
    counted.unlink()
    return number


def _folder_of_runs() -> Path:
    return Path(os.environ["GPTLAB_RUNS"]).parent


def acts_at(number: int, act: Callable[[], None]) -> Callable[[], None]:
    """Return what a child calls first, so that it calls `act` at its N-th operation on its runs and its cache."""
    return lambda: Operations(number, act).watch(_folder_of_runs())


def check_checkpoints(runs: Path) -> None:
    """Check that every committed checkpoint is whole."""
    for run in runs.glob("*-s*"):
        for found in list_checkpoints(run):
            whole = {name: compute_digest(found.directory / name) for name in found.manifest.files}
            require(whole == found.manifest.files, f"{found.directory} is committed and not whole")


def check_finished(run: Path, undisturbed: Path) -> None:
    """Check that a run ended like the undisturbed one, and kept what that one keeps."""
    check_tensors(run, undisturbed)
    check_rows(run, undisturbed)
    check_kept(run, undisturbed)


def check_tensors(run: Path, undisturbed: Path) -> None:
    """Check that a run ended with the weights and moments of the undisturbed one."""
    require(run.is_dir(), f"{run} is gone")
    for name in (MODEL, OPTIMIZER):
        ours, theirs = (one / CHECKPOINTS / f"step-{STEPS:08d}" / name for one in (run, undisturbed))
        require(ours.is_file(), f"{ours} is missing")
        require(ours.read_bytes() == theirs.read_bytes(), f"{ours} has not the bytes of the undisturbed run")


def check_rows(run: Path, undisturbed: Path) -> None:
    """Check that a run has the metrics of the undisturbed one, and its samples."""
    ours, theirs = deterministic_rows(run), deterministic_rows(undisturbed)
    require(ours == theirs, f"{run / METRICS} has not the numbers of the undisturbed run:\n{ours}\n{theirs}")
    ours, theirs = (
        [json.loads(line) for line in (one / SAMPLES).read_bytes().splitlines()] for one in (run, undisturbed)
    )
    lacking = [row for row in theirs if row not in ours]
    require(not lacking, f"{run / SAMPLES} lacks samples of the undisturbed run: {lacking}")
    require(len(ours) == len({row["step"] for row in ours}), f"{run / SAMPLES} has a sample twice: {ours}")


def check_kept(run: Path, undisturbed: Path) -> None:
    """Check that a run keeps what the undisturbed one keeps, except that a checkpoint to resume from may be another."""
    ours, theirs = ({c.step: c for c in list_checkpoints(one)} for one in (run, undisturbed))
    lost = [step for step, one in theirs.items() if step not in ours and not one.resumable]
    require(not lost, f"{run} lacks the checkpoints of steps {lost}")
    for step in ours.keys() & theirs.keys():
        ours_, theirs_ = ((found[step].directory / MODEL).read_bytes() for found in (ours, theirs))
        require(ours_ == theirs_, f"the weights of step {step} in {run} are not those of the undisturbed run")


def deterministic_rows(run: Path) -> list[dict[str, object]]:
    """Return the rows of metrics with the columns that training again reproduces."""
    rows = [json.loads(line) for line in (run / METRICS).read_bytes().split(b"\n")[:-1]]
    return [{key: row[key] for key in DETERMINISTIC if key in row} for row in rows]


def _make_project(root: Path) -> None:
    choose, text = Random(0), root / "words.txt"
    sentences = [
        " ".join(choose.choices(SENTENCE.split(), k=choose.randrange(4, 12))).capitalize() + "." for _ in range(500)
    ]
    text.write_text("\n".join(sentences) + "\n")
    project = root / "project"
    (project / "experiments").mkdir(parents=True)
    (project / "pyproject.toml").write_text('[project]\nname = "torture"\nversion = "0"\ndependencies = ["gptlab"]\n')
    for spec in (MICRO, OTHER):
        document = {**spec, "data": {**spec["data"], "text": str(text)}}
        Experiment.model_validate(document)
        (project / "experiments" / f"{spec['name']}.py").write_text(
            f"from gptlab.spec import Experiment\n\n{spec['name']} = Experiment.model_validate({document!r})\n"
        )
    git = ["git", "-C", str(project), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
