"""Types of a run's records: `run.json`, and the rows of `attempts.jsonl` and `samples.jsonl`."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Required, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from typing_extensions import TypedDict

from gptlab.identity import Identity, hash_of, identify
from gptlab.spec import Experiment, Precision
from gptlab.untrusted import Count

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
    """The checkpoint from whose weights a run starts (a warm start)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    step: Count
    path: AbsolutePath
    sha256: str


def _check_timestamp(created: str) -> str:
    at = datetime.fromisoformat(created)
    if at.tzinfo != UTC or at.isoformat(timespec="milliseconds") != created:
        raise ValueError("not a UTC time in ISO 8601 with milliseconds")
    return created


class RunRecord(BaseModel):
    """`run.json`: what the run computes. It is written once and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    seed: Count
    created: Annotated[str, AfterValidator(_check_timestamp)]
    spec: Experiment
    precision: Precision
    identity: dict[str, Any]
    """What the hash in the run's id is computed from; see `Identity.content`."""
    text: TextRecord
    tokenizer_sha256: str
    initial_weights: InitialWeights | None = None
    """None if the weights are drawn from the seed."""
    wandb_id: str
    """The run's id and a random suffix, so that equal runs on two machines, or after a deletion, differ in W&B."""

    @model_validator(mode="after")
    def _check_identity(self) -> Self:
        parent = self.initial_weights
        own = identify(
            self.spec,
            precision=self.precision,
            text_sha256=self.text.sha256,
            tokenizer_sha256=self.tokenizer_sha256,
            initial_weights_sha256=parent.sha256 if parent else None,
        )
        numerics = self.identity.get("numerics")
        revised = {**own.content, "numerics": numerics}  # as computed by the code of that time
        if self.identity != revised or type(numerics) is not int or not 0 < numerics < 2**31:
            raise ValueError("the identity does not belong to the spec")
        if self.run != Identity(own.name, hash_of(self.identity), self.identity).run_id(self.seed):
            raise ValueError("the run's id does not belong to its identity")
        if not re.fullmatch(rf"{re.escape(self.run)}-[0-9a-f]{{8}}", self.wandb_id):
            raise ValueError("the W&B id does not start with the run's id")
        return self


class Start(TypedDict, total=False):
    """The row of `attempts.jsonl` for the start of an attempt. It may have further keys."""

    # pydantic reads its configuration from this attribute; mypy allows only fields in a TypedDict.
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

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
    out_of_memory_kills: Count | None
    git_commit: Commit | None
    git_dirty: bool | None
    diff_sha256: Sha256 | None
    tags: list[str]
    notes: str
    artifacts: Literal["best", "final"] | None


class End(TypedDict):
    """The row of `attempts.jsonl` for the end of an attempt. It may have further keys, such as `diverged`."""

    # pydantic reads its configuration from this attribute; mypy allows only fields in a TypedDict.
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

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
