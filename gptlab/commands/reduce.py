"""`gptlab gc --optimizer` and `--snapshots`: remove from complete runs what their results do not need."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gptlab import project
from gptlab.errors import GptlabError
from gptlab.failures import describe
from gptlab.terminal.text import format_bytes, plural, printable
from gptlab.tracking import space
from gptlab.tracking.lineage import all_children
from gptlab.tracking.run import Run, skip_unreadable


@dataclass(frozen=True)
class Kinds:
    """What to remove."""

    optimizer_states: bool
    snapshots: bool

    def __str__(self) -> str:
        """What is removed, for a question."""
        names = {"optimizer states": self.optimizer_states, "snapshots": self.snapshots}
        return " and ".join(name for name, chosen in names.items() if chosen)


@dataclass(frozen=True)
class Reduction:
    """What is removed from one run."""

    run: Run
    bytes: int
    kept_steps: tuple[int, ...]
    """The steps whose optimizer states stay."""

    def line(self) -> str:
        """Return size, name and what stays as one line."""
        steps = ", ".join(map(str, self.kept_steps))
        kept = f"  (keeps that of step {steps} for train.keep_steps or a branch)" if steps else ""
        return printable(f"{format_bytes(self.bytes):>10}  {self.run.reference}{kept}")


@dataclass(frozen=True)
class Reduced:
    """What was removed."""

    runs: list[str]
    bytes: int
    problems: list[str]

    def document(self) -> dict[str, Any]:
        """Return what `gptlab gc --json` prints."""
        return {"reduced": self.runs, "bytes": self.bytes}


def find(runs: Iterable[Run], kinds: Kinds) -> list[Reduction]:
    """Return what can be removed from runs, without those from which nothing can. Unreadable runs are skipped."""
    children = all_children(project.runs_directory())

    def read(run: Run) -> Reduction:
        found = space.find_removable(run, run.history(), children)
        size = found.optimizer_bytes if kinds.optimizer_states else 0
        size += found.snapshot_bytes if kinds.snapshots else 0
        return Reduction(run, size, tuple(c.step for c in found.kept) if kinds.optimizer_states else ())

    return [reduction for reduction in skip_unreadable(read, runs) if reduction.bytes]


def question(reductions: Sequence[Reduction], kinds: Kinds) -> str:
    """Return the question to ask before."""
    runs = plural(len(reductions), "run")
    effect = "; they cannot be extended afterwards" if kinds.optimizer_states else ""
    size = format_bytes(sum(reduction.bytes for reduction in reductions))
    return f"permanently remove the {kinds} of {runs}, {size}{effect}?"


def reduce(reductions: Sequence[Reduction], kinds: Kinds) -> Reduced:
    """Remove what was found. Each run from which nothing can be removed any more is a problem of its own."""
    runs, size, problems = [], 0, []
    for reduction in reductions:
        try:
            size += space.remove(reduction.run, **vars(kinds))
            runs.append(reduction.run.reference)
        except (GptlabError, OSError) as error:
            message = describe(error)
            if message is None:
                raise
            problems.append(message)
    return Reduced(runs, size, problems)
