"""`gptlab verify BUNDLE`: verify the runs of a bundle that somebody else has made."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.bundles.code import SHOWN_COLUMNS, Code, code_of, escape, show_command
from gptlab.bundles.missing import Found, find_needed
from gptlab.bundles.runs import UnpackedRun, unpacked_runs
from gptlab.bundles.unpack import Unpacked, unpacked
from gptlab.commands import verify
from gptlab.data import text as texts
from gptlab.data.text import Text
from gptlab.errors import EXIT_BAD_INPUT, EXIT_FAILED, BadInputError, GptlabError
from gptlab.terminal.console import Console
from gptlab.terminal.text import abbreviate_hash, format_bytes, plural
from gptlab.tracking.provenance import working_tree
from gptlab.verification.result import Verification
from gptlab.verification.verify import verify_run

MAX_SHOWN = 5
"""Different codes of a bundle, and names of files of a patch, that are printed."""


@dataclass(frozen=True)
class Request:
    """What to verify of a bundle."""

    only: Sequence[str] = ()
    """Ids of runs or unique prefixes of ids; empty for all."""
    first: int | None = None
    """See `verify_run`."""
    last: int | None = None
    """See `verify_run`."""
    text: str | None = None
    """The place of a text that the bundle does not hold."""


@dataclass(frozen=True)
class VerifiedBundle:
    """The verdicts on the runs of a bundle."""

    path: Path
    sha256: str
    verifications: tuple[Verification, ...]
    problems: dict[str, str]
    """By run, why it could not be verified."""
    code: dict[str, list[Code]]
    """By run, the code of its attempts."""

    @property
    def exit_code(self) -> int:
        """1 if a run was not reproduced; else 2 if a run could not be verified; else 0."""
        if any(found.exit_code for found in self.verifications):
            return EXIT_FAILED
        return EXIT_BAD_INPUT if self.problems else 0

    @property
    def summary(self) -> str:
        """The verdicts in one line."""
        counts = Counter(found.verdict for found in self.verifications)
        parts = [f"{count} {verdict}" for verdict, count in counts.items()]
        parts += [f"{len(self.problems)} not verified"] if self.problems else []
        return f"{plural(len(self.code), 'run')}: {', '.join(parts)}"

    def document(self) -> dict[str, Any]:
        """Return what `gptlab verify --json` prints."""
        return {
            "bundle": str(self.path),
            "sha256": self.sha256,
            "runs": [found.document() for found in self.verifications],
            "not_verified": self.problems,
            "code": {run: [code.document() for code in found] for run, found in self.code.items()},
        }


def verify_bundle(argument: str, request: Request, console: Console) -> VerifiedBundle:
    """Check and unpack a bundle, then verify its runs, and print what is found on the way.

    Raises:
        BadInputError: It is not a bundle or is damaged, there is no such run inside, or something that a replay needs
            is missing here.
    """
    path = _path(argument)
    given = None if request.text is None else texts.locate(request.text)
    with unpacked(path) as bundle:
        runs = _selected(_runs(bundle, path), request.only, path)
        here = working_tree()
        code = {each.needs.run: code_of(each, bundle, here) for each in runs}
        found = {each.needs.run: find_needed(each, bundle, given, request.first) for each in runs}
        _print_contents(bundle, path, runs, code, console)
        _check_text(given, runs, path)
        _check_found(found, path)
        verifications, problems = [], {}
        for each in runs:
            console.print(f"\nverifying {each.needs.run}" if len(runs) > 1 else "")
            for note in found[each.needs.run].notes:
                console.notice(note)
            text = found[each.needs.run].text
            try:
                verification = verify_run(each.run, first=request.first, last=request.last, console=console, text=text)
            except GptlabError as error:
                problem = str(error).replace(f"{bundle.folder}/", "")
                if len(runs) == 1:
                    raise BadInputError(f"{path} cannot be verified: {problem}") from None
                problems[each.needs.run] = problem
                console.notice(f"not verified: {problem}")
                continue
            verifications.append(verification)
            verify.render(verification, None, console)
    verified = VerifiedBundle(path, bundle.sha256, tuple(verifications), problems, code)
    console.print(f"\n{verified.summary}", style="bold")
    return verified


def _path(argument: str) -> Path:
    try:
        path = Path(argument).expanduser()
        exists, is_file = path.exists(), path.is_file()
    except (OSError, RuntimeError, ValueError):
        exists, is_file = False, False
    if not exists:
        raise BadInputError(f"there is no file '{argument}'")
    if not is_file:
        raise BadInputError(f"'{argument}' is not a regular file")
    return path


def _runs(bundle: Unpacked, path: Path) -> list[UnpackedRun]:
    try:
        return unpacked_runs(bundle)
    except BadInputError as error:
        raise BadInputError(f"{path} cannot be verified: {error}") from None


def _selected(runs: list[UnpackedRun], only: Sequence[str], path: Path) -> list[UnpackedRun]:
    selected = []
    for reference in only:
        matches = [run for run in runs if reference and run.needs.run.startswith(reference)]
        if len(matches) != 1:
            known = ", ".join(run.needs.run for run in matches or runs)
            what = f"'{reference}' matches several runs" if matches else f"there is no run '{reference}'"
            raise BadInputError(f"{what} in {path}: {known}")
        selected += [match for match in matches if match not in selected]
    return selected or runs


def _check_text(given: Text | None, runs: Sequence[UnpackedRun], path: Path) -> None:
    if given and all(given.sha256 != run.needs.text.sha256 for run in runs):
        expected = sorted({run.needs.text.sha256 for run in runs})
        raise BadInputError(
            f"'{given.source}' is the text of no run in {path}: its sha256 is {given.sha256}, "
            f"and the runs have {', '.join(expected)}"
        )


def _check_found(found: dict[str, Found], path: Path) -> None:
    """Check that nothing is missing.

    Raises:
        BadInputError: Something is; the message names all of it.
    """
    runs: dict[str, list[str]] = {}
    for run, needs in found.items():
        for line in needs.missing:
            runs.setdefault(line, []).append(run)
    if len(runs) == 1:
        raise BadInputError(f"{path} cannot be verified without {next(iter(runs))}")
    if runs:
        lines = [f"({number}) {line}" for number, line in enumerate(runs, start=1)]
        raise BadInputError(f"{path} cannot be verified without {len(runs)} things: {'; '.join(lines)}")


def _print_contents(
    bundle: Unpacked, path: Path, runs: Sequence[UnpackedRun], code: dict[str, list[Code]], console: Console
) -> None:
    size = format_bytes(bundle.bytes)
    console.print(f"{path} · {size} · gptlab {bundle.contents.gptlab}", style="bold")
    console.fact("sha256", bundle.sha256)
    different: dict[str, Code] = {}
    for run in runs:
        console.fact("run", run.needs.run)
        for each in code[run.needs.run]:
            different.setdefault(f"{each.commit}, {each.patch and each.patch.name.rpartition('/')[2]}", each)
    for each in list(different.values())[:MAX_SHOWN]:
        _print_code(each, path, console)
    if len(different) > MAX_SHOWN:
        console.fact("code", f"and {len(different) - MAX_SHOWN} more, which --json lists")


def _print_code(code: Code, path: Path, console: Console) -> None:
    """Print a commit and the beginning of its patch, and how to get that code, unless it is the one here."""
    if code.commit is None:
        console.fact("code", "unknown: the project was not under git")
        return
    where = "the same as here" if code.same else "not the code here" if code.known else "not in this repository"
    changes = f", with uncommitted changes in {_listed(code.patch.files)}" if code.patch else ""
    console.fact("code", f"commit {abbreviate_hash(code.commit)}, {where}{changes}")
    if code.same:
        return
    if code.patch:
        for line in code.patch.lines:
            console.print(f"    │ {line}", style="dim")
        if code.patch.more:
            rest = plural(code.patch.more, "more line")
            console.print(f"    … {rest}: {escape(show_command(path, code.patch.name))} | less")
    console.fact("get it", f"in another clone: {' && '.join(map(escape, code.commands(path.absolute())))}")
    if code.patch:
        console.fact("", "read the patch first; it is executed when you verify with it")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(name[:SHOWN_COLUMNS] for name in names[:MAX_SHOWN]) + more
