"""The runs of a sweep: which there are, under which ids, in which order, and how each is started."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from gptlab import catalog
from gptlab.commands.run_settings import format_setting, short_names
from gptlab.errors import BadInputError
from gptlab.model.measure import size_of
from gptlab.spec import Experiment, flatten, parse_settings
from gptlab.sweeps import MAX_POINTS, Sweep
from gptlab.tracking.run import RECORD, Run, load_run
from gptlab.training.plan import Plan, plan
from gptlab.training.settings import Settings
from gptlab.training.training_data import load_training_data
from gptlab.validation import MAX_TAG_LENGTH


@dataclass(frozen=True)
class Point:
    """One experiment of a sweep, which has a run per seed."""

    experiment: Experiment
    varied: dict[str, Any]
    """The settings that differ between the points, by dotted key."""
    arguments: list[str]
    """What `gptlab run` needs to know for it, besides the seed."""
    hash: str
    """The hash of its identity."""
    settings: Settings

    @property
    def cells(self) -> dict[str, str]:
        """What is varied, as text by short name."""
        return dict(zip(short_names(list(self.varied)), map(format_setting, self.varied.values()), strict=True))

    @property
    def label(self) -> str:
        """What is varied, in a few words."""
        return " · ".join(f"{name} {value}" for name, value in self.cells.items())

    @property
    def steps(self) -> int:
        """The number of steps that its runs can be trained to: at most the schedule's horizon."""
        train = self.experiment.train
        return min(train.steps, train.horizon or train.steps)


@dataclass(frozen=True)
class Job:
    """A run of a sweep, as it was before the sweep began."""

    point: Point
    seed: int
    directory: Path
    status: str
    """`new`, or that of the run."""
    step: int
    """Steps done."""
    threads: int | None
    """Number of threads of the run's last attempt; None if there was none."""

    @property
    def run_id(self) -> str:
        """The run's id, whether the run exists or not."""
        return self.directory.name

    @property
    def label(self) -> str:
        """Settings and seed in a few words."""
        return " · ".join(filter(None, [self.point.label, f"seed {self.seed}"]))

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do: the run is complete, or has diverged and would diverge again."""
        return self.status == "diverged" or (self.status == "complete" and self.step >= self.point.steps)

    def load(self) -> Run | None:
        """Return the run, if it exists.

        Raises:
            GptlabError: It is damaged.
        """
        return load_run(self.directory) if (self.directory / RECORD).is_file() else None


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep."""

    name: str
    why: str
    points: list[Point]
    jobs: list[Job]
    """In the order in which they are started: all points with the first seed, then all with the second."""

    @property
    def tag(self) -> str:
        """The tag that the runs share."""
        tag = f"sweep:{self.name}"
        return tag if len(tag) <= MAX_TAG_LENGTH else f"{tag[: MAX_TAG_LENGTH - 9]}-{_digits(tag)}"


def plan_sweep(
    names: Sequence[str], seeds: Sequence[int] | None, changes: dict[str, Any], device: str = "auto"
) -> SweepPlan:
    """Resolve a sweep, or several experiments, on this machine.

    The points come in their order for the first seed, then again for the next one. So whenever a sweep is stopped, all
    points can be compared over the seeds that they have in common, and a first comparison exists as early as possible.

    Args:
        names: The name of one sweep, or those of experiments.
        seeds: The seeds; by default those of the sweep, or 0.
        changes: New values for all points, by dotted key.
        device: The device to train on.

    Raises:
        BadInputError: There is no such sweep or experiment, a point cannot be run, or two points are one run.
        GptlabError: A run that exists is damaged.
    """
    found = catalog.load()
    chosen = catalog.find_all(list(names), found)
    name, why, variants, seeds = _variants(chosen, seeds)
    if len(variants) * len(seeds) > MAX_POINTS:
        raise BadInputError(f"{name} has {len(variants) * len(seeds):,} runs; at most {MAX_POINTS:,} are possible")
    variants = [variant.with_changes(changes) for variant in variants]
    arguments = [_arguments(variant, found.experiments, name) for variant in variants]
    plans = [_plan(variant, device) for variant in variants]
    _check_different(name, plans)
    points = [
        Point(variant, varied, words, planned.identity.hash, planned.settings)
        for variant, varied, words, planned in zip(variants, _varied(variants), arguments, plans, strict=True)
    ]
    directories = [planned.run_directory.parent for planned in plans]
    jobs = [
        _job(point, seed, directory / planned.identity.run_id(seed))
        for seed in seeds
        for point, planned, directory in zip(points, plans, directories, strict=True)
    ]
    return SweepPlan(name, why, points, jobs)


