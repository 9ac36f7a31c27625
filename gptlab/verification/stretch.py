"""The stretch of a run that is replayed."""

from dataclasses import dataclass

from gptlab.checkpoints.manifest import Checkpoint, list_checkpoints, select_checkpoint
from gptlab.errors import BadInputError
from gptlab.terminal.text import plural
from gptlab.tracking.history import History
from gptlab.tracking.run import Run


@dataclass(frozen=True)
class Stretch:
    """The steps from `first` to `last`."""

    first: int
    last: int
    start: Checkpoint | None
    """The checkpoint to start from; None for the run's first step."""
    checkpoints: dict[int, Checkpoint]
    """The run's checkpoints in the stretch, by step, without the one to start from."""
    completes: bool
    """Whether the run was complete at `last`, so that a row with a validation ends it."""
    diverges: bool
    """Whether the run diverged after `last`."""

    @property
    def stop(self) -> int:
        """The step at which the replay stops. A step is added in which it should diverge."""
        return self.last + self.diverges

    @property
    def target(self) -> int:
        """The number of steps to train for. Training that stops before it ends without the last row of a run."""
        return self.last if self.completes else self.stop + 1

    def has_row(self, step: int) -> bool:
        """Return whether the replay writes the row of a step again: those after its first step, and a run's first."""
        return self.first < step <= self.last or (step == self.first and self.start is None)


def choose_stretch(run: Run, history: History, first: int | None, last: int | None) -> Stretch:
    """Return the stretch between two steps.

    Args:
        run: The run.
        history: What it has recorded.
        first: See `verify_run`.
        last: See `verify_run`.

    Raises:
        BadInputError: The run has not done these steps, or keeps no resumable checkpoint of the first one.
    """
    begin, end = run.record.start_step, history.step
    if end <= begin and history.outcome != "diverged":
        raise BadInputError(f"{run.id} has recorded no step yet, so there is nothing to verify; train it first")
    start = None
    if first is None or first == begin:
        first = begin
    else:
        start = select_checkpoint(run.directory, first, resumable=True)
    last = end if last is None else last
    if last > end:
        raise BadInputError(f"--to {last} is after the last step of {run.id}, {end}")
    diverges = history.outcome == "diverged" and last == end
    if last <= first and not diverges:
        remedy = f"pass a --to after {first}" if first < end else "pass a smaller --from"
        raise BadInputError(f"nothing is to be replayed from step {first} to step {last}; {remedy}")
    return Stretch(
        first,
        last,
        start,
        {each.step: each for each in list_checkpoints(run.directory) if _is_in(each.step, first, last, start)},
        completes=history.outcome == "complete" and last == end,
        diverges=diverges,
    )


def _is_in(step: int, first: int, last: int, start: Checkpoint | None) -> bool:
    return first < step <= last or (step == first and start is None)


def describe_steps(first: int, last: int) -> str:
    """Return the steps in words."""
    return f"{plural(last - first, 'step')}, from {first} to {last}"
