"""The report: `gptlab report`, `make report` and `python -m analysis.report`.

It compares runs in `report.html` and `report.md`, in the runs directory or elsewhere, and in figures. With `table`, it
prints one table instead.
"""

if __name__ == "__main__":  # before the other imports, which take a second
    import os

    from gptlab.entry import start

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in `gptlab.interface.results.report`
    start("analysis.report", library="pandas")

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from pandas import DataFrame

from analysis import desktop, explain, explained, load, markdown, page, tables
from analysis.choices import check_choice
from analysis.findings import Findings, analyze
from analysis.progress import Progress, showing
from analysis.reference import find_experiment
from gptlab import project
from gptlab.errors import BadInputError, GptlabError
from gptlab.failures import exit_code
from gptlab.files import make_directory, write_durably
from gptlab.terminal.text import one_line, plural
from gptlab.tracking import decisions

NO_RUNS = "There are no runs yet; make one with: make exp NAME=tiny"
ONCE = ("analysis.cache", "gptlab.tracking.run")
"""Loggers whose messages a report prints once."""
MAX_STEPS = 12
"""Maximum number of measured steps in an error message."""
MAX_DIGITS = 20
"""A step has fewer digits."""
WEIGHT_EXPERIMENTS = 4
"""Number of experiments whose weights the report shows: the best run of each of the best experiments."""


@dataclass(frozen=True)
class Options:
    """What a report compares, and what it writes. `gptlab report --help` describes the options."""

    name: str | None = None
    tag: str | None = None
    at: str | None = None
    against: str | None = None
    out: str | None = None
    table: str | None = None
    figures: str | None = None
    open_page: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report and return the exit code.

    Args:
        arguments: The command-line arguments; `sys.argv[1:]` by default.
    """
    return exit_code(lambda: write(_parse(arguments)))


def write(options: Options) -> None:
    """Write the reports and print their paths, or print the table.

    Raises:
        BadInputError: An option is invalid, or no run matches.
        GptlabError: A file cannot be written.
    """
    directory = _directory(options.out, "--out")
    figure_directory = _directory(options.figures, "--figures") if options.figures is not None else None
    if options.table is not None:
        check_choice("--table", options.table, tables.FORMATS)
        if options.out is not None or figure_directory or options.open_page:
            raise BadInputError("--table prints a table and writes no file; leave out --out, --figures and --open")
    with _once(), showing() as progress:
        progress.stage("reading the runs")
        findings = _find(options)
        if options.table is not None:
            output = [_table(findings, options.table)]
        else:
            written = _write_files(_reports(findings, progress), directory)
            if figure_directory and findings:
                progress.stage("drawing the figures")
                written += _write_files(_figures(findings), figure_directory)
            output = [one_line(project.display_path(path)) for path in written]
            output = output if findings else [NO_RUNS, *output]
    for line in output:
        sys.stdout.write(f"{line}\n")
    if options.open_page:
        desktop.open_or_explain(directory / "report.html")


def _find(options: Options) -> Findings | None:
    """The findings about the selected runs; None if there are no runs."""
    runs, copies = load.runs_and_copies(name=options.name, tag=options.tag)
    filters = [f"{key} '{value}'" for key in ("name", "tag") if (value := getattr(options, key)) is not None]
    if runs.empty and filters:
        raise BadInputError(f"there is no run with {' and '.join(filters)}; `gptlab runs` lists them")
    metrics = load.metrics(runs)
    step = _step(options.at, metrics)
    if runs.empty:
        return None
    against = None if options.against is None else find_experiment(runs, options.against, "--against")
    stored = decisions.all_decisions()
    return analyze(runs, metrics, load.samples(runs), copies=copies, at=step, against=against, decisions=stored)


def _table(findings: Findings | None, kind: str) -> str:
    if findings is None:
        raise BadInputError("there are no runs yet; make one with: make exp NAME=tiny")
    return tables.comparison(findings, kind)


def _reports(findings: Findings | None, progress: Progress) -> dict[str, str]:
    """The contents of both reports, by file name."""
    if findings is None:
        return {"report.md": markdown.empty(NO_RUNS), "report.html": page.empty(NO_RUNS)}
    best = findings.runs.drop_duplicates("experiment").head(WEIGHT_EXPERIMENTS)
    progress.stage(f"reading the weights of {len(best)} of {len(findings.runs)} runs")
    checkpoints = load.checkpoints(best)
    progress.stage("comparing the runs")
    section = explained.section(findings, explain.explained_runs(findings.runs))
    runs = findings.runs
    count = f"{len(runs)} runs of {plural(len(findings.summary), 'experiment')}" if len(runs) > 1 else "1 run"
    heading = f"{count} in {project.display_path(project.runs_directory())}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return {
        "report.md": markdown.to_markdown(findings, heading, section),
        "report.html": page.to_html(findings, checkpoints, heading, section),
    }


def _figures(findings: Findings) -> Mapping[str, bytes]:
    """The figures for papers, by file name."""
    from analysis import figures  # matplotlib takes half a second, which only figures need

    return figures.draw_all(findings)


def _write_files(contents: Mapping[str, str | bytes], directory: Path) -> list[Path]:
    """Write files to a directory and return their paths."""
    try:
        make_directory(directory)
        for name, content in contents.items():
            write_durably(directory / name, content)
    except (OSError, GptlabError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise GptlabError(
            f"the report cannot be written to {directory}: {reason}; write it elsewhere with: gptlab report --out DIR"
        ) from error
    return [directory / name for name in contents]


def _directory(chosen: str | None, option: str) -> Path:
    """The directory to write to.

    Raises:
        BadInputError: `chosen` cannot be a directory.
    """
    if chosen is None:
        return project.runs_directory()
    try:
        directory = Path(chosen).expanduser().absolute()
        nearest = next(folder for folder in (directory, *directory.parents) if folder.exists())
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user's home, a NUL
        nearest = None
    if not chosen or nearest is None or not nearest.is_dir():
        raise BadInputError(f"{option} is '{chosen}', which cannot be a directory")
    return directory


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInputError(message)


def _parse(arguments: Sequence[str] | None) -> Options:
    """The options of `python -m analysis.report`, which are those of `gptlab report`."""
    parser = _Parser(
        prog="python -m analysis.report",
        description="The same as `gptlab report`, whose --help describes the options.",
        allow_abbrev=False,
    )
    for option in ("name", "tag", "at", "against", "out", "table", "figures"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--open", action="store_true", dest="open_page")
    return Options(**vars(parser.parse_args(arguments)))


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


@contextmanager
def _once() -> Iterator[None]:
    """Within this context, each message of the loggers in `ONCE` is printed once."""
    once, loggers = _Once(), [logging.getLogger(name) for name in ONCE]
    for logger in loggers:
        logger.addFilter(once)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(once)
