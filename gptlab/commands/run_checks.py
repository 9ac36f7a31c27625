"""What `gptlab run` and `gptlab resume` check before they train a run that exists."""

from gptlab import project
from gptlab.checkpoints.manifest import CHECKPOINTS
from gptlab.commands.run_messages import last_arithmetic
from gptlab.errors import BadInputError, GptlabError
from gptlab.identity import Fingerprint
from gptlab.terminal.text import shell_command
from gptlab.tracking.history import History
from gptlab.tracking.metrics import newest_values
from gptlab.tracking.run import Run
from gptlab.training.run_code import differing_files

SAVED = ("complete", "interrupted")
"""Outcomes of attempts that end with a save, unless they end before their first step."""


def check_arithmetic(run: Run, history: History, code: Fingerprint) -> None:
    """Check that the code computes what it computed in the last attempt.

    Raises:
        BadInputError: It computes something else, or what it computed was not recorded.
    """
    recorded, last = run.record.fingerprint, last_arithmetic(run, history)
    if last == code.hash:
        return
    again = shell_command("resume", run.reference, "--accept-code-change")
    if last is None:
        reason = "was made by an earlier version of gptlab, which did not record what its code computes"
    elif recorded and recorded.hash != code.hash:
        reason = f"was trained by code that computes something else{differing_files(recorded, code)}"
    else:
        raise BadInputError(
            f"{run.id} was last trained by other code, which was accepted although it computes something else; "
            f"`{again}` continues it with the code as it is now"
        )
    raise BadInputError(
        f"{run.id} {reason}; `gptlab run` starts another run with the code as it is now; `{again}` continues this one "
        "with it, so that its numbers come from two versions"
    )


def check_nothing_is_lost(run: Run, history: History) -> None:
    """Check that a run without a resumable checkpoint never had one, so that it can begin at its first step.

    Raises:
        GptlabError: An attempt began from a checkpoint or ended with a save, or rows of metrics follow the first
            checkpoint that was due.
    """
    saved = [row["step"] for row in history.attempts if row["event"] == "end" and row["status"] in SAVED]
    saved += [start.get("from_step", 0) for start in history.starts]
    newest_row = newest_values(run.directory, ["step"]).get("step", 0)
    start, every = run.record.start_step, run.record.spec.train.checkpoint_every
    first_due = (start // every + 1) * every
    # A killed process can leave rows after the step whose checkpoint it was saving, but none after the next due one.
    proving_step = first_due + every if (run.directory / CHECKPOINTS).is_dir() else first_due
    if any(step > start for step in saved) or newest_row > proving_step:
        raise GptlabError(
            f"{run.id} has no checkpoint to resume from, but it was trained to step {max([*saved, newest_row])}; "
            f"restore {project.display_path(run.directory / CHECKPOINTS)} from a copy, or move the run to the trash "
            f"with: {shell_command('rm', run.reference)}"
        )
