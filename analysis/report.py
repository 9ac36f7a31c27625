"""`python -m analysis.report`: runs side by side, in `report.html` and `report.md` in the runs directory."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NoReturn

from pandas import DataFrame

from analysis import findings, load, markdown, page
from gptlab import project
from gptlab.errors import BadInputError, GptlabError
from gptlab.tracking.files import write_durably

NO_RUNS = "There are no runs yet; make one with: make exp NAME=tiny"
WITH_WEIGHTS = 4
"""Of so many of the best experiments the weights of the best run are looked into."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInputError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both reports; returns the exit code. The arguments are the command line's by default."""
    try:
        _write(arguments)
    except GptlabError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return error.exit_code
    return 0


def _write(arguments: Sequence[str] | None) -> None:
    parser = _Parser(prog="python -m analysis.report", description="Write report.md and report.html.")
    parser.add_argument("--name", help="only runs of that experiment; * and ? stand for any characters, as in 'tiny*'")
    parser.add_argument("--tag", help="only runs with that tag")
    options = parser.parse_args(arguments)
    runs = load.runs(name=options.name, tag=options.tag)
    if runs.empty and (options.name is not None or options.tag is not None):
        asked = " and ".join(f"{key} '{value}'" for key, value in vars(options).items() if value is not None)
        raise BadInputError(f"there is no run with {asked}; `gptlab runs` lists them")
    directory = project.runs_directory()
    directory.mkdir(parents=True, exist_ok=True)
    if runs.empty:
        sys.stdout.write(f"{NO_RUNS}\n")
    for name, content in _reports(runs).items():
        write_durably(directory / name, content)
        sys.stdout.write(f"{project.shown(directory / name)}\n")


def _reports(runs: DataFrame) -> dict[str, str]:
    if runs.empty:
        return {"report.md": markdown.empty(NO_RUNS), "report.html": page.empty(NO_RUNS)}
    found = findings.find(runs, load.metrics(runs), load.samples(runs))
    best = found.runs.drop_duplicates("experiment").head(WITH_WEIGHTS)
    count = f"{len(runs)} runs of {len(found.summary)} experiments" if len(runs) > 1 else "1 run"
    heading = f"{count} in {project.shown(project.runs_directory())}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return {
        "report.md": markdown.to_markdown(found, heading),
        "report.html": page.to_html(found, load.checkpoints(best), heading),
    }


if __name__ == "__main__":
    sys.exit(main())
