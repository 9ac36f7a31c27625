"""What is recorded of a run besides its numbers: `run.json`, and the rows of `attempts.jsonl` and `samples.jsonl`.

They are typed, so that whoever reads them back need not ask what a field holds.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Required, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from typing_extensions import TypedDict

from gptlab.spec import Experiment, Identity, Precision, hash_of, identify
from gptlab.tracking.reading import Count

Outcome = Literal["complete", "interrupted", "diverged", "failed"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00]*$")]


class TextRecord(BaseModel):
    """The text as it was when the run began."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    path: AbsolutePath
    bytes: Count
    sha256: str


class InitialWeights(BaseModel):
    """Where a warm start takes its weights from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    step: Count
    path: AbsolutePath
    sha256: str


def _as_written(created: str) -> str:
    at = datetime.fromisoformat(created)
    if at.tzinfo != UTC or at.isoformat(timespec="milliseconds") != created:
        raise ValueError("this is not a time as gptlab writes it")
    return created


class RunRecord(BaseModel):
    """`run.json`: what the run computes. Written once, never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    seed: Count
    created: Annotated[str, AfterValidator(_as_written)]
    spec: Experiment
    precision: Precision
    identity: dict[str, Any]
    """All that went into the hash of the run's id."""
    text: TextRecord
    tokenizer_sha256: str
    initial_weights: InitialWeights | None = None
    """None where the weights are drawn from the seed."""
    wandb_id: str
    """The run's id and a random suffix: two machines, or a deleted run, never meet in one W&B run."""

    @model_validator(mode="after")
    def _is_what_its_id_says(self) -> Self:
        parent = self.initial_weights
        own = identify(
            self.spec,
            precision=self.precision,
            text_sha256=self.text.sha256,
            tokenizer_sha256=self.tokenizer_sha256,
            initial_weights_sha256=parent.sha256 if parent else None,
        )
        numerics = self.identity.get("numerics")
        revised = {**own.content, "numerics": numerics}  # as the code computed it then
        if self.identity != revised or type(numerics) is not int or not 0 < numerics < 2**31:
            raise ValueError("the identity is not that of the spec")
        if self.run != Identity(own.name, hash_of(self.identity), self.identity).run_id(self.seed):
            raise ValueError("the run's id is not that of its identity")
        if not re.fullmatch(rf"{re.escape(self.run)}-[0-9a-f]{{8}}", self.wandb_id):
            raise ValueError("the id in W&B does not begin with the run's own")
        return self


class Start(TypedDict, total=False):
    """The row of `attempts.jsonl` with which an attempt starts; it has more than what is read again."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # pydantic's own way

    event: Required[Literal["start"]]
    steps: Required[Count]
    device: str
    deterministic: bool
    host: str
    platform: str
    python: str
    torch: str
    packages: dict[str, str | None]
    threads: Count
    git_commit: Commit | None
    git_dirty: bool | None
    diff_sha256: Sha256 | None
    tags: list[str]
    notes: str
    artifacts: Literal["best", "final"] | None


class End(TypedDict):
    """The row of `attempts.jsonl` with which an attempt ends; one that diverged says more."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # pydantic's own way

    event: Literal["end"]
    step: Count
    status: Outcome


class Sample(TypedDict):
    """A row of `samples.jsonl`."""

    step: Count
    prompt: str
    text: str


ATTEMPT: TypeAdapter[Start | End] = TypeAdapter(Annotated[Start | End, Field(discriminator="event")])
SAMPLE = TypeAdapter(Sample)
