"""`gptlab verify`: whether a run's files are as they were written, and whether a replay gives the same numbers."""

import math
from typing import Any

from gptlab import project
from gptlab.errors import GptlabError
from gptlab.terminal.console import Console
from gptlab.terminal.text import abbreviate_hash, format_duration, plural, printable, shell_command
from gptlab.tracking import provenance
from gptlab.tracking.metrics import DETERMINISTIC
from gptlab.tracking.run import Run
from gptlab.tracking.verifications import VERIFICATIONS, add_verification
from gptlab.verification.result import TensorDifference, ValueDifference, Verification
from gptlab.verification.rows import MULTIPLE

MAX_DAMAGE = 10
"""Damaged files that are named."""
STYLES = {"bitwise": "green", "within rounding": "green", "differs": "red", "damaged": "red"}


def store(run: Run, result: Verification) -> str | None:
    """Add the result to the run's directory. Returns the reason if this fails, as in a read-only run."""
    facts = result.document() | {
        "rows_bytes": result.rows_bytes,
        "rows_xxh3": result.rows_xxh3,
        "digests": {str(step): files for step, files in result.digests.items()},
        **provenance.working_tree().facts(),
    }
    path = run.directory / VERIFICATIONS
    try:
        if path.is_file() and path.lstat().st_nlink > 1:
            return f"{project.display_path(path)} has a hard link elsewhere; remove it"
        add_verification(run.directory, _finite(facts))
    except OSError as error:
        return f"{project.display_path(path)} cannot be written: {error.strerror}"
    except GptlabError as error:
        return str(error)
    return None


def render(result: Verification, run: Run | None, console: Console) -> None:
    """Print the verdict and what it rests on. A run of a bundle is None: no other command can name it."""
    steps = "" if result.damage else f", steps {result.first} to {result.last}"
    console.print(f"{result.run}: {result.verdict}{steps}", style=f"bold {STYLES[result.verdict]}")
    for damage in result.damage[:MAX_DAMAGE]:
        console.fact("damaged", printable(str(damage)))
    if len(result.damage) > MAX_DAMAGE:
        console.fact("damaged", f"and {len(result.damage) - MAX_DAMAGE} more; --json lists all")
    console.fact("files", f"{plural(result.files, 'file is', 'files are')} as written, by checksum")
    if result.damage:
        console.print("  nothing was replayed; restore what is damaged from a copy, and verify again")
    else:
        _render_replay(result, run, console)
    for note in result.notes:
        console.notice(note)


def _render_replay(result: Verification, run: Run | None, console: Console) -> None:
    console.fact("replayed", f"on {result.conditions}, in {format_duration(result.seconds)}")
    console.fact("rows", _rows(result))
    console.fact("checkpoints", _checkpoints(result))
    if result.verdict == "differs":
        values = {"first": result.first_value, "largest": result.largest_value}
        for label, value in values.items():
            if value and (label == "first" or value != result.first_value):
                console.fact(label, _value(value))
        tensors = {"first": result.first_tensor, "largest": result.largest_tensor}
        for label, tensor in tensors.items():
            if tensor and (label == "first" or tensor != result.first_tensor):
                console.fact(label, _tensor(tensor))
    elif result.verdict == "within rounding":
        if result.largest_value:
            console.fact("largest", _value(result.largest_value))
        if result.largest_tensor:
            console.fact("largest", _tensor(result.largest_tensor))
        console.fact("bound", f"{MULTIPLE} times what one other rounding per step changes, measured by a second replay")
    for key, (recorded, here) in result.environment.items():
        console.fact("environment", f"{key}: recorded {_format(recorded)}, here {_format(here)}")
    for sentence in result.code:
        console.fact("code", printable(sentence))
    if run and result.verdict == "differs" and result.code:
        console.fact("compare", shell_command("diff", run.reference, "--patch"))


def _rows(result: Verification) -> str:
    if not result.rows:
        return "the run has none in these steps"
    equal = result.largest_value is None
    what = f"all {len(DETERMINISTIC)} reproducible columns are equal" if equal else "not every value is equal"
    return f"{plural(result.rows, 'row')} compared; {what}"


def _checkpoints(result: Verification) -> str:
    if not result.checkpoints:
        return "the run keeps none of these steps, so only rows were compared"
    steps = ", ".join(map(str, result.checkpoints))
    equal = "every byte is equal" if result.largest_tensor is None else "not every byte is equal"
    if result.other_headers:
        equal = "every tensor is equal in every bit, but headers of files differ"
    end = "" if result.checkpoints[-1] == result.last else f"; it keeps none of step {result.last}"
    return f"{'step' if len(result.checkpoints) == 1 else 'steps'} {steps} compared; {equal}{end}"


def _value(found: ValueDifference) -> str:
    if found.column == "step" and isinstance(found.recorded, tuple):
        return f"the run has {len(found.recorded)} rows of step {found.step}"
    if found.column == "step":
        return f"the {'run' if found.recorded is None else 'replay'} has no row of step {found.step}"
    numbers = f"recorded {_format(found.recorded)}, replayed {_format(found.replayed)}"
    return f"{found.column} at step {found.step}: {numbers}{_apart(found.difference, found.bound)}"


def _tensor(found: TensorDifference) -> str:
    name = printable(found.tensor) or "its tensors cannot be compared"
    return f"{name} in {found.file} at step {found.step}{_apart(found.difference, found.bound, ' of its norm')}"


def _apart(difference: float, bound: float, unit: str = "") -> str:
    if not math.isfinite(difference):
        return ""
    within = f"; bound {bound:.2g}" if bound else ""
    return f"; {difference:.2g}{unit} apart{within}"


def _format(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", then ".join(map(_format, value))
    return "none" if value is None else printable(str(abbreviate_hash(value)))


def _finite(value: Any) -> Any:
    """The same with infinite numbers as text, because JSON has none."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
