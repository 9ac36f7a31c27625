"""A random file of a run or of the cache is damaged: every command says the right number, or names the damage."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from torture import claims, process
from torture.place import STEPS, TRAIN, Place, check_rows, check_tensors
from torture.process import Outcome, check_manners
from torture.trial import PromiseBrokenError, Trial, require

NO_NUMBERS = ("samples.jsonl", "log.txt", "wandb", "profile", "lock", "heartbeat")
"""Files of a run that hold no numbers: damage to them may go unnoticed."""
WEIGHTS = {"metrics.jsonl": 6, "manifest.json": 6, "attempts.jsonl": 3, "run.json": 3, ".u16": 4, ".parquet": 3}
"""How much more often than others files with this name or suffix are damaged."""
ATTEMPTS = "attempts.jsonl"
"""If its end is missing, that is what a crash leaves, and means that the run was interrupted."""
PAGE = 4096


def flip_a_bit(content: bytearray, random: Random) -> None:
    """Flip one bit."""
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)


def zero_a_page(content: bytearray, random: Random) -> None:
    """Overwrite 4 KiB, or all of a smaller file, with zeros."""
    start = random.randrange(max(len(content) - PAGE, 1))
    content[start : start + PAGE] = bytes(len(content[start : start + PAGE]))


def truncate(content: bytearray, random: Random) -> None:
    """Cut the file anywhere."""
    del content[random.randrange(len(content)) :]


def append_garbage(content: bytearray, random: Random) -> None:
    """Append up to a hundred bytes."""
    content += random.randbytes(random.randint(1, 100))


def cut_at_a_line(content: bytearray, random: Random) -> None:
    """Cut the file after one of its lines, or before the first one."""
    ends = [0, *(index + 1 for index, byte in enumerate(content[:-1]) if byte == ord("\n"))]
    del content[random.choice(ends) :]


def change_a_digit(content: bytearray, random: Random) -> None:
    """Replace a digit by another one."""
    digits = [index for index, byte in enumerate(content) if chr(byte) in "0123456789"]
    if digits:
        index = random.choice(digits)
        content[index] = ord(random.choice([digit for digit in "0123456789" if digit != chr(content[index])]))


def remove_a_line(content: bytearray, random: Random) -> None:
    """Remove one line."""
    lines = content.splitlines(keepends=True)
    del lines[random.randrange(len(lines))]
    content[:] = b"".join(lines)


MUTATIONS: tuple[Callable[[bytearray, Random], None], ...] = (
    flip_a_bit,
    zero_a_page,
    truncate,
    append_garbage,
    cut_at_a_line,
    change_a_digit,
    change_a_digit,
    remove_a_line,
)


def attempt(place: Place, trial: Trial) -> None:
    """Damage one file of a finished run, or of one that was killed, and run every reader or finish the run."""
    if trial.random().random() < 0.6:
        read_damaged(place, trial)
    else:
        resume_damaged(place, trial)


def read_damaged(place: Place, trial: Trial) -> None:
    """Damage a finished run or the cache; every reader tells the truth or names the damage."""
    random = trial.random()
    random.random()  # chose this function
    copied = place.copy("finished", trial.folder)
    readers = random.sample(list(claims.READERS), k=4)
    true = claims.read(place, copied, readers)
    before = (copied / "runs" / place.ids["micro"] / ATTEMPTS).read_bytes()
    path, done = damage(copied, random, place.ids["micro"])
    cut_short = path.name == ATTEMPTS and before.startswith(path.read_bytes().rpartition(b"\n")[0])
    found = claims.read(place, copied, readers)
    try:
        for name in readers:
            if not is_without_numbers(path, copied):
                claims.compare(name, found[name], true[name], names_of(path, copied), status=not cut_short)
    except PromiseBrokenError as failure:
        raise PromiseBrokenError(f"{done}\n{failure}") from None


def resume_damaged(place: Place, trial: Trial) -> None:
    """Damage a killed run or the cache; the run ends with the undisturbed bytes, or the damage is named."""
    random = trial.random()
    random.random()  # chose this function
    name = random.choice(place.experiments)
    run = place.ids[name]
    copied = place.copy(random.choice(("killed", "extended")), trial.folder, only=f"{name}-*")
    path, done = damage(copied, random, run)
    words = ["run", name, *TRAIN] if random.random() < 0.5 else ["resume", run, "--steps", str(STEPS), *TRAIN]
    outcome = process.run(*words)
    try:
        check_manners(outcome, {0, 1, 2})
        check_resumed(outcome, copied / "runs" / run, place.root / "finished" / "runs" / run, path, copied)
        check_manners(process.run("run", name, *TRAIN), {0, 1, 2})
    except PromiseBrokenError as failure:
        raise PromiseBrokenError(f"{done}\n{failure}\n{outcome}") from None


def check_resumed(outcome: Outcome, run: Path, undisturbed: Path, path: Path, copied: Path) -> None:
    """Check that a damaged run was refused by name, or ended with the undisturbed bytes, or with a note on its rows."""
    named = names_of(path, copied)
    if outcome.code:
        require(any(word in outcome.err for word in named), f"the damage is not named: {outcome}")
        return
    check_tensors(run, undisturbed)
    said = (outcome.out + outcome.err).replace(str(run), "").replace(run.name, "")
    if not (is_without_numbers(path, copied) or any(word in said for word in named)):
        check_rows(run, undisturbed)


def damage(copied: Path, random: Random, run: str) -> tuple[Path, str]:
    """Damage one file; return it, and what was done to it in words.

    Half of the time the file keeps its time of modification, as when a disk forgets a bit.
    """
    files = sorted(
        path
        for path in [*(copied / "runs" / run).rglob("*"), *(copied / "cache").rglob("*")]
        if path.is_file() and path.stat().st_size and path.suffix != ".lock"
    )
    kinds = sorted({path.name for path in files})  # otherwise most of the files would be those of checkpoints
    chosen = random.choices(kinds, [WEIGHTS.get(name, WEIGHTS.get(Path(name).suffix, 1)) for name in kinds])[0]
    path = random.choice([path for path in files if path.name == chosen])
    mutation, status = random.choice(MUTATIONS), path.stat()
    content = bytearray(path.read_bytes())
    mutation(content, random)
    path.write_bytes(content)
    if kept := random.random() < 0.5:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path, f"{mutation.__name__} in {path.relative_to(copied)}{', same mtime' if kept else ''}"


def is_without_numbers(path: Path, copied: Path) -> bool:
    """Whether damage to a file may go unnoticed."""
    parts = path.relative_to(copied).parts
    return parts[0] == "runs" and (parts[2] in NO_NUMBERS or path.suffix == ".patch")


def names_of(path: Path, copied: Path) -> set[str]:
    """Return words of which a message about a damaged file has one."""
    parts = path.relative_to(copied).parts
    if parts[0] == "cache":
        return {path.name, "cached tokens", parts[1]}
    return {path.name, parts[1], path.parent.name}
