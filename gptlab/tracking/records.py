"""Types of a run's records: `run.json`, and the rows of `attempts.jsonl` and `samples.jsonl`."""

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NotRequired, Required, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from typing_extensions import TypedDict

from gptlab.digests import mark_if_altered, with_digest
from gptlab.identity import Fingerprint, Identity, hash_of, identify
from gptlab.size import Size, size_in_closed_form
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
    tokenizer_sha256: str | None = None
    """None in records of earlier versions of gptlab."""


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
    fingerprint: Fingerprint | None = None
    """Of the code that the run began with; None in records of earlier versions of gptlab."""
    size: Size | None = None
    """The model's size; None in records of earlier versions, whose models have no parts."""
    wandb_id: str
    """The run's id and a random suffix, so that equal runs on two machines, or after a deletion, differ in W&B."""
    altered: Literal[True] | None = Field(None, exclude=True)
    """Whether the file no longer matches the digest that it was written with."""

    @property
    def model_size(self) -> Size:
        """The model's size."""
        size = self.size or size_in_closed_form(self.spec)
        assert size, "validated"  # noqa: S101 - `_check_size`
        return size

    def to_json(self) -> str:
        """Return the content of the file."""
        return json.dumps(with_digest(self.model_dump(mode="json")), indent=2, ensure_ascii=False) + "\n"

    @model_validator(mode="before")
    @classmethod
    def _check_digest(cls, document: Any) -> Any:
        return mark_if_altered(document)

    @model_validator(mode="after")
    def _check_identity(self) -> Self:
        parent = self.initial_weights
        own = identify(
            self.spec,
            precision=self.precision,
            text_sha256=self.text.sha256,
            tokenizer_sha256=self.tokenizer_sha256,
            initial_weights_sha256=parent.sha256 if parent else None,
            fingerprint=self.fingerprint,
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

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        known = size_in_closed_form(self.spec)
        if known is None and self.size is None:
            raise ValueError("the size of a model with parts is missing")
        if known and self.size not in {known, None}:
            raise ValueError("the size does not belong to the spec")
        return self


class Start(TypedDict, total=False):
    """The row of `attempts.jsonl` for the start of an attempt. It may have further keys."""

    # pydantic reads its configuration from this attribute; mypy allows only fields in a TypedDict.
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    event: Required[Literal["start"]]
    steps: Required[Count]
    from_step: Count
    device: str
    deterministic: bool
    profile: bool
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
    fingerprint: Sha256
    """The hash of the code's fingerprint."""
    tags: list[str]
    notes: str
    artifacts: Literal["best", "final"] | None
    wandb: Literal["auto", "online", "offline", "off"]
    """The mode of the W&B mirror; `auto` if it had not chosen one yet. Unless it is `off`, W&B should have the run."""


class End(TypedDict):
    """The row of `attempts.jsonl` for the end of an attempt. It may have further keys, such as `diverged`."""

    # pydantic reads its configuration from this attribute; mypy allows only fields in a TypedDict.
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    event: Literal["end"]
    step: Count
    status: Outcome
    metrics_bytes: NotRequired[Count]
    """Length of the rows of `metrics.jsonl`; missing in rows of earlier versions of gptlab, as are the next two."""
    metrics_xxh3: NotRequired[str]
    """The xxh3_128 of these bytes, in hexadecimal."""
    metrics_damaged_to: NotRequired[Count | None]
    """See `LoopState.metrics_damaged_to`."""


class Sample(TypedDict):
    """A row of `samples.jsonl`."""

    step: Count
    prompt: str
    text: str


ATTEMPT: TypeAdapter[Start | End] = TypeAdapter(
    Annotated[Start | End, Field(discriminator="event"), BeforeValidator(mark_if_altered)]
)
"""A row of `attempts.jsonl`. It has a key `altered` if it no longer matches its digest."""
SAMPLE = TypeAdapter(Sample)
