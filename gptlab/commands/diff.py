"""`gptlab diff`: what differs between two runs, or between a run and the same experiment here and now.

Causes come first (spec, code, data, environment), then results. Only differences are shown.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from gptlab import catalog
from gptlab.errors import BadInputError
from gptlab.identity import NUMERICS, Fingerprint, identity_fields
from gptlab.spec import Experiment, flatten
from gptlab.terminal.console import Console
from gptlab.terminal.tables import borderless
from gptlab.terminal.text import abbreviate_hash, printable
from gptlab.tracking import provenance
from gptlab.tracking.comparison import compare_metrics
from gptlab.tracking.metrics import newest_values
from gptlab.tracking.provenance import Source
from gptlab.tracking.records import RunRecord, Start
from gptlab.tracking.run import Run

logger = logging.getLogger(__name__)

Facts = dict[str, Any]
Pairs = dict[str, tuple[Any, Any]]

CODE = ("git_commit", "git_dirty", "diff_sha256")
MACHINE = (
    "host",
    "platform",
    "device",
    "deterministic",
    "compile",
    "capture",
    "workers",
    "shard",
    "threads",
    "python",
    "torch",
)
PERFORMANCE = ("perf/tokens_per_s", "perf/peak_mem_gib", "elapsed_s", "cpu_s")


@dataclass(frozen=True)
class Side:
    """One of the two sides of a comparison."""

    label: str
    spec: Facts
    code: Facts
    data: Facts
    environment: Facts
    fingerprint: Fingerprint | None
    """What the code computes; None if it was not recorded."""
    identity: Facts
    """The fields that the fingerprint depends on besides the code."""
    sources: tuple[Source, ...]
    """The successive versions of the code: of each attempt, or only the working tree."""
    results: Facts = field(default_factory=dict)
    metrics: Path | None = None
    """Directory of the run, whose metrics are compared."""
    damaged: bool = False
    """Whether its losses are not reliable."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What differs: for each section the differing keys with both values."""

    a: str
    b: str
    sections: dict[str, Pairs]
    files: dict[str, str]
    """Added and removed lines of each file of code, such as `+4 −2`, from the last attempt of a to that of b."""
    notes: list[str]
    patch: bytes
    """The differences in code, as git prints them."""

    def document(self) -> dict[str, Any]:
        """Return what `gptlab diff --json` prints."""
        sections = {
            name: {key: {"a": a, "b": b} for key, (a, b) in pairs.items()} for name, pairs in self.sections.items()
        }
        return {"a": self.a, "b": self.b, **sections, "files": self.files, "notes": self.notes}

    def printable_patch(self) -> str:
        """Return the differences in code as text that is safe to print."""
        return printable(self.patch.decode(errors="replace"))


def recorded_side(run: Run) -> Side:
    """Return the side of a run, from its records."""
    record, history = run.record, run.history()
    starts = history.starts
    if history.damage:
        logger.warning("%s; its losses are not compared", history.damage)
    packages = {name for start in starts for name in start.get("packages", {})}
    spec = _spec(record.spec, record.precision, record.identity.get("numerics"))
    return Side(
        label=printable(run.directory.absolute().name),
        spec={
            **spec,
            "seed": record.seed,
            "initial_weights": record.initial_weights.reference if record.initial_weights else _imported(record),
            "branch": record.branch and record.branch.reference,
        },
        code={key: _over_time(start.get(key) for start in starts) for key in (*CODE, "fingerprint")},
        data={
            "text.source": record.text.source,
            "text.bytes": record.text.bytes,
            "text.sha256": record.text.sha256,
            "tokenizer": record.spec.data.tokenizer,
            "tokenizer_sha256": record.tokenizer_sha256,
        },
        environment={
            **{key: _over_time(start.get(key) for start in starts) for key in MACHINE},
            **{
                f"packages.{name}": _over_time(start.get("packages", {}).get(name) for start in starts)
                for name in sorted(packages)
            },
        },
        fingerprint=record.fingerprint,
        identity=identity_fields(record.spec),
        sources=_recorded_sources(run.directory, starts),
        results={"status": history.status, "step": history.step},
        metrics=run.directory,
        damaged=bool(history.damage),
    )


