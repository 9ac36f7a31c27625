"""What the numbers of a replay depend on besides the steps: device, kernels, threads, code. As recorded if possible."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gptlab import compiler
from gptlab.identity import NUMERICS, Fingerprint
from gptlab.limits import processors
from gptlab.terminal.text import plural
from gptlab.tracking import provenance
from gptlab.tracking.history import History
from gptlab.tracking.records import Start
from gptlab.tracking.run import Run
from gptlab.training.settings import Available, Settings, choose_kernels, resolve_settings
from gptlab.verification.stretch import Stretch

THREADS_PER_PROCESSOR = 8
"""A replay with more threads than this would wait for its own threads most of the time."""
SAME = ("platform", "device", "deterministic", "compile", "workers", "threads", "python", "torch")
"""Facts of an attempt on which its rounding can depend. CUDA graphs and sharding do not change it."""


@dataclass(frozen=True)
class Attempts:
    """The attempts that computed the steps of a stretch."""

    starts: tuple[Start, ...]
    """All attempts."""
    stretch: Stretch

    def at(self, step: int) -> Start | None:
        """Return the attempt that computed a step, counted from 0: the last one that began at it or before."""
        before = [start for start in self.starts if start.get("from_step", 0) <= step]
        return before[-1] if before else None

    def threads_at(self, step: int) -> int:
        """Return the number of threads to compute a step with: the recorded one, if this machine can have as many."""
        start = self.at(step)
        recorded = start.get("threads", 0) if start else 0
        return recorded if 0 < recorded <= max_threads() else torch.get_num_threads()

    def involved(self) -> list[Start]:
        """Return the attempts that computed a step of the stretch."""
        begins = sorted({start.get("from_step", 0) for start in self.starts})
        steps = [self.stretch.first, *(step for step in begins if self.stretch.first < step < self.stretch.last)]
        found = [start for step in steps if (start := self.at(step))]
        return [start for n, start in enumerate(found) if start not in found[:n]]

    @property
    def last(self) -> Start | None:
        """The last of them."""
        involved = self.involved()
        return involved[-1] if involved else None


def max_threads() -> int:
    """Return the largest number of threads that a replay uses because the run did."""
    return THREADS_PER_PROCESSOR * processors().threads


def attempts_of(history: History, stretch: Stretch) -> Attempts:
    """Return the attempts of a run, for a stretch of it."""
    return Attempts(tuple(history.starts), stretch)


def recorded_settings(run: Run, attempts: Attempts) -> Settings:
    """Return the settings of the stretch's last attempt, or what comes closest on this machine.

    Raises:
        BadInputError: No device of this machine supports the run's precision.
    """
    last = attempts.last
    available, recorded = Available.here(), last.get("device", "cpu") if last else "cpu"
    device = "cpu"
    if recorded == "mps":
        device = "mps" if available.mps and run.record.precision == "float32" else "cpu"
    elif recorded != "cpu":  # the name of a GPU
        fits = available.cuda and (run.record.precision == "float32" or available.bfloat16)
        device = "cuda" if fits else "cpu"
    settings = resolve_settings(device, run.record.precision, available)
    compiled = bool(last and last["compile"]) and compiler.missing(settings.device) is None
    return choose_kernels(settings, compiled, settings.capture)


def is_deterministic(attempts: Attempts) -> bool:
    """Return whether the stretch's last attempt used deterministic kernels only."""
    return bool(attempts.last and attempts.last.get("deterministic"))


@dataclass(frozen=True)
class Differences:
    """What differs between how a run was computed and how its replay is."""

    environment: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    code: tuple[str, ...] = ()
    reproducible: bool = False
    """Whether everything is the same that a bit could depend on, as far as it was recorded."""


def find_differences(
    run: Run, attempts: Attempts, settings: Settings, code: Fingerprint, threads: Mapping[int, int]
) -> Differences:
    """Compare what was recorded about a stretch with what its replay had.

    Args:
        run: The run.
        attempts: Its attempts.
        settings: The settings of the replay.
        code: What the code computes now.
        threads: The replay's threads by first step of each attempt.
    """
    here = {**settings.environment(), **provenance.environment(), "workers": 1}
    here["deterministic"] = torch.are_deterministic_algorithms_enabled()
    packages = here.pop("packages")
    environment: dict[str, tuple[Any, Any]] = {}
    involved = attempts.involved()
    used = [threads.get(start.get("from_step", 0), here["threads"]) for start in involved]
    for key in (*SAME, "host"):
        values = [start.get(key) for start in involved]
        ours = used if key == "threads" else [here[key]] * len(values)
        if values != ours:
            environment[key] = (_over_time(values), _over_time(ours))
    for name, version in packages.items():
        values = [start.get("packages", {}).get(name) for start in involved]
        if name in ("torch", "numpy") and any(value != version for value in values):
            environment[f"packages.{name}"] = (_over_time(values), version)
    numerics = run.record.identity.get("numerics")
    if numerics != NUMERICS:
        environment["numerics"] = (numerics, NUMERICS)
    recorded = run.record.fingerprint
    sentences = _code_sentences(run, involved, recorded, code)
    same_code = recorded is not None and recorded == code and not sentences
    on_cpu = settings.device == "cpu" and bool(involved)
    return Differences(environment, tuple(sentences), on_cpu and same_code and not environment)


def _code_sentences(run: Run, involved: list[Start], recorded: Fingerprint | None, code: Fingerprint) -> list[str]:
    """Sentences on what differs between the code of a stretch and the code here."""
    sentences = []
    hashes = {start.get("fingerprint") for start in involved} - {None}
    if recorded is None:
        sentences.append("an earlier version of gptlab did not record what the run's code computes")
    elif recorded.hash != code.hash:
        files = ", ".join(recorded.differing_files(code))
        where = f"these files differ: {files}" if files else "no file differs, so packages or processors do"
        sentences.append(f"the code computes something else than when the run began: {where}")
    elif files := ", ".join(recorded.differing_files(code)):
        sentences.append(f"these files have changed since the run began, but compute the same to 8 digits: {files}")
    elif recorded.numbers != code.numbers:
        sentences.append("the code is the same but rounds otherwise: another processor or build of a package")
    if recorded and hashes - {recorded.hash}:
        sentences.append("an attempt was made by code that computes something else than when the run began")
    return sentences


def _over_time(values: list[Any]) -> Any:
    distinct = [value for n, value in enumerate(values) if n == 0 or value != values[n - 1]]
    return distinct[0] if len(distinct) == 1 else distinct or None


def describe(settings: Settings, threads: set[int]) -> str:
    """Return device and threads in words."""
    counts = " and ".join(plural(count, "thread") for count in sorted(threads))
    return f"{settings.device_name()}, {settings.precision}, {counts}"
