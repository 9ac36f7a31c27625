"""Types of a run's records: `run.json`, and the rows of `attempts.jsonl` and `samples.jsonl`."""

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, NotRequired, Required, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    model_validator,
)
from typing_extensions import TypedDict

from gptlab.digests import canonical_json, mark_if_altered, with_digest
from gptlab.identity import Fingerprint, Identity, hash_of, identify
from gptlab.size import Size, size_in_closed_form
from gptlab.spec import Experiment, Precision, TrainSpec
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


class ParentCheckpoint(BaseModel):
    """The checkpoint of another run, the parent, that a run starts from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    step: Count
    path: AbsolutePath
    """Where the file with the weights was when the run began."""
    sha256: str
    """The SHA-256 of that file."""
    tokenizer_sha256: str | None = None
    """None in records of earlier versions of gptlab."""

    @property
    def reference(self) -> str:
        """`RUN@STEP`."""
        return f"{self.run}@{self.step}"


class InitialWeights(ParentCheckpoint):
    """A warm start: step 0 begins with the parent's weights."""


class ImportedWeights(BaseModel):
    """A warm start from a directory of Hugging Face's `transformers`: step 0 begins with its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: AbsolutePath
    """The directory."""
    sha256: Sha256
    """The SHA-256 of the file with the weights; of several, of all their bytes in the order of their names."""
    tokenizer_sha256: Sha256 | None = None
    """Of the directory's tokenizer; None if it has none that gptlab knows."""


class Branch(ParentCheckpoint):
    """A branch: the run continues from the parent's weights and optimizer state, and its steps from the parent's.

    The other facts are the parent's at that step, so that the run can be described when the parent is gone.
    """

    step: Annotated[int, Field(ge=1, le=10**8)]
    tokenizer_sha256: str
    optimizer_sha256: str
    optimizer_values: dict[str, JsonValue] = {}
    """See `Manifest.optimizer_values`."""
    seed: Count
    tokens: Count
    flops: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    elapsed_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    cpu_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    text_sha256: str
    sequence_length: Annotated[int, Field(ge=1, le=2**20)]
    windows: Annotated[int, Field(ge=0, le=2**47)]
    """Windows of the text that the parent has trained on."""

    def identity(self) -> dict[str, Any]:
        """Return what enters the identity of the run."""
        values = canonical_json(self.optimizer_values).encode()
        return {
            "run": self.run,
            "step": self.step,
            "model_sha256": self.sha256,
            "optimizer_sha256": self.optimizer_sha256,
            **({"optimizer_values_sha256": hashlib.sha256(values).hexdigest()} if self.optimizer_values else {}),
        }

    def window_offset(self, text_sha256: str, train: TrainSpec) -> int:
        """Return what is added to the numbers of a run's windows; 0 if nothing that decides them has changed.

        The first batch begins where the parent stopped in the same text, whatever the batch size. Of another text, it
        begins with the first window.
        """
        same = text_sha256 == self.text_sha256
        first = self.windows * self.sequence_length // train.sequence_length if same else 0
        return min(first, 2**62) - self.step * train.batch_size  # fits in 64 bits, also if the record was altered


def _check_timestamp(created: str) -> str:
    at = datetime.fromisoformat(created)
    if at.tzinfo != UTC or at.isoformat(timespec="milliseconds") != created:
        raise ValueError("not a UTC time in ISO 8601 with milliseconds")
    return created


Timestamp = Annotated[str, AfterValidator(_check_timestamp)]
"""UTC in ISO 8601 with milliseconds."""


class RunRecord(BaseModel):
    """`run.json`: what the run computes. It is written once and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    seed: Count
    created: Timestamp
    spec: Experiment
    precision: Precision
    identity: dict[str, Any]
    """What the hash in the run's id is computed from; see `Identity.content`."""
    text: TextRecord
    tokenizer_sha256: str
    initial_weights: InitialWeights | None = None
    """None unless the run starts from another run's weights."""
    branch: Branch | None = None
    """None unless the run continues from another run's checkpoint."""
    imported_weights: ImportedWeights | None = None
    """None unless the run starts from a directory of `transformers`; the file does not have it then."""
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

    @property
    def initial_weights_sha256(self) -> str | None:
        """The SHA-256 of the weights of a warm start; None if the run has none."""
        weights = self.initial_weights or self.imported_weights
        return weights.sha256 if weights else None

    @property
    def parent(self) -> InitialWeights | Branch | None:
        """The checkpoint that the run starts from; None if the weights are drawn from the seed."""
        return self.branch or self.initial_weights

    def parent_facts(self) -> dict[str, Any]:
        """Return `{"parent": {"run", "step", "by"}}`, with `branch` or `from` as `by`; empty without a parent."""
        if self.parent is None:
            return {}
        return {"parent": {"run": self.parent.run, "step": self.parent.step, "by": "branch" if self.branch else "from"}}

    @property
    def start_step(self) -> int:
        """The step at which the run begins: 0, or the parent's step."""
        return self.branch.step if self.branch else 0

    def validates_at(self, step: int) -> bool:
        """Return whether a validation is due at a step however long the run is: at the first and each `eval_every`."""
        return step == self.start_step or step % self.spec.train.eval_every == 0

    def tokens_at(self, step: int) -> int:
        """Return the tokens trained on in `step` steps, those of the parent included."""
        before = self.branch.tokens if self.branch else 0
        return before + (step - self.start_step) * self.spec.train.batch_size * self.spec.train.sequence_length

    def flops_at(self, step: int) -> float:
        """Return the FLOPs of training in `step` steps, those of the parent included."""
        before, tokens = (self.branch.flops, self.branch.tokens) if self.branch else (0.0, 0)
        return before + self.flops_per_token * (self.tokens_at(step) - tokens)

    @property
    def flops_per_token(self) -> float:
        """FLOPs to train on one token: the forward pass, and the backward pass at twice its cost."""
        return 3.0 * self.model_size.forward_flops_per_token

    @property
    def window_offset(self) -> int:
        """See `Branch.window_offset`; 0 without a branch."""
        return self.branch.window_offset(self.text.sha256, self.spec.train) if self.branch else 0

    def to_json(self) -> str:
        """Return the content of the file."""
        without = None if self.imported_weights else {"imported_weights"}  # as earlier versions wrote it
        content = with_digest(self.model_dump(mode="json", exclude=without))
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    @model_validator(mode="before")
    @classmethod
    def _check_digest(cls, document: Any) -> Any:
        return mark_if_altered(document)

    @model_validator(mode="after")
    def _check_identity(self) -> Self:
        branch = self.branch
        if branch and (
            self.initial_weights_sha256 or branch.seed != self.seed or branch.tokenizer_sha256 != self.tokenizer_sha256
        ):
            raise ValueError("the branch does not belong to the run")
        if self.initial_weights and self.imported_weights:
            raise ValueError("a run starts from one set of weights")
        own = identify(
            self.spec,
            precision=self.precision,
            text_sha256=self.text.sha256,
            tokenizer_sha256=self.tokenizer_sha256,
            initial_weights_sha256=self.initial_weights_sha256,
            branch=branch.identity() if branch else None,
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
    compile: bool
    """Whether the model's blocks were compiled."""
    capture: bool
    """Whether the step was captured as a CUDA graph; the end says it if that failed."""
    workers: Count
    """Number of processes that trained together."""
    shard: bool
    """Whether each of them had a part of weights and moments only."""
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


UNRECORDED: Final = {"compile": False, "capture": False, "workers": 1, "shard": False}
"""What holds for attempts that do not record these fields."""


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
