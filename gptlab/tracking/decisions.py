"""Stored decisions between two experiments: `runs/decisions/FIRST.vs.SECOND.at-STEPS.json`.

A decision is stored from its first look on, and again after each pair of seeds. Its verdict is not stored: it follows
from the losses. A decision may come from someone else, so it is read as untrusted data.
"""

import json
import logging
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from gptlab import project
from gptlab.digests import check_digest, with_digest
from gptlab.errors import GptlabError
from gptlab.files import make_directory, write_durably
from gptlab.sequential import ERROR, FIRST_LOOK, MAX_COMPARISONS, MAX_SEEDS, Design, Look, Verdict, decide, looks
from gptlab.tracking.records import Timestamp
from gptlab.untrusted import Count, read_document

DECISIONS = "decisions"
MAX_EARLIER = 100

logger = logging.getLogger(__name__)

ExperimentId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}-[0-9a-f]{8}$")]
"""`NAME-HASH8`, which the runs of an experiment share."""
Margin = Annotated[FiniteFloat, Field(gt=0)]
Budget = Annotated[int, Field(ge=FIRST_LOOK, le=MAX_SEEDS)]
Comparisons = Annotated[int, Field(ge=1, le=MAX_COMPARISONS)]


class Pair(BaseModel):
    """The validation losses of both experiments with one seed, in nats per token; None if it diverged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: Count
    reference: FiniteFloat | None
    experiment: FiniteFloat | None

    @property
    def difference(self) -> float:
        """The experiment's loss minus the reference's; NaN if one of them diverged."""
        return math.nan if self.reference is None or self.experiment is None else self.experiment - self.reference


class Earlier(BaseModel):
    """A decision on the same pair that was followed by another one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: Margin
    max_seeds: Budget
    comparisons: Comparisons
    seeds: Count
    verdict: Verdict


class Decision(BaseModel):
    """What was fixed at the first look, and the losses since."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: ExperimentId
    experiment: ExperimentId
    steps: Annotated[int, Field(ge=1, le=10**8)]
    margin: Margin
    max_seeds: Budget
    comparisons: Comparisons
    level: Annotated[float, Field(gt=0, le=ERROR)]
    """The nominal level of each interval, from the table of the version that began the decision."""
    created: Timestamp
    pairs: Annotated[tuple[Pair, ...], Field(max_length=MAX_SEEDS)] = ()
    earlier: Annotated[tuple[Earlier, ...], Field(max_length=MAX_EARLIER)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reference == self.experiment:
            raise ValueError("the experiment is compared with itself")
        if [pair.seed for pair in self.pairs] != list(range(len(self.pairs))):
            raise ValueError("the seeds are not 0, 1, 2, …")
        return self

    @property
    def design(self) -> Design:
        """What was fixed at the first look."""
        return Design(self.margin, self.max_seeds, self.comparisons, self.level)

    @property
    def differences(self) -> list[float]:
        """The differences of the pairs."""
        return [pair.difference for pair in self.pairs]

    def looks(self) -> list[Look]:
        """Return all looks."""
        return list(looks(self.design, self.differences))

    @property
    def look(self) -> Look | None:
        """The look that decides, or the last one; None before the first look."""
        return decide(self.design, self.differences)

    @property
    def verdict(self) -> Verdict:
        """What is decided, seen from the experiment."""
        return self.look.verdict if self.look else "open"

    @property
    def number(self) -> int:
        """1, or more if decisions on the same pair came before."""
        return 1 + len(self.earlier)

    def with_pair(self, reference: float | None, experiment: float | None) -> Self:
        """Return the decision with the losses of the next seed."""
        pair = Pair(seed=len(self.pairs), reference=reference, experiment=experiment)
        return self.model_copy(update={"pairs": (*self.pairs, pair)})

    def seen_from(self, reference: str) -> Self:
        """Return the decision with this one of its experiments as the reference."""
        if reference == self.reference:
            return self
        pairs = (Pair(seed=each.seed, reference=each.experiment, experiment=each.reference) for each in self.pairs)
        swapped = {"reference": self.experiment, "experiment": self.reference, "pairs": tuple(pairs)}
        return self.model_copy(update=swapped)

    def summary(self) -> Earlier:
        """Return what a later decision on the same pair keeps of this one."""
        return Earlier(
            margin=self.margin,
            max_seeds=self.max_seeds,
            comparisons=self.comparisons,
            seeds=len(self.pairs),
            verdict=self.verdict,
        )

    def to_json(self) -> str:
        """Return the content of the file."""
        return json.dumps(with_digest(self.model_dump(mode="json")), indent=2, ensure_ascii=False) + "\n"


class _Stored(Decision):
    """A decision as it is read from its file."""

    @model_validator(mode="before")
    @classmethod
    def _check_digest(cls, document: Any) -> Any:
        try:
            return check_digest(document)
        except ValueError as error:
            raise ValueError(str(error).removeprefix("damaged: ")) from None  # the reader says that it is


def new_decision(
    reference: str, experiment: str, steps: int, design: Design, earlier: tuple[Earlier, ...] = ()
) -> Decision:
    """Return a decision without a seed."""
    return Decision(
        reference=reference,
        experiment=experiment,
        steps=steps,
        margin=design.margin,
        max_seeds=design.max_seeds,
        comparisons=design.comparisons,
        level=design.level,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        earlier=earlier[-MAX_EARLIER:],
    )


def name_of(experiment: str) -> str:
    """Return the name of `NAME-HASH8`."""
    return experiment.rpartition("-")[0]


def path_of(reference: str, experiment: str, steps: int) -> Path:
    """Return the file of the decision between two experiments, in either order."""
    first, second = sorted((reference, experiment))
    return project.runs_directory() / DECISIONS / f"{first}.vs.{second}.at-{steps}.json"


def store(decision: Decision) -> Path:
    """Write a decision and return its path. A crash leaves the earlier content or the new one."""
    path = path_of(decision.reference, decision.experiment, decision.steps)
    make_directory(path.parent)
    write_durably(path, decision.to_json())
    return path


def find(reference: str, experiment: str, steps: int) -> Decision | None:
    """Return the stored decision between two experiments, seen from `reference`.

    Raises:
        GptlabError: Its file is damaged or holds another decision.
    """
    path = path_of(reference, experiment, steps)
    try:
        decision = _read(path)
    except FileNotFoundError:
        return None
    except GptlabError as error:
        raise GptlabError(f"{error}; remove the file to decide again from the runs") from None
    return decision.seen_from(reference)


def all_decisions() -> list[Decision]:
    """Return every stored decision, by file. Unreadable ones are skipped with a warning."""
    found = []
    for path in sorted((project.runs_directory() / DECISIONS).glob("*.json")):
        try:
            found.append(_read(path))
        except FileNotFoundError:
            continue
        except GptlabError as error:
            logger.warning("%s; this decision is skipped", error)
    return found


def _read(path: Path) -> Decision:
    decision = Decision(**dict(read_document(path, _Stored)))
    if path_of(decision.reference, decision.experiment, decision.steps).name != path.name:
        raise GptlabError(f"{path} is damaged: it holds the decision of {decision.experiment} and {decision.reference}")
    return decision
