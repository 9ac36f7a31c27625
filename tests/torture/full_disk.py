"""The disk is full at any moment; when there is space again, the run ends with the undisturbed run's bytes."""

import errno
import os
import shutil
from pathlib import Path

from torture import process, system
from torture.place import TRAIN, Place, acts_at, check_checkpoints, check_finished, use
from torture.process import check_manners
from torture.trial import Trial

DISK_BYTES = 64 << 20
SPARE_BYTES = 4 << 20


def attempt(place: Place, trial: Trial) -> None:
    """Fill the disk during one or two attempts, then finish the run."""
    random = trial.random()
    name, beginning = random.choice(place.experiments), random.choice((None, "extended", "killed"))
    run, real = place.ids[name], place.mounts and random.random() < 0.6
    copied = place.copy(beginning, trial.folder, only=f"{name}-*") if beginning else place.empty(trial.folder)
    if real:
        copied = _on_small_disk(copied)
    filler = copied / "filler"
    for _ in range(random.randint(1, 2)):
        if real:
            at, left = random.randint(1, place.operations[name]), int(10 ** random.uniform(0, 6.5))
            prepare = acts_at(at, lambda left=left: fill(filler, left))
        else:
            limit = int(10 ** random.uniform(0, 6.7))
            prepare = lambda limit=limit: system.limit_file_size(limit)  # noqa: E731 — a value like the one above
        check_manners(process.run("run", name, *TRAIN, prepare=prepare), {0, 1})
        check_checkpoints(copied / "runs")
        filler.unlink(missing_ok=True)
    check_manners(process.run("run", name, *TRAIN), {0})
    check_finished(copied / "runs" / run, place.root / "finished" / "runs" / run)


def fill(filler: Path, left: int) -> None:
    """Fill the disk except for some bytes."""
    with filler.open("ab") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(filler.parent).free - left, 1))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def _on_small_disk(copied: Path) -> Path:
    """Move the copy to a small disk that only this trial sees."""
    disk = copied.with_name("disk")
    disk.mkdir()
    system.enter_namespace()
    system.mount_small_disk(disk, DISK_BYTES)
    shutil.copytree(copied, disk, dirs_exist_ok=True)
    use(disk)
    return disk
