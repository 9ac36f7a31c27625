"""What an experiment is: frozen, validated specs, how to vary them, and the identity that names a run.

- A spec is data. Everything that can be wrong with one is found when it is built, before anything runs.
- A field marked `NOT_IDENTITY` changes what is watched or how long, never what is computed. One marked `RESOLVED`
  enters the identity as what it comes to: the text's sha256, the precision on this device.
- The identity outlives the code: only fields that differ from their defaults are hashed, so a new field with a default
  renames no run. A default that is in use therefore never changes.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gptlab.errors import BadInputError

NUMERICS = 2
"""Bumped whenever the same spec would compute other numbers."""

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
NOT_IDENTITY = "not part of the identity"
RESOLVED = "resolved for the identity"

Precision = Literal["float32", "bfloat16"]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1, le=10**8)]


class Section(BaseModel):
    """Base of all specs: immutable, no unknown keys, each field documented where it stands."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelSpec(Section):
    """The GPT's shape. The defaults are GPT-2 small's, with an output layer of its own."""

    n_layer: int = Field(12, ge=1, le=2**10)
    """Decoder blocks."""
    n_head: Positive = 12
    """Attention heads per block; divides `n_embd`."""
    n_embd: int = Field(768, ge=1, le=2**20)
    """Width of the residual stream."""
    context_length: int = Field(1024, ge=1, le=2**20)
    """Positions that have an embedding."""
    vocab_size: int = Field(50257, ge=50257, le=2**20)
    """Rows of the token embedding; GPT-2's tokenizer needs 50,257."""
    bias: bool = True
    """Biases in LayerNorms and Linears (never in the output layer)."""
    tied: bool = False
    """Use the token embedding as the output layer's weight."""
    dropout: Fraction = 0.0
    """Probability of dropping an activation, an attention weight or an embedding while training."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            fitting = [n for n in range(1, min(self.n_embd, 128) + 1) if self.n_embd % n == 0]
            raise ValueError(
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}; "
                f"these divide it: {', '.join(map(str, fitting))}"
            )
        return self

    @property
    def block_parameters(self) -> int:
        """Parameters of one decoder block: two LayerNorms, attention's two matrices, the MLP's two."""
        width, biases = self.n_embd, self.bias
        norms = 2 * (width + biases * width)
        attention = 4 * width * width + biases * 4 * width
        mlp = 8 * width * width + biases * 5 * width
        return norms + attention + mlp

    @property
    def parameters(self) -> int:
        """All trainable parameters, by a closed formula (the tests hold it to the built model)."""
        embeddings = (self.vocab_size + self.context_length) * self.n_embd
        final_norm = self.n_embd + self.bias * self.n_embd
        output = 0 if self.tied else self.vocab_size * self.n_embd
        return embeddings + self.n_layer * self.block_parameters + final_norm + output

    def forward_flops_per_token(self, sequence_length: int) -> int:
        """FLOPs of one token's forward pass: two per multiply-add of every matrix product.

        The attention term counts the full `sequence_length` × `sequence_length` square, as is usual for model FLOPs
        (PaLM, appendix B); a causal kernel does about half of it. Training costs three times the forward pass.
        """
        matrices = self.n_layer * 12 * self.n_embd**2 + self.vocab_size * self.n_embd
        attention = self.n_layer * 2 * sequence_length * self.n_embd
        return 2 * (matrices + attention)


class DataSpec(Section):
    """The text and how it is divided."""

    text: Annotated[str, RESOLVED] = Field("pandas-docs", min_length=1)
    """A named text (`pandas-docs`, `shakespeare`) or the path of a UTF-8 `.txt`. Its sha256 is the identity."""
    val_fraction: float = Field(0.1, gt=0, lt=1, allow_inf_nan=False)
    """Share of the text's bytes, at its end, that is held out for validation."""
    val_windows: Positive = 32
    """Evenly spaced windows that each validation during training looks at."""


