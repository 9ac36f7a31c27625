"""The process that mirrors one run in W&B, so that nothing which W&B does can hold up or end the one that trains.

    python -m gptlab.tracking.wandb_process RUN_DIRECTORY INTO MODE FINISH_S

It reads the run's directory and nothing else. Standard input says when: a line, that there is something new; its end,
that the attempt is over, whether it finished or was killed. Then the rest is sent, and the process ends. What it has to
say are JSON documents on standard output, a line each: `mode` and `why`, `url`, `problem`, and `step` when all is done.
"""

import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from filelock import FileLock

from gptlab.errors import EXIT_FAILED, GptlabError
from gptlab.tracking import run as runs
from gptlab.tracking.metrics import NewRows
from gptlab.tracking.mirror import AUTO, SYNC, Mode, longest_s, upload_s
from gptlab.tracking.run import Run
from gptlab.tracking.synced import Content
from gptlab.tracking.wandb_run import WandbRun, choose_mode, server


def main() -> None:
    """Mirror a run until standard input ends."""
    directory, into, wanted, finish_s = sys.argv[1:]
    for received in (signal.SIGINT, signal.SIGTERM):  # meant for the process that trains, which says when to end
        signal.signal(received, signal.SIG_IGN)
    said = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever W&B prints

    def say(**facts: Any) -> None:
        with suppress(OSError):  # nobody listens any more
            os.write(said, json.dumps(facts).encode() + b"\n")

    # W&B leaves temporary files to hooks at exit, which do not run here.
    with TemporaryDirectory(prefix="gptlab-wandb-", ignore_cleanup_errors=True) as tempfile.tempdir:
        try:
            _mirror(runs.load(Path(directory)), Path(into), wanted, float(finish_s), say)
        except Exception as error:
            say(problem=_in_words(error))
    os._exit(0)  # W&B's own hooks at exit would wait for its service, however long that takes


def _mirror(run: Run, into: Path, wanted: str, finish_s: float, say: Callable[..., None]) -> None:
    mode, why = _decide(wanted)
    say(mode=mode, why=why)
    if mode == "off" or not _something_new():
        return
    own = into / "wandb"
    own.mkdir(exist_ok=True)
    with FileLock(own / f"{run.id}.lock", fallback_to_soft=False):  # a process that outlived its attempt goes first
        trained = into == run.directory and wanted != SYNC
        mirrored = WandbRun(run, into, mode, upload_s(run, finish_s), os.getppid() if trained else None)
        say(url=mirrored.url)
        rows = NewRows(run.directory)
        mirrored.log(rows)
        while _something_new():
            mirrored.log(rows)
        signal.alarm(math.ceil(longest_s(run, finish_s)))
        content = Content.of(run)
        mirrored.log(rows)
        problems = [_problem(mirrored.add_samples)]
        if into == run.directory:
            problems.append(_problem(mirrored.add_artifact))
        mirrored.finish(0 if run.outcome() == "complete" else EXIT_FAILED)
        if any(problems):
            raise GptlabError("; ".join(filter(None, problems)))
        if mode == "online":
            content.note_synced(run)
        say(step=rows.last_step)


def _decide(wanted: str) -> tuple[Mode, str]:
    if wanted != SYNC:
        return choose_mode(None if wanted == AUTO else cast(Mode, wanted))
    found = server()
    objection = found.objection() if found else "there is no API key; `wandb login` sets one"
    if found is None or objection:
        raise GptlabError(str(objection))
    return "online", found.url


def _something_new() -> bool:
    """Wait for the process that trains; False when it is done."""
    return bool(os.read(0, 1 << 16))


def _problem(work: Callable[[], None]) -> str | None:
    try:
        work()
    except Exception as error:
        return _in_words(error)
    return None


def _in_words(error: Exception) -> str:
    kind = "" if isinstance(error, GptlabError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())


if __name__ == "__main__":
    main()