def current_side(run: Run) -> Side:
    """Return what the run would be if it started now: its experiment's current spec and code, on this machine.

    Notes say whether the experiment or the run's text is gone or has changed.

    Raises:
        BadInputError: The experiments cannot be read, or this machine does not support the precision.
    """
    from gptlab.data.vocabularies import find_tokenizer
    from gptlab.training.capacity import limit_threads
    from gptlab.training.fingerprint_cache import fingerprint
    from gptlab.training.run_text import stored_text
    from gptlab.training.run_tokenizer import run_tokenizer
    from gptlab.training.settings import Available, resolve_settings

    notes = []
    name, found = run.record.spec.name, catalog.load()
    experiment = found.experiments.get(name)
    if experiment is None:
        problem = found.problem_with(name)
        notes.append(problem.message if problem else f"the experiment '{name}' no longer exists")
        experiment = run.record.spec
    try:
        stored_text(run)
    except BadInputError as error:
        notes.append(str(error))
    # With the same spec, only the code makes a difference.
    arithmetic = fingerprint(run.record.spec, run_tokenizer(run), run.record.precision)
    try:
        tokenizer = {"tokenizer_sha256": find_tokenizer(experiment.data.tokenizer).sha256}
    except BadInputError as error:
        tokenizer = {}
        notes.append(str(error))
    source = provenance.working_tree()
    notes += [source.unknown] if source.unknown else []
    limit_threads()
    settings = resolve_settings("auto", experiment.train.precision, Available.here())
    environment = {**settings.environment(), **provenance.environment()}
    return Side(
        label="here and now",
        spec=_spec(experiment, settings.precision, NUMERICS),
        code={**source.facts(), "fingerprint": arithmetic.hash},
        data=tokenizer,
        environment=dict(flatten(environment)),
        fingerprint=arithmetic,
        sources=(source,),
        identity=identity_fields(run.record.spec),
        notes=tuple(notes),
    )


def compare(a: Side, b: Side) -> Comparison:
    """Compare the facts that both sides have."""
    sections = {name: differing(getattr(a, name), getattr(b, name)) for name in ("spec", "code", "data", "environment")}
    if a.identity != b.identity:  # the same code computes something else from another spec
        sections["code"].pop("fingerprint", None)
    mixed = list(dict.fromkeys([*_changes_between_attempts(a), *_changes_between_attempts(b)]))
    notes = [*a.notes, *b.notes, *_changed_in_both(a, b), *mixed]
    changes = provenance.compare_sources(a.sources[-1], b.sources[-1])
    if changes is None:
        notes.append("the code cannot be compared: a commit is missing from this repository, or a patch from its run")
    elif sections["code"] and not changes.files and not mixed:
        notes.append("the code is the same in every file")
    notes += _arithmetic(a, b)
    sections["results"] = differing(a.results, b.results)
    if a.metrics and b.metrics:
        found = compare_metrics(a.metrics, b.metrics, same_tokenizer="tokenizer_sha256" not in sections["data"])
        if not a.damaged and not b.damaged:
            newest = (newest_values(run, PERFORMANCE) for run in (a.metrics, b.metrics))
            sections["results"] |= found.losses | differing(*newest)
        notes += found.notes()
    files, patch = (changes.files, changes.patch) if changes else ({}, b"")
    return Comparison(a.label, b.label, sections, files, notes, patch)