class TrainSpec(Section):
    """One batch per step, AdamW at a constant learning rate, and what is watched along the way."""

    sequence_length: Positive = 100
    """Tokens per window; at most the model's `context_length`."""
    batch_size: int = Field(4, ge=1, le=2**20)
    """Windows per step."""
    learning_rate: float = Field(3e-4, ge=0, allow_inf_nan=False)
    """Constant over all steps."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0, allow_inf_nan=False)
    """AdamW's denominator offset."""
    weight_decay: float = Field(0.1, ge=0, allow_inf_nan=False)
    """Decoupled weight decay, on matrices only."""
    grad_clip: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Largest global gradient norm; 0 turns clipping off."""
    precision: Annotated[Literal["auto", "float32", "bfloat16"], RESOLVED] = "auto"
    """Arithmetic of the matrix products; `auto` is bfloat16 on CUDA and float32 elsewhere."""
    steps: Annotated[int, NOT_IDENTITY] = Field(100, ge=1, le=10**8)
    """Optimizer steps in all; a larger number later extends the run."""
    log_every: Annotated[Positive, NOT_IDENTITY] = 10
    """Steps between rows of metrics."""
    eval_every: Annotated[Positive, NOT_IDENTITY] = 50
    """Steps between validations."""
    checkpoint_every: Annotated[Positive, NOT_IDENTITY] = 50
    """Steps between checkpoints that training can go on from."""
    keep_checkpoints: Annotated[int, NOT_IDENTITY] = Field(2, ge=2, le=2**20)
    """How many of those are kept, newest first."""
    snapshots: Annotated[bool, NOT_IDENTITY] = False
    """Keep the weights at steps 0, 1, 2, 4, 8, …, for analysis over training."""
    prompt: Annotated[str, NOT_IDENTITY] = Field("The", min_length=1, max_length=10**5)
    """Where the sample at the end of training begins."""


class Experiment(Section):
    """A question, and the training run that answers it."""

    name: str = Field(pattern=NAME_PATTERN)
    """Names the runs: lower-case letters, digits, dots, dashes and underscores, at most 64."""
    why: str = Field(min_length=1)
    """The question that this experiment answers."""
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    train: TrainSpec = TrainSpec()

    @model_validator(mode="after")
    def _window_fits_context(self) -> Self:
        if self.train.sequence_length > self.model.context_length:
            raise ValueError(
                f"train.sequence_length {self.train.sequence_length} is longer than "
                f"model.context_length {self.model.context_length}"
            )
        return self

    def vary(self, name: str, *, why: str, **changes: Any) -> Self:
        """A variant of this experiment, validated anew.

        Args:
            name: The variant's own name.
            why: The variant's own question.
            changes: New values by dotted key, such as `**{"model.tied": True}`.

        Raises:
            BadInputError: A key does not exist or a value is out of range.
        """
        return self.with_changes({"name": name, "why": why, **changes})

    def with_changes(self, changes: Mapping[str, Any]) -> Self:
        """This experiment with new values by dotted key; see `vary`."""
        document = self.model_dump()
        known = ["name", "why", *dict(flatten({s: document[s] for s in SECTIONS}))]
        for key, value in changes.items():
            if key not in known:
                raise BadInputError(f"there is no spec field '{key}'{did_you_mean(key, known)}")
            section, _, field = key.rpartition(".")
            (document[section] if section else document)[field] = value
        try:
            return type(self).model_validate(document)
        except ValidationError as error:
            raise BadInputError(f"experiment {self.name}: {explain(error)}") from None


SECTIONS = ("model", "data", "train")


@dataclass(frozen=True)
class Identity:
    """What a run computes: the hash in its id, and all that went into the hash."""

    name: str
    hash: str
    """The first 8 hexadecimal digits of the sha256 of `content`."""
    content: dict[str, Any]
    """Numerics revision, precision, hashes of text and tokenizer, and the fields that differ from their defaults."""

    def run_id(self, seed: int) -> str:
        """`NAME-HASH8-sSEED`."""
        return f"{self.name}-{self.hash}-s{seed}"


def identify(
    experiment: Experiment,
    *,
    precision: Precision,
    text_sha256: str,
    tokenizer_sha256: str,
    initial_weights_sha256: str | None = None,
) -> Identity:
    """The identity of what `experiment` computes with a resolved precision on a given text.

    A run that starts from another's weights names their sha256; one that draws its own does not.
    """
    content = {
        "numerics": NUMERICS,
        "precision": precision,
        "text_sha256": text_sha256,
        "tokenizer_sha256": tokenizer_sha256,
        **({"initial_weights_sha256": initial_weights_sha256} if initial_weights_sha256 else {}),
        **identity_fields(experiment, exclude_defaults=True),
    }
    return Identity(experiment.name, hash_of(content), content)


def hash_of(content: dict[str, Any]) -> str:
    """The hash of an identity's content."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:8]


def identity_fields(experiment: Experiment, *, exclude_defaults: bool = False) -> dict[str, dict[str, Any]]:
    """The fields that change what is computed, by section."""
    return {
        name: {
            field: value
            for field, value in section.model_dump(mode="json", exclude_defaults=exclude_defaults).items()
            if not {NOT_IDENTITY, RESOLVED} & set(type(section).model_fields[field].metadata)
        }
        for name in SECTIONS
        for section in [getattr(experiment, name)]
    }


def canonical_json(document: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def flatten(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings as (dotted key, value)."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse_settings(settings: list[str]) -> dict[str, str | list[Any]]:
    """`["train.learning_rate=1e-3"]` as changes for `Experiment.with_changes`; the spec's own types read the values."""
    changes: dict[str, str | list[Any]] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise BadInputError(f"--set wants KEY=VALUE such as train.learning_rate=1e-3, not '{setting}'")
        if key.strip() in {"name", "why"}:
            raise BadInputError(f"--set cannot change '{key.strip()}': write a variant in experiments/ instead")
        changes[key.strip()] = _json_list(setting, value) if key.strip() == "train.betas" else value
    return changes


def _json_list(setting: str, value: str) -> list[Any]:
    try:
        values = json.loads(value)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list):
        raise BadInputError(f"--set {setting}: the list is not JSON such as [0.9, 0.95]")
    return values


def explain(error: ValidationError) -> str:
    """All of a validation error on one line: where, what, and what was given."""
    parts = []
    for detail in error.errors():
        where = ".".join(map(str, detail["loc"]))
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = f"there is no such field{did_you_mean(where, [key for key in _all_keys() if key != where])}"
        elif detail["type"] == "missing":
            message = "is required"
        elif detail["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, not {detail['input']!r}"
        parts.append(f"{where}: {message}" if where else message)
    return "; ".join(parts)


def _all_keys() -> list[str]:
    sections: dict[str, type[Section]] = {"model": ModelSpec, "data": DataSpec, "train": TrainSpec}
    dotted = [f"{name}.{field}" for name, section in sections.items() for field in section.model_fields]
    return [*Experiment.model_fields, *dotted, *(key.partition(".")[2] for key in dotted)]


def did_you_mean(word: str, known: list[str]) -> str:
    """` (did you mean 'x'?)` for the nearest known word, else nothing."""
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not nearest:  # `learning_rate` for `train.learning_rate`
        nearest = [key for key in known if key.rpartition(".")[2] == word.rpartition(".")[2]]
    return f"; did you mean '{nearest[0]}'?" if nearest else ""
