"""How long the runs of a sweep will train, from the times of other runs of the same shape."""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from gptlab.commands.sweep_plan import Job
from gptlab.errors import GptlabError
from gptlab.spec import Experiment, Precision
from gptlab.tracking.run import Run, all_runs

Shape = tuple[Any, ...]


@dataclass(frozen=True)
class Speed:
    """Seconds of training per step, as one run measured it."""

    shape: Shape
    device: str
    threads: int | None
    seconds_per_step: float


def shape(experiment: Experiment, precision: Precision) -> Shape:
    """Return what determines the work of a step."""
    train = experiment.train
    return (experiment.model, train.batch_size, train.sequence_length, train.optimizer, precision)


def past_speeds(jobs: Sequence[Job]) -> list[Speed]:
    """Return the speeds of the runs that have the shape of one of these jobs."""
    wanted = {_shape_of(job) for job in jobs}
    alike = [run for run in all_runs() if shape(run.record.spec, run.record.precision) in wanted]
    return [speed for run in alike if (speed := measured_speed(run))]


def measured_speed(run: Run) -> Speed | None:
    """Return the speed of a run; None if it has not logged any."""
    try:
        history = run.history()
        elapsed, step = history.last("elapsed_s"), history.step
    except GptlabError:  # a damaged run says nothing about time
        return None
    if not history.starts or not step or elapsed is None or not 0 < elapsed < math.inf:
        return None
    start = history.starts[-1]
    of_shape = shape(run.record.spec, run.record.precision)
    return Speed(of_shape, start.get("device", ""), start.get("threads"), elapsed / step)


def seconds_per_step(job: Job, threads: int, speeds: Iterable[Speed]) -> float | None:
    """Return the median of the speeds with a job's shape, device and threads; else of those with its device."""
    device = job.point.settings.device_name()
    alike = [speed for speed in speeds if speed.shape == _shape_of(job) and speed.device == device]
    exactly = [speed.seconds_per_step for speed in alike if speed.threads == threads]
    found = exactly or [speed.seconds_per_step for speed in alike]
    return median(found) if found else None


def seconds_of_jobs(jobs: list[tuple[Job, int, int]], speeds: list[Speed], at_once: int) -> float | None:
    """Return how long jobs take that have done some steps with some threads; None if that is unknown."""
    durations = []
    for job, step, threads in jobs:
        per_step = seconds_per_step(job, threads, speeds)
        if per_step is None:
            return None
        durations.append(per_step * max(job.point.steps - step, 0))
    return total_seconds(durations, at_once)


def total_seconds(durations: Iterable[float], at_once: int) -> float:
    """Return how long jobs take if each starts as soon as one of `at_once` places is free."""
    places = [0.0] * at_once
    for duration in durations:
        heapq.heapreplace(places, places[0] + duration)
    return max(places)


def _shape_of(job: Job) -> Shape:
    return shape(job.point.experiment, job.point.settings.precision)
