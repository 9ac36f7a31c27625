"""Whether the code still computes what it computed when a run was trained."""

from gptlab.identity import Fingerprint
from gptlab.tracking.run import Run
from gptlab.training.fingerprint_cache import fingerprint
from gptlab.training.run_tokenizer import run_tokenizer

MAX_FILES = 5


def changed_model(run: Run) -> str | None:
    """Return a sentence if the run's weights now belong to a model that computes something else.

    None if they do not, or if an earlier version of gptlab made the run and did not record what its code computes.

    Raises:
        BadInputError: A part of the model or the tokenizer is gone.
    """
    recorded = run.record.fingerprint
    if recorded is None:
        return None
    current = fingerprint(run.record.spec, run_tokenizer(run), run.record.precision)
    if recorded.same_model(current):
        return None
    return f"the model of {run.id} was trained by code that computes something else{differing_files(recorded, current)}"


def differing_files(old: Fingerprint | None, new: Fingerprint) -> str:
    """Return the files that differ between the code of two fingerprints, as a text in parentheses."""
    if old is None:
        return " (the older run did not record it)"
    files = old.differing_files(new)
    if not files:
        return " (no file differs: another version of a package or another processor)"
    more = f" and {len(files) - MAX_FILES} more" if len(files) > MAX_FILES else ""
    return f" ({', '.join(files[:MAX_FILES])}{more})"