def _variants(
    chosen: list[Sweep | Experiment], seeds: Sequence[int] | None
) -> tuple[str, str, list[Experiment], Sequence[int]]:
    """Return name, question, points and seeds of a sweep or of several experiments."""
    if isinstance(chosen[0], Sweep) and len(chosen) == 1:
        sweep = chosen[0]
        return sweep.name, sweep.why, list(sweep.runs), seeds or sweep.seeds
    experiments = [each for each in chosen if isinstance(each, Experiment)]
    names = [each.name for each in chosen]
    if len(experiments) < len(chosen):
        raise BadInputError(f"give one sweep or several experiments, not {', '.join(names)}; start them one by one")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise BadInputError(f"experiment {repeated[0]} is named twice")
    return "+".join(names), " ".join(each.why for each in experiments), experiments, seeds or [0]


def _arguments(variant: Experiment, registered: dict[str, Experiment], sweep: str) -> list[str]:
    """Return the name of an experiment and the settings that make the variant of it."""
    base = registered.get(variant.name)
    if base is None:
        raise BadInputError(
            f"{sweep} varies '{variant.name}', which is no experiment of this project; give it a name of its own in "
            f"experiments/, such as: base = Experiment(name='{variant.name}', …)"
        )
    old, new = (dict(flatten(each.model_dump(exclude={"name", "why"}))) for each in (base, variant))
    settings = [f"{key}={_as_setting(value)}" for key, value in new.items() if key not in old or old[key] != value]
    if base.with_changes(parse_settings(settings)).model_copy(update={"why": variant.why}) != variant:
        raise BadInputError(f"{sweep}: {variant.name} with {', '.join(settings)} cannot be told to `gptlab run`")
    return [variant.name, *(word for setting in settings for word in ("--set", setting))]


def _as_setting(value: Any) -> str:
    """Return a value so that `parse_settings` reads the same value."""
    if value is None:
        return "none"
    return str(value) if isinstance(value, str) else json.dumps(value)


def _plan(variant: Experiment, device: str) -> Plan:
    """Resolve a point, and check all that its runs would check before they write anything."""
    size_of(variant)
    planned = plan(variant, 0, device)
    load_training_data(variant, planned.text, 0, planned.tokenizer)
    return planned


def _check_different(sweep: str, plans: list[Plan]) -> None:
    """Check that no two points are one run.

    Raises:
        BadInputError: Two are; the message names them and the fields in which they differ without effect.
    """
    seen: dict[str, int] = {}
    for number, planned in enumerate(plans, start=1):
        run_id = planned.identity.run_id(0)
        first = seen.setdefault(run_id, number)
        if first != number:
            names = (planned.experiment, plans[first - 1].experiment)
            one, other = (dict(flatten(each.model_dump(exclude={"name", "why"}))) for each in names)
            differing = [f"{key} ({other[key]} and {one[key]})" for key in one if one[key] != other.get(key)]
            same = f"{sweep}: points {first} and {number} are the same run, {run_id.rpartition('-')[0]}"
            if differing:
                raise BadInputError(f"{same}: they differ only in {', '.join(differing)}, which is not part of the id")
            raise BadInputError(f"{same}: all fields are equal; vary other values, or --set a key that is not varied")


def _varied(variants: list[Experiment]) -> list[dict[str, Any]]:
    """Return what differs between the points, by dotted key; the name of the experiment comes first."""
    documents = [dict(flatten(variant.model_dump(mode="json", exclude={"why"}))) for variant in variants]
    keys = [key for key in documents[0] if len({repr(document.get(key)) for document in documents}) > 1]
    return [{key: document.get(key) for key in keys} for document in documents]


def _job(point: Point, seed: int, directory: Path) -> Job:
    if not (directory / RECORD).is_file():
        return Job(point, seed, directory, "new", 0, None)
    history = load_run(directory).history()
    threads = history.starts[-1].get("threads") if history.starts else None
    return Job(point, seed, directory, history.status, history.step, threads)


def _digits(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]
