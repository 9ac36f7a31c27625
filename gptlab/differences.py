"""`gptlab diff`: what differs between two runs, or between a run and what it would be here, now.

First what could be the reason (spec, code, data, environment), then what came of it, and only what differs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from rich.table import Table

from gptlab import catalog
from gptlab.console import Console, printable, shortened
from gptlab.errors import BadInputError
from gptlab.spec import NUMERICS, Experiment, flatten
from gptlab.tracking import provenance
from gptlab.tracking.metrics import DETERMINISTIC, Row, read_metrics
from gptlab.tracking.provenance import Source
from gptlab.tracking.run import Run

Facts = dict[str, Any]
Pairs = dict[str, tuple[Any, Any]]

CODE = ("git_commit", "git_dirty", "diff_sha256")
MACHINE = ("host", "platform", "device", "deterministic", "threads", "python", "torch")
LOSSES = ("train/loss", "val/loss", "val/bpb")
SPEED = ("perf/tokens_per_s", "perf/peak_mem_gib", "elapsed_s")


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    label: str
    spec: Facts
    code: Facts
    data: Facts
    environment: Facts
    source: Source
    results: Facts = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)
    """The newest row of metrics of each step."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What differs. Each section has its differing keys, with the two values."""

    a: str
    b: str
    sections: dict[str, Pairs]
    files: dict[str, str]
    """What git says of each file between the two codes, in lines: `+4 −2`."""
    notes: list[str]
    patch: bytes
    """From the one code to the other."""

    def document(self) -> dict[str, Any]:
        """As `gptlab diff --json` prints it."""
        sections = {
            name: {key: {"a": a, "b": b} for key, (a, b) in pairs.items()} for name, pairs in self.sections.items()
        }
        return {"a": self.a, "b": self.b, **sections, "files": self.files, "notes": self.notes}


def side_of(run: Run) -> Side:
    """A run as it is recorded."""
    record, starts = run.record, run.starts()
    parent = record.initial_weights
    packages = {name for start in starts for name in start.get("packages", {})}
    spec = _spec(record.spec, record.precision, record.identity.get("numerics"))
    return Side(
        label=run.id,
        spec={**spec, "seed": record.seed, "initial_weights": f"{parent.run}@{parent.step}" if parent else None},
        code={key: _over_time(start.get(key) for start in starts) for key in CODE},
        data={
            "text.source": record.text.source,
            "text.bytes": record.text.bytes,
            "text.sha256": record.text.sha256,
            "tokenizer_sha256": record.tokenizer_sha256,
        },
        environment={
            **{key: _over_time(start.get(key) for start in starts) for key in MACHINE},
            **{
                f"packages.{name}": _over_time(start.get("packages", {}).get(name) for start in starts)
                for name in sorted(packages)
            },
        },
        source=provenance.recorded(run.directory, starts),
        results={"status": run.status(), "step": run.step()},
        rows={row["step"]: row for row in read_metrics(run.directory)},
    )


def side_here(run: Run) -> Side:
    """What the run would be if it began here, now: today's spec of its name, on its text, by the working tree's code.

    Raises:
        BadInputError: The experiments cannot be read.
    """
    from gptlab.data import tokenizer
    from gptlab.training.attempt import stored_text
    from gptlab.training.settings import Available, machine, resolve

    notes = []
    experiment = catalog.experiments().get(run.record.spec.name)
    if experiment is None:
        notes.append(f"there is no experiment '{run.record.spec.name}' any more")
        experiment = run.record.spec
    try:
        stored_text(run)
    except BadInputError as error:
        notes.append(str(error))
    source = provenance.working_tree()
    settings = resolve("auto", experiment.train.precision, Available.here())
    environment = {**machine(settings), **provenance.environment()}
    return Side(
        label="here, now",
        spec=_spec(experiment, settings.precision, NUMERICS),
        code=source.facts(),
        data={"tokenizer_sha256": tokenizer.TOKENIZER_SHA256},
        environment=dict(flatten(environment)),
        source=source,
        notes=tuple(notes),
    )


