"""`gptlab bundle`: pack runs into a file that others can verify."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gptlab import project
from gptlab.bundles.collect import Choice, collect
from gptlab.bundles.contents import BundledRun, run_name
from gptlab.bundles.pack import Bundle, write
from gptlab.commands.run_selection import find_runs
from gptlab.errors import BadInputError, GptlabError
from gptlab.terminal.console import Console
from gptlab.terminal.text import format_bytes, plural, shell_command
from gptlab.tracking.lock import lock_holder
from gptlab.tracking.run import Run
from gptlab.verification.integrity import check_integrity


@dataclass(frozen=True)
class Packed:
    """A bundle, and what its maker should know."""

    bundle: Bundle
    hosts: list[str]
    """The names of the machines that trained the runs, which the bundle holds."""

    @property
    def commands(self) -> list[str]:
        """What the other side types: one command, or one for each text that it must have."""
        by_text: dict[str | None, list[str]] = {}
        for run in self.bundle.contents.runs:
            by_text.setdefault(None if run.text.inside else run.text.name, []).append(run.run)
        commands = []
        for text, runs in by_text.items():
            words = ["gptlab", "verify", self.bundle.path.name, *(["--text", text] if text else [])]
            words += [word for run in runs for word in ("--run", run)] if len(by_text) > 1 else []
            commands.append(shlex.join(words))
        return commands

    def document(self) -> dict[str, Any]:
        """Return what `gptlab bundle --json` prints."""
        bundle = self.bundle
        facts = {"path": str(bundle.path), "bytes": bundle.bytes, "sha256": bundle.sha256, "hosts": self.hosts}
        return {**facts, **bundle.contents.model_dump(mode="json", include={"gptlab", "runs", "files"})}


def bundle_runs(references: Sequence[str], out: str, choice: Choice, *, with_text: bool, force: bool) -> Packed:
    """Write a bundle.

    Args:
        references: The runs, as for `find_runs`.
        out: The file to write.
        choice: Which checkpoints; see `collect`.
        with_text: Whether to pack the texts.
        force: Whether to replace a file.

    Raises:
        BadInputError: There is no such run, the file exists, or a text is gone.
        GptlabError: A run is damaged or being trained, or the bundle cannot be written.
    """
    path = _find_target(out, force=force)
    runs = sorted(find_runs(references), key=lambda run: run.id)
    _check_distinct(runs)
    for run in runs:
        _check_whole(run)
    bundle = write(path, runs, collect(runs, choice, with_text=with_text), force=force)
    hosts = {start.get("host") for run in runs for start in run.history().starts}
    return Packed(bundle, sorted(host for host in hosts if host))


def render(packed: Packed, console: Console) -> None:
    """Print what is inside, what is not, and what the other side types."""
    bundle = packed.bundle
    files = plural(len(bundle.contents.files) + 1, "file")
    console.print(f"{project.display_path(bundle.path)} · {format_bytes(bundle.bytes)} · {files}", style="bold")
    for run in bundle.contents.runs:
        size = sum(file.bytes for file in bundle.contents.files if file.name.startswith(f"{run_name(run.run)}/"))
        console.print(f"  {run.run} · {format_bytes(size)} · {_steps(run)}")
        if run.parent and run.parent.inside:
            console.print(f"    with {run.parent.run}@{run.parent.step}, which it starts from")
    for line in _missing(bundle.contents.runs):
        console.fact("not inside", line)
    if packed.hosts:
        console.fact("reveals", f"names of machines ({', '.join(packed.hosts)}), tags and notes")
    console.fact("sha256", bundle.sha256)
    for command in packed.commands:
        console.fact("verify", command)


def _find_target(out: str, *, force: bool) -> Path:
    try:
        path = Path(out).expanduser()
        exists, is_file, has_folder = path.resolve().exists(), path.is_file(), path.parent.is_dir()
    except (OSError, RuntimeError, ValueError):  # a name that is too long, an unknown user's home, a NUL
        exists = is_file = has_folder = False
    if not has_folder or (exists and not is_file):
        raise BadInputError(
            f"--out is '{out}', which cannot be a file; give the path of a .tar in a folder that exists"
        )
    if exists and not force:
        raise BadInputError(f"'{out}' exists; pass --force to replace it, or another --out")
    return path.absolute()


def _check_distinct(runs: Sequence[Run]) -> None:
    for run, other in pairwise(runs):
        if run.id == other.id:
            raise BadInputError(f"{run.directory} and {other.directory} are both {run.id}; bundle one of them")


def _check_whole(run: Run) -> None:
    """Check that a run is intact and not being trained.

    Raises:
        GptlabError: It is not.
    """
    if holder := lock_holder(run.directory):
        raise GptlabError(
            f"{run.id} is being trained by process {holder.pid} on {holder.host}; bundle it when it has ended"
        )
    damage = check_integrity(run, run.history()).damage
    if damage:
        more = f" and {len(damage) - 1} more" if len(damage) > 1 else ""
        raise GptlabError(
            f"{run.id} is damaged and cannot be bundled: {damage[0].file} {damage[0].problem}{more}; see: "
            f"{shell_command('verify', run.reference)}"
        )


def _steps(run: BundledRun) -> str:
    if not run.checkpoints:
        return "no checkpoint, so that only rows can be compared"
    steps = ", ".join(map(str, run.checkpoints))
    return f"{'checkpoint of step' if len(run.checkpoints) == 1 else 'checkpoints of steps'} {steps}"


def _missing(runs: Iterable[BundledRun]) -> list[str]:
    """What a bundle does not hold although a replay needs it, a line each."""
    lines = {}
    for run in runs:
        if not run.text.inside:
            lines[run.text.sha256] = f"the text {run.text.name}, {run.text.bytes:,} bytes; --text adds it"
        if run.parent and not run.parent.inside:
            lines[run.run] = f"{run.parent.run}@{run.parent.step}, which {run.run} starts from: it is gone"
        if run.imported_weights:
            lines[run.run] = f"the weights {run.imported_weights.name} of transformers, which {run.run} starts from"
        for name in run.parts:
            lines[name] = f"{name}, which is in the repository"
    return list(lines.values())
