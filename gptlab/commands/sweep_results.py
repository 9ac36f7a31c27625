"""What became of the runs of a sweep, and the mean of each point over its seeds."""

import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gptlab.commands.run_seeds import SeedResult, SeedResults
from gptlab.commands.seeds import Summary
from gptlab.commands.sweep_plan import Job, Point, SweepPlan
from gptlab.commands.sweep_processes import Ended
from gptlab.errors import EXIT_DIVERGED, EXIT_FAILED, GptlabError

NOT_STARTED = "not started"


@dataclass(frozen=True)
class JobResult:
    """What became of a run."""

    job: Job
    seed_result: SeedResult | None
    """None if the run was not started."""

    def document(self) -> dict[str, Any]:
        """Return what `gptlab sweep --json` prints for the run."""
        facts = self.seed_result.document() if self.seed_result else {"status": NOT_STARTED, "seed": self.job.seed}
        return {**facts, "run": self.job.run_id, "varied": self.job.point.varied}

    @property
    def status(self) -> str:
        """The run's status, or `not started`."""
        return str(self.document()["status"])


@dataclass(frozen=True)
class SweepResults:
    """What became of a sweep."""

    plan: SweepPlan
    results: list[JobResult]
    """In the order of the plan."""
    stopped_by: signal.Signals | None

    @property
    def exit_code(self) -> int:
        """128 plus the number of the signal that stopped the sweep, else the worst exit code of its runs."""
        if self.stopped_by:
            return 128 + self.stopped_by
        return max((each.seed_result.exit_code for each in self.results if each.seed_result), default=0)

    def counts(self) -> dict[str, int]:
        """Return how many runs have each status, the most frequent first."""
        return dict(Counter(each.status for each in self.results).most_common())

    def failures(self) -> list[JobResult]:
        """Return the runs that failed, diverged or could not be started, without those that the signal stopped."""
        return [each for each in self.results if each.seed_result and each.seed_result.error]

    def of_points(self) -> list[tuple[Point, Summary]]:
        """Return the mean validation loss of each point over its seeds."""
        return [(point, self._seeds_of(point).summary()) for point in self.plan.points]

    def _seeds_of(self, point: Point) -> SeedResults:
        own = [each for each in self.results if each.job.point is point]
        started = [each.seed_result for each in own if each.seed_result]
        return SeedResults(started, [each.job.seed for each in own if not each.seed_result])

    def document(self) -> dict[str, Any]:
        """Return what `gptlab sweep --json` prints."""
        return {
            "sweep": self.plan.name,
            "tag": self.plan.tag,
            "runs": [each.document() for each in self.results],
            "points": [{"varied": point.varied, "summary": summary.document()} for point, summary in self.of_points()],
        }


def collect(plan: SweepPlan, ended: Sequence[Ended], stopped_by: signal.Signals | None) -> SweepResults:
    """Return what became of each run of the plan, given how the processes ended that were started."""
    processes = {each.job.run_id: each for each in ended}
    results = [JobResult(job, _result(job, processes.get(job.run_id), stopped_by)) for job in plan.jobs]
    return SweepResults(plan, results, stopped_by)


def _result(job: Job, ended: Ended | None, stopped_by: signal.Signals | None) -> SeedResult | None:
    if ended is None and not job.is_done:
        return None
    run, error, code = None, ended.error if ended else None, ended.exit_code if ended else 0
    with suppress(GptlabError):  # it is damaged; then its process said so
        run = job.load()
    if job.status == "diverged":
        code, error = EXIT_DIVERGED, f"it diverged at step {job.step} before, and would diverge again"
    elif code == 0 and run is None:
        code = EXIT_FAILED
        error = "its process trained another run, because the experiment or the code was changed; start the sweep again"
    elif code > 128 and stopped_by:
        error = None
    return SeedResult(job.seed, run, code, error)