def compare(a: Side, b: Side) -> Comparison:
    """What differs between two sides, in what both know."""
    sections = {name: differing(getattr(a, name), getattr(b, name)) for name in ("spec", "code", "data", "environment")}
    notes = [*a.notes, *b.notes]
    changes = provenance.changes(a.source, b.source)
    if changes is None:
        notes.append("the code cannot be compared: a commit is not in this repository, or a patch is not in its run")
    elif sections["code"] and not changes.files:
        notes.append("the code is the same, file by file")
    sections["results"] = differing(a.results, b.results) | _numbers(a.rows, b.rows)
    notes += _about_rows(a.rows, b.rows)
    files, patch = (changes.files, changes.patch) if changes else ({}, b"")
    return Comparison(a.label, b.label, sections, files, notes, patch)


def differing(a: Facts, b: Facts) -> Pairs:
    """The keys that both have with different values."""
    return {key: (a[key], b[key]) for key in a if key in b and a[key] != b[key]}


def _spec(experiment: Experiment, precision: str, numerics: Any) -> Facts:
    """The fields of a spec and what they come to; the text is compared by its content."""
    fields = dict(flatten(experiment.model_dump(mode="json", exclude={"data": {"text"}})))
    return {**fields, "train.precision": precision, "numerics": numerics}


def _over_time(values: Iterable[Any]) -> Any:
    """The value of all attempts, or the list of values that it had one after the other."""
    distinct = [value for value, _ in groupby(values)]
    return distinct[0] if len(distinct) == 1 else distinct or None


def _numbers(a: dict[int, Row], b: dict[int, Row]) -> Pairs:
    """The losses at the last step where both have them, and what the last rows say of speed."""
    found: Pairs = {}
    for column in LOSSES:
        steps = [step for step in a.keys() & b.keys() if column in a[step] and column in b[step]]
        for step in sorted(steps)[-1:]:
            found[f"{column} at step {step}"] = a[step][column], b[step][column]
    found |= {column: pair for column, pair in differing(_newest(a), _newest(b)).items() if column in SPEED}
    return {key: pair for key, pair in found.items() if pair[0] != pair[1]}


def _newest(rows: dict[int, Row]) -> Facts:
    return {column: value for row in rows.values() for column, value in row.items()}


def _about_rows(a: dict[int, Row], b: dict[int, Row]) -> list[str]:
    """How far the rows of both agree, and whether their validations compare at all."""
    common = sorted(a.keys() & b.keys())
    if not common:
        return []
    notes = []
    if len({row["val/yardstick"] for rows in (a, b) for row in rows.values() if "val/yardstick" in row}) > 1:
        notes.append("they were validated on different windows, so their validation losses do not compare")
    for step in common:
        columns = [column for column in DETERMINISTIC if a[step].get(column) != b[step].get(column)]
        if columns:
            return [*notes, f"their metrics first differ at step {step}, in {', '.join(columns)}"]
    return [*notes, f"their metrics are equal in all {len(common)} rows that both have, up to step {common[-1]}"]


def render(comparison: Comparison, console: Console) -> None:
    """Print what differs, a section at a time."""
    table = Table(box=None, pad_edge=False, show_header=True)
    table.add_column("", no_wrap=True)
    for heading in (comparison.a, comparison.b, ""):
        table.add_column(heading, overflow="fold")
    for name, pairs in comparison.sections.items():
        if pairs or (name == "code" and comparison.files):
            table.add_row(name)
        for key, (a, b) in pairs.items():
            table.add_row(f"  {printable(key)}", _shown(a), _shown(b), _change(a, b))
        for file, lines in comparison.files.items() if name == "code" else ():
            table.add_row(f"  {printable(file)}", "", lines)
    if table.row_count:
        console.rich.print(table)
    else:
        console.say(f"nothing differs between {comparison.a} and {comparison.b}")
    for note in comparison.notes:
        console.notice(note)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", then ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else printable(shortened(value))


def _change(a: Any, b: Any) -> str:
    return f"{b - a:+.4g}" if isinstance(a, float) and isinstance(b, float) else ""
