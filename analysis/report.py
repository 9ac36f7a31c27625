"""`python -m analysis.report`: compare runs in `report.html` and `report.md`, in the runs directory or elsewhere."""

if __name__ == "__main__":  # before the other imports, which take a second
    from gptlab.entry import start

    start("analysis.report", library="pandas")

import argparse
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from pandas import DataFrame

from analysis import load, markdown, page
from analysis.findings import analyze
from gptlab import project
from gptlab.errors import BadInputError, GptlabError
from gptlab.failures import exit_code
from gptlab.files import make_directory, write_durably
from gptlab.terminal.text import one_line

NO_RUNS = "There are no runs yet; make one with: make exp NAME=tiny"
ONCE = ("analysis.cache", "gptlab.tracking.run")
"""Loggers whose messages a report prints once."""
MAX_STEPS = 12
"""Maximum number of measured steps in an error message."""
MAX_DIGITS = 20
"""A step has fewer digits."""
WEIGHT_EXPERIMENTS = 4
"""Number of experiments whose weights the report shows: the best run of each of the best experiments."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInputError(message)


class _Once(logging.Filter):
    """Drops messages that were logged before: each table has its own cache file, in the same directory."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a message is new."""
        new = record.getMessage() not in self._seen
        self._seen.add(record.getMessage())
        return new


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both reports and return the exit code.

    Args:
        arguments: The command-line arguments; `sys.argv[1:]` by default.
    """
    once = _Once()
    for name in ONCE:
        logging.getLogger(name).addFilter(once)
    try:
        return exit_code(lambda: _write(arguments))
    finally:
        for name in ONCE:
            logging.getLogger(name).removeFilter(once)


def _write(arguments: Sequence[str] | None) -> None:
    parser = _Parser(prog="python -m analysis.report", description="Write report.md and report.html.")
    parser.add_argument("--name", help="Only runs of this experiment; * and ? match any characters, as in 'tiny*'.")
    parser.add_argument("--tag", help="Only runs with this tag.")
    parser.add_argument("--at", metavar="STEP", help="Compare at this step instead of the largest common one.")
    parser.add_argument("--out", metavar="DIR", help="Write to this directory instead of the runs directory.")
    options = parser.parse_args(arguments)
    directory = _directory(options.out)
    runs, copies = load.runs_and_copies(name=options.name, tag=options.tag)
    filters = [f"{key} '{value}'" for key in ("name", "tag") if (value := getattr(options, key)) is not None]
    if runs.empty and filters:
        raise BadInputError(f"there is no run with {' and '.join(filters)}; `gptlab runs` lists them")
    reports = _reports(runs, copies, options.at)
    if runs.empty:
        sys.stdout.write(f"{NO_RUNS}\n")
    try:
        make_directory(directory)
        for name, content in reports.items():
            write_durably(directory / name, content)
    except (OSError, GptlabError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise GptlabError(
            f"the report cannot be written to {directory}: {reason}; write it elsewhere with: make report OUT=DIR, or "
            "python -m analysis.report --out DIR"
        ) from error
    for name in reports:
        sys.stdout.write(f"{one_line(project.display_path(directory / name))}\n")


def _directory(out: str | None) -> Path:
    """The directory to write to.

    Raises:
        BadInputError: `out` cannot be a directory.
    """
    if out is None:
        return project.runs_directory()
    try:
        directory = Path(out).expanduser().absolute()
        nearest = next(folder for folder in (directory, *directory.parents) if folder.exists())
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user's home, a NUL
        nearest = None
    if not out or nearest is None or not nearest.is_dir():
        raise BadInputError(f"--out is '{out}', which cannot be a directory")
    return directory


def _reports(runs: DataFrame, copies: DataFrame, at: str | None) -> dict[str, str]:
    """The contents of both reports, by file name."""
    metrics = load.metrics(runs)
    step = _step(at, metrics)
    if runs.empty:
        return {"report.md": markdown.empty(NO_RUNS), "report.html": page.empty(NO_RUNS)}
    findings = analyze(runs, metrics, load.samples(runs), copies=copies, at=step)
    best = findings.runs.drop_duplicates("experiment").head(WEIGHT_EXPERIMENTS)
    count = f"{len(runs)} runs of {len(findings.summary)} experiments" if len(runs) > 1 else "1 run"
    heading = f"{count} in {project.display_path(project.runs_directory())}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return {
        "report.md": markdown.to_markdown(findings, heading),
        "report.html": page.to_html(findings, load.checkpoints(best), heading),
    }


def _step(at: str | None, metrics: DataFrame) -> int | None:
    """The step that the user has chosen.

    Raises:
        BadInputError: No run was validated at that step.
    """
    if at is None:
        return None
    measured = sorted(metrics.dropna(subset="val/loss")["step"].unique().tolist())
    if at.isdecimal() and len(at) < MAX_DIGITS and int(at) in measured:
        return int(at)
    if not measured:
        raise BadInputError(f"--at is '{at}', but no run has a validation loss")
    shown = measured if len(measured) <= MAX_STEPS else [*measured[: MAX_STEPS - 1], "…", measured[-1]]
    raise BadInputError(
        f"--at is '{at}', but no run was validated at that step; measured steps: {', '.join(map(str, shown))}"
    )
