"""Verify a run: check its files, then replay a stretch of it and compare."""

from gptlab.terminal.console import Console
from gptlab.tracking.run import Run
from gptlab.verification.result import Verification


def verify_run(
    run: Run, *, first: int | None = None, last: int | None = None, console: Console, text: str | None = None
) -> Verification:
    """Check every file of a run that has a checksum, then replay a stretch and compare rows and checkpoints.

    Args:
        run: The run; its directory is only read.
        first: The step of a resumable checkpoint to start from; by default, the run's first step.
        last: The step to end at; by default, the last one that the run has recorded.
        console: Where to show progress.
        text: The place of the run's text, if it has moved.

    Raises:
        BadInputError: There is no such step, or the text, the tokenizer or the parent's weights are missing.
        GptlabError: A process is training the run, or memory or disk space runs out.
    """
    raise NotImplementedError
