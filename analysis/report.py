"""`python -m analysis.report`: compare runs in `report.html` and `report.md`, written to the runs directory."""

if __name__ == "__main__":  # before the other imports, which take a second
    from gptlab.entry import start

    start("analysis.report", library="pandas")

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NoReturn

from pandas import DataFrame

from analysis import load, markdown, page
from analysis.findings import analyze
from gptlab import project
from gptlab.errors import BadInputError
from gptlab.failures import exit_code
from gptlab.files import make_directory, write_durably
from gptlab.terminal.text import one_line

NO_RUNS = "There are no runs yet; make one with: make exp NAME=tiny"
WEIGHT_EXPERIMENTS = 4
"""Number of experiments whose weights the report shows: the best run of each of the best experiments."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInputError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both reports and return the exit code.

    Args:
        arguments: The command-line arguments; `sys.argv[1:]` by default.
    """
    return exit_code(lambda: _write(arguments))


def _write(arguments: Sequence[str] | None) -> None:
    parser = _Parser(prog="python -m analysis.report", description="Write report.md and report.html.")
    parser.add_argument("--name", help="Only runs of this experiment; * and ? match any characters, as in 'tiny*'.")
    parser.add_argument("--tag", help="Only runs with this tag.")
    options = parser.parse_args(arguments)
    runs = load.runs(name=options.name, tag=options.tag)
    filters = [f"{key} '{value}'" for key, value in vars(options).items() if value is not None]
    if runs.empty and filters:
        raise BadInputError(f"there is no run with {' and '.join(filters)}; `gptlab runs` lists them")
    directory = project.runs_directory()
    make_directory(directory)
    if runs.empty:
        sys.stdout.write(f"{NO_RUNS}\n")
    for name, content in _reports(runs).items():
        write_durably(directory / name, content)
        sys.stdout.write(f"{one_line(project.display_path(directory / name))}\n")


def _reports(runs: DataFrame) -> dict[str, str]:
    """The contents of both reports, by file name."""
    if runs.empty:
        return {"report.md": markdown.empty(NO_RUNS), "report.html": page.empty(NO_RUNS)}
    findings = analyze(runs, load.metrics(runs), load.samples(runs))
    best = findings.runs.drop_duplicates("experiment").head(WEIGHT_EXPERIMENTS)
    count = f"{len(runs)} runs of {len(findings.summary)} experiments" if len(runs) > 1 else "1 run"
    heading = f"{count} in {project.display_path(project.runs_directory())}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return {
        "report.md": markdown.to_markdown(findings, heading),
        "report.html": page.to_html(findings, load.checkpoints(best), heading),
    }