def _arithmetic(a: Side, b: Side) -> list[str]:
    """A note on whether the code of both sides computes the same, unless it is the same code."""
    if a.fingerprint is None or b.fingerprint is None:
        return ["whether the code computes the same is unknown: an earlier version of gptlab did not record it"]
    files = ", ".join(a.fingerprint.differing_files(b.fingerprint))
    if a.identity == b.identity and a.fingerprint.hash != b.fingerprint.hash:
        where = f"these files differ: {files}" if files else "no file differs, so packages or processors do"
        return [f"different arithmetic: {where}"]
    if not files:
        return []
    if a.identity == b.identity:
        return [f"these files differ, but compute the same: {files}"]
    return [f"these files differ; whether their arithmetic does is unknown, because the specs differ: {files}"]


def differing(a: Facts, b: Facts) -> Pairs:
    """Return the keys that both have, with different values."""
    return {key: (a[key], b[key]) for key in a if key in b and a[key] != b[key]}


def _imported(record: RunRecord) -> str | None:
    """Return the weights of a directory that a run starts from, as text."""
    weights = record.imported_weights
    return f"{weights.path}:{weights.sha256:.8}" if weights else None


def _spec(experiment: Experiment, precision: str, numerics: Any) -> Facts:
    """The fields of a spec with the resolved precision. Text and tokenizer are compared by their sha256."""
    fields = dict(flatten(experiment.model_dump(mode="json", exclude={"data": {"text", "tokenizer"}})))
    return {**fields, "train.precision": precision, "numerics": numerics}


def _over_time(values: Iterable[Any]) -> Any:
    """The value that all attempts share, else the list of its successive values; None without attempts."""
    distinct = [value for value, _ in groupby(values)]
    return distinct[0] if len(distinct) == 1 else distinct or None


def _recorded_sources(directory: Path, starts: list[Start]) -> tuple[Source, ...]:
    """The successive versions of a run's code; of equal ones in a row, one is read."""
    versions = [tuple(start.get(key) for key in CODE) for start in starts]
    last_of_each = [n for n in range(1, len(starts) + 1) if versions[n - 1 : n] != versions[n : n + 1]]
    return tuple(provenance.recorded_source(directory, starts[:n]) for n in last_of_each or [0])


def _changed_in_both(a: Side, b: Side) -> list[str]:
    """Notes on what changed between the attempts of both sides in the same way, which is no difference between them."""
    facts = [*a.code.items(), *a.environment.items()]
    shared = {**b.code, **b.environment}
    return [
        f"in both, {key} changed between attempts: {_format(value)}"
        for key, value in facts
        if isinstance(value, list) and shared.get(key) == value
    ]


def _changes_between_attempts(side: Side) -> list[str]:
    """Notes on which code changed between the attempts of a run. Only the code of its last attempt is compared."""
    notes = []
    for old, new in pairwise(side.sources):
        changes = provenance.compare_sources(old, new)
        if changes is None:
            notes.append(f"the attempts of {side.label} ran different commits or changes, which cannot be compared")
        elif changes.files:
            files = ", ".join(f"{name} {lines}" for name, lines in changes.files.items())
            notes.append(f"the attempts of {side.label} ran different code: {printable(files)}")
    return notes


def render(comparison: Comparison) -> None:
    """Print what differs, section by section."""
    console = Console()
    table = borderless("", comparison.a, comparison.b, "")
    table.columns[0].no_wrap = True
    for name, pairs in comparison.sections.items():
        if pairs or (name == "code" and comparison.files):
            table.add_row(name)
        for key, (a, b) in pairs.items():
            table.add_row(f"  {printable(key)}", _format(a), _format(b), _format_change(a, b))
        for file, lines in comparison.files.items() if name == "code" else ():
            table.add_row(f"  {printable(file)}", "", lines)
    if table.row_count:
        console.table(table)
    else:
        console.print(f"nothing differs between {comparison.a} and {comparison.b}")
    for note in comparison.notes:
        console.notice(note)


def _format(value: Any) -> str:
    if isinstance(value, list):
        return ", then ".join(map(_format, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else printable(abbreviate_hash(value))


def _format_change(a: Any, b: Any) -> str:
    return f"{b - a:+.4g}" if isinstance(a, float) and isinstance(b, float) else ""
