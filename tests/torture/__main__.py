"""`make torture`: run trials for some minutes, or repeat one of them."""

import argparse
import itertools
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from torture.system import can_mount
from torture.trial import KINDS

NICENESS = 10


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        sys.exit(_fail(message))


def main() -> int:
    """Run the campaign and return the exit code: 1 if a trial failed."""
    parser = _Parser(prog="make torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trial", type=int, help="Run only this trial.")
    parser.add_argument("--name", nargs="*", help="Run only trials of these kinds.")
    options = parser.parse_args()
    kinds = options.name or KINDS
    for kind in kinds:
        if kind not in KINDS:
            return _fail(f"there is no kind {kind}; the kinds are: {', '.join(KINDS)}")
    if not 0 < options.minutes <= 10_000:
        return _fail(f"MINUTES must be more than 0 and at most 10,000, not {options.minutes:g}")
    if (options.trial or 0) < 0:
        return _fail(f"TRIAL must be 0 or more, not {options.trial}")
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    return _run(seed, options.trial, kinds, options.minutes)


def _run(seed: int, only: int | None, kinds: Sequence[str], minutes: float) -> int:
    began = time.monotonic()
    print(f"seed {seed}; repeat this campaign with: make torture SEED={seed} MINUTES={minutes:g}", flush=True)
    os.nice(NICENESS)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    root = Path(tempfile.mkdtemp(prefix="gptlab-torture-"))
    _set_environment(root)
    mounts = can_mount(root)
    if not mounts:
        print("a file system cannot be mounted here (unshare -rm): some trials are skipped")

    from torture.campaign import Campaign, kind_of, remove  # torch reads the environment, and takes seconds
    from torture.place import make_place
    from torture.warm import learn_commands, warm_up

    warm_up()
    failed, interrupted = True, False
    try:
        place = make_place(root, mounts=mounts)
        learn_commands(place)
        campaign = Campaign(place, seed)
        print(f"prepared in {time.monotonic() - began:.0f} s, in {root}", flush=True)
        try:
            if only is None:
                campaign.run(itertools.count(), kinds, began + 60 * minutes)
            else:
                campaign.run([only], [kind_of(only)], began + 60 * max(minutes, 10))
        except KeyboardInterrupt:
            interrupted = True
        print("\n".join(campaign.summary()))
        failed = campaign.failed
    finally:
        os.chdir("/")
        if failed:
            print(f"kept: {root}")
        else:
            remove(root)
    return 130 if interrupted else int(failed)


def _set_environment(root: Path) -> None:
    """Let no command see the user's settings, temporary files or W&B account."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "GPTLAB_"))]:
        del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = "1"  # results depend on it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # on a GPU a replay has other bits
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # Arrow's own reserves memory that a limit would count
    for variable, name in (("HOME", "home"), ("TMPDIR", "tmp"), ("WANDB_CONFIG_DIR", "wandb-config")):
        (root / name).mkdir()
        os.environ[variable] = str(root / name)
    tempfile.tempdir = None  # it was read from the old TMPDIR
    os.environ["NETRC"] = str(root / "netrc")
    os.environ["XDG_CACHE_HOME"] = str(root / "home")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
