"""W&B's dashboard in the terminal, `wandb leet`, of one run or several: no account, no network.

leet reads W&B's own files. Those that lie in a run may be partial (written online after a resume, or on a full disk) or
missing (W&B was off), so the dashboard is shown files made from `metrics.jsonl`, which go when it is closed.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from gptlab import project
from gptlab.errors import BadInputError, GptlabError
from gptlab.tracking.mirror import Mirror
from gptlab.tracking.run import Run

REFRESH_S = 1.0


def show(runs: list[Run], notice: Callable[[str], None]) -> int:
    """Open the dashboard and wait until it is closed. Runs that are being trained move.

    Returns:
        The exit code of W&B's program.

    Raises:
        BadInputError: A run has no row yet, so there is nothing to see.
        GptlabError: W&B does not work here.
    """
    for run in runs:
        if not run.starts():
            raise BadInputError(f"{run.id} was never trained, so there is nothing to see yet")
    with tempfile.TemporaryDirectory(prefix="gptlab-dashboard-") as folder:
        into = Path(folder)
        mirrors = [Mirror(run, "offline", notice, into) for run in runs]
        for mirror in mirrors:
            mirror.nudge()
        moving = [mirror for mirror, run in zip(mirrors, runs, strict=True) if run.status() == "running"]
        for mirror in mirrors:
            if mirror not in moving:
                mirror.finish()
        for mirror in moving:
            mirror.wait_for("url")
        segments = [path.parent for path in into.glob("wandb/*/*.wandb")]
        if not segments:
            raise GptlabError("there is nothing to show")
        leet = _open(segments[0] if len(segments) == 1 else into / "wandb")
        while _is_open(leet):
            for mirror in moving:
                mirror.nudge()
        for mirror in moving:
            mirror.finish()
        return leet.returncode


def _open(shown: Path) -> subprocess.Popen[bytes]:
    # `-m` imports from where it stands, and wandb reads settings there: never in a run, which may be a stranger's.
    return subprocess.Popen([sys.executable, "-m", "wandb", "leet", str(shown)], cwd=project.root())


def _is_open(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(REFRESH_S)
    except subprocess.TimeoutExpired:
        return True
    return False
