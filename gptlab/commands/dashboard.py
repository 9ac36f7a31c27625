"""`gptlab dashboard`: open runs in W&B's terminal dashboard, `wandb leet`, which needs no account and no network.

leet reads W&B's own files. Those of a run may be incomplete (written online after a resume, or on a full disk) or
missing (W&B was off). So leet is given temporary files, which the mirror writes from `metrics.jsonl`.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from gptlab import project
from gptlab.errors import BadInputError, GptlabError
from gptlab.mirror.environment import wandb_environment
from gptlab.mirror.mirror import Mirror
from gptlab.temporary import temporary_directory
from gptlab.tracking.run import Run

REFRESH_S = 1.0
VIEW = {"metrics_filter": {"query": "loss$|bpb$"}}
"""The charts that leet opens with, as a regular expression, instead of all in alphabetical order. leet displays the
filter with the keys that change or clear it."""


def show(runs: list[Run], notice: Callable[[str], None]) -> int:
    """Open the dashboard and wait until it is closed. Runs that are training are updated meanwhile.

    Returns:
        The exit code of W&B's program.

    Raises:
        BadInputError: A run was never trained.
        GptlabError: W&B wrote no file for the dashboard.
    """
    for run in runs:
        if not run.history().starts:
            raise BadInputError(f"{run.id} was never trained; train it with: gptlab resume {run.reference}")
    with temporary_directory("dashboard") as wandb_parent:
        training = _mirror(runs, wandb_parent, notice)
        (wandb_parent / "wandb" / ".wandb-leet.json").write_text(json.dumps(VIEW))
        leet = _open_leet(path_to_open(wandb_parent))
        while _is_open(leet):
            for mirror in training:
                mirror.notify()
        for mirror in training:
            mirror.finish()
        return leet.returncode


def path_to_open(wandb_parent: Path) -> Path:
    """Return the path for leet: the folder of the only run below `wandb/`, or `wandb/` itself for several runs.

    Raises:
        GptlabError: The mirror wrote no file.
    """
    folders = [path.parent for path in wandb_parent.glob("wandb/*/*.wandb")]
    if not folders:
        raise GptlabError("W&B wrote no file that the dashboard could display")
    return folders[0] if len(folders) == 1 else wandb_parent / "wandb"


def _mirror(runs: list[Run], wandb_parent: Path, notice: Callable[[str], None]) -> list[Mirror]:
    """Mirror the runs offline. Returns the mirrors of runs that are training, which stay open."""
    mirrors = [Mirror(run, "offline", notice, wandb_parent) for run in runs]
    for mirror in mirrors:
        mirror.notify()
    training = [mirror for mirror, run in zip(mirrors, runs, strict=True) if run.history().status == "running"]
    for mirror in mirrors:
        if mirror not in training:
            mirror.finish()
    for mirror in training:
        mirror.wait_for("url")
    return training


def _open_leet(path: Path) -> subprocess.Popen[bytes]:
    # wandb reads settings in its working directory: never in a run, which may be untrusted.
    command = [sys.executable, "-m", "wandb", "leet", str(path)]
    return subprocess.Popen(command, cwd=project.find_root() or "/", env=wandb_environment())


def _is_open(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(REFRESH_S)
    except subprocess.TimeoutExpired:
        return True
    return False
