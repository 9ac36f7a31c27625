"""The spec of an experiment: frozen, validated data, and how to vary it.

- A spec is validated when it is built, before anything runs.
- A field marked `NOT_IDENTITY` affects what is logged and saved, or how long a run trains, but not what a step
  computes. A field marked `RESOLVED` enters the identity as the value that it resolves to: the text's sha256, the
  precision on this device.
- A run's id contains a hash of the fields that differ from their defaults (see `gptlab.identity`). So a new field with
  a default renames no run, but a default must never be changed.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from gptlab.errors import BadInputError
from gptlab.part_names import BUILT_IN, is_part, one_of
from gptlab.validation import explain, suggest

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
NOT_IDENTITY = "not part of the identity"
RESOLVED = "resolved for the identity"

VOCAB_SIZES = {"gpt2": 50257, "bytes": 256}
"""The named tokenizers, with their numbers of tokens."""

Precision = Literal["float32", "bfloat16"]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1, le=10**8)]


class Section(BaseModel):
    """Base of all specs: immutable, rejects unknown keys. The string below a field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @property
    def parts(self) -> dict[str, str]:
        """The names of parts of the user's own, by field."""
        fields = [field for key in BUILT_IN for field in [key.partition(".")[2]] if field in type(self).model_fields]
        return {field: getattr(self, field) for field in fields if is_part(getattr(self, field))}


class ModelSpec(Section):
    """The shape of the GPT. The defaults are those of GPT-2 small, with an untied output layer."""

    n_layer: int = Field(12, ge=1, le=2**10)
    """Number of decoder blocks."""
    n_head: Positive = 12
    """Number of attention heads per block; must divide `n_embd`."""
    n_embd: int = Field(768, ge=1, le=2**20)
    """Width of the residual stream."""
    context_length: int = Field(1024, ge=1, le=2**20)
    """Number of position embeddings: the longest sequence that the model accepts."""
    vocab_size: int = Field(VOCAB_SIZES["gpt2"], le=2**20)
    """Number of rows of the token embedding: the number of tokens of `data.tokenizer`; for `gpt2` it may be larger."""
    bias: bool = True
    """Whether LayerNorms and Linears have biases (the output layer never has one)."""
    tied: bool = False
    """Whether the output layer shares its weight with the token embedding."""
    dropout: Fraction = 0.0
    """Dropout probability of activations, attention weights and embeddings during training."""
    block: Annotated[str, AfterValidator(one_of("model.block"))] = "pre-norm"
    """Decoder block: `pre-norm`, or a part such as `experiments.parts.post_norm:PostNormBlock`."""
    attention: Annotated[str, AfterValidator(one_of("model.attention"))] = "causal"
    """Attention of a block: `causal`, or a part."""
    feed_forward: Annotated[str, AfterValidator(one_of("model.feed_forward"))] = "mlp"
    """Feed-forward layer of a block: `mlp`, or a part such as `experiments.parts.swiglu:SwiGLU`."""
    activation: Annotated[str, AfterValidator(one_of("model.activation"))] = "gelu"
    """Activation of the `mlp`: `gelu` (its tanh form), `gelu-exact`, `relu`, `relu2`, `silu`, or a part."""
    norm: Annotated[str, AfterValidator(one_of("model.norm"))] = "layer-norm"
    """Normalization: `layer-norm`, or a part such as `experiments.parts.rms_norm:RMSNorm`."""
    position: Annotated[str, AfterValidator(one_of("model.position"))] = "learned"
    """How positions enter: `learned` embeddings, or a part such as `experiments.parts.positions:Rotary`."""

    @field_validator("vocab_size")
    @classmethod
    def _fits_some_tokenizer(cls, size: int) -> int:
        if size < min(VOCAB_SIZES.values()):
            raise ValueError(
                f"input should be greater than or equal to {VOCAB_SIZES['gpt2']}, or {VOCAB_SIZES['bytes']} with "
                f"data.tokenizer=bytes, not {size}"
            )
        return size

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            fitting = [n for n in range(1, min(self.n_embd, 128) + 1) if self.n_embd % n == 0]
            raise ValueError(
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}; "
                f"valid values: {', '.join(map(str, fitting))}"
            )
        return self

    @property
    def has_parts(self) -> bool:
        """Whether the model has parts of the user's own, so that its size is known only when it is built."""
        return bool(self.parts)

    @property
    def block_parameters(self) -> int:
        """Number of parameters of one decoder block: two LayerNorms, two attention and two MLP matrices."""
        self._require_closed_form()
        width, biases = self.n_embd, self.bias
        norms = 2 * (width + biases * width)
        attention = 4 * width * width + biases * 4 * width
        mlp = 8 * width * width + biases * 5 * width
        return norms + attention + mlp

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, in closed form (a test compares it with the built model).

        Raises:
            ValueError: The model has parts: use `RunRecord.model_size` or `gptlab.model.measure.size_of`.
        """
        self._require_closed_form()
        embeddings = (self.vocab_size + self.context_length) * self.n_embd
        final_norm = self.n_embd + self.bias * self.n_embd
        output = 0 if self.tied else self.vocab_size * self.n_embd
        return embeddings + self.n_layer * self.block_parameters + final_norm + output

    def forward_flops_per_token(self, sequence_length: int) -> int:
        """FLOPs of the forward pass of one token: two per multiply-add of every matrix product.

        The attention term counts the full `sequence_length` × `sequence_length` square, as is usual for model FLOPs
        (PaLM, appendix B); a causal kernel computes about half of it. Training costs three times the forward pass.

        Raises:
            ValueError: See `parameters`.
        """
        self._require_closed_form()
        matrices = self.n_layer * 12 * self.n_embd**2 + self.vocab_size * self.n_embd
        attention = self.n_layer * 2 * sequence_length * self.n_embd
        return 2 * (matrices + attention)

    def _require_closed_form(self) -> None:
        if self.has_parts:
            raise ValueError("the size of a model with parts is known only when it is built")


class DataSpec(Section):
    """The text and its split."""

    text: Annotated[str, RESOLVED] = Field("pandas-docs", min_length=1)
    """A named text (`pandas-docs`, `shakespeare`) or the path of a UTF-8 `.txt`. The identity holds its sha256."""
    val_fraction: float = Field(0.1, gt=0, lt=1, allow_inf_nan=False)
    """Fraction of the text's bytes, at its end, that is held out for validation."""
    val_windows: Positive = 32
    """Number of evenly spaced windows in each validation during training."""
    tokenizer: Annotated[str, RESOLVED] = Field("gpt2", min_length=1)
    """`gpt2`, `bytes`, or the path of a `tokenizer.json` of `gptlab tokenizer train`. The identity holds its sha256."""


class TrainSpec(Section):
    """One batch per step, the optimizer and its learning rate, and what is logged and saved."""

    sequence_length: Positive = 100
    """Tokens per sequence; at most the model's `context_length`."""
    batch_size: int = Field(4, ge=1, le=2**20)
    """Sequences per step."""
    learning_rate: float = Field(3e-4, ge=0, allow_inf_nan=False)
    """Learning rate, before the schedule."""
    schedule: Annotated[str, AfterValidator(one_of("train.schedule"))] = "constant"
    """How the learning rate changes: `constant`, `linear`, `cosine`, `wsd` (warm-up, stable, decay), or a part."""
    warmup_steps: int = Field(0, ge=0, le=10**8)
    """Steps in which the learning rate rises linearly to its full value."""
    horizon: Positive | None = None
    """Step at which the schedule has decayed to zero and training ends. `linear` and `cosine` need it."""
    decay_steps: Positive | None = None
    """Steps of `wsd`'s decay before the horizon; by default a fifth of it."""
    optimizer: Annotated[str, AfterValidator(one_of("train.optimizer"))] = "adamw"
    """Optimizer: `adamw`, or a part such as `experiments.parts.lion:lion`."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moments."""
    eps: float = Field(1e-8, gt=0, allow_inf_nan=False)
    """AdamW's epsilon, added to the denominator."""
    weight_decay: float = Field(0.1, ge=0, allow_inf_nan=False)
    """Decoupled weight decay of matrices and embeddings; biases and LayerNorms have none."""
    grad_clip: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Maximum global gradient norm; 0 disables clipping."""
    precision: Annotated[Literal["auto", "float32", "bfloat16"], RESOLVED] = "auto"
    """Precision of matrix products; `auto` is bfloat16 on CUDA and float32 elsewhere."""
    steps: Annotated[int, NOT_IDENTITY] = Field(100, ge=1, le=10**8)
    """Total number of optimizer steps; a larger number later extends the run."""
    log_every: Annotated[Positive, NOT_IDENTITY] = 10
    """Steps between rows of metrics."""
    eval_every: Annotated[Positive, NOT_IDENTITY] = 50
    """Steps between validations."""
    checkpoint_every: Annotated[Positive, NOT_IDENTITY] = 50
    """Steps between resumable checkpoints."""
    keep_checkpoints: Annotated[int, NOT_IDENTITY] = Field(2, ge=2, le=2**20)
    """Number of newest resumable checkpoints to keep."""
    keep_steps: Annotated[tuple[Positive, ...], NOT_IDENTITY] = Field((), max_length=1000)
    """Steps whose resumable checkpoints are written and never removed, such as points for `--branch`."""
    snapshots: Annotated[bool, NOT_IDENTITY] = False
    """Whether to keep the weights at steps 0, 1, 2, 4, 8, …, for analysis over training."""
    prompt: Annotated[str, NOT_IDENTITY] = Field("The", min_length=1, max_length=10**5)
    """Prompt of the sample at the end of training."""

    @model_validator(mode="after")
    def _schedule_is_complete(self) -> Self:
        schedule, horizon, warmup = self.schedule, self.horizon, self.warmup_steps
        if is_part(schedule):
            return self
        if schedule in {"linear", "cosine"} and horizon is None:
            raise ValueError(f"schedule {schedule} needs a horizon, the step at which it ends: set train.horizon")
        if schedule == "constant" and horizon is not None:
            raise ValueError(
                f"schedule constant ignores horizon {horizon}; set train.horizon=none or train.schedule=wsd"
            )
        if self.decay_steps is not None and schedule != "wsd":
            raise ValueError(f"schedule {schedule} ignores decay_steps {self.decay_steps}; set train.decay_steps=none")
        if self.decay_steps is not None and horizon is None:
            raise ValueError(
                f"decay_steps {self.decay_steps} needs a horizon, the step at which the decay ends: set train.horizon"
            )
        decay = self.decay_length if schedule == "wsd" else 1
        if horizon is not None and warmup + decay > horizon:
            raise ValueError(
                f"warmup_steps {warmup} and decay_steps of at least {decay} exceed horizon {horizon}; raise it"
            )
        return self

    @property
    def has_own_optimizer(self) -> bool:
        """Whether the optimizer is a part of the user's own."""
        return is_part(self.optimizer)

    @property
    def decay_length(self) -> int:
        """Number of steps in which the learning rate of `wsd` decays; at least 1."""
        return self.decay_steps or max((self.horizon or 0) // 5, 1)

    @property
    def max_grad_norm(self) -> float:
        """The norm that gradients are clipped to; infinite if clipping is disabled."""
        return self.grad_clip or math.inf


class Experiment(Section):
    """A question, and the training that answers it."""

    name: str = Field(pattern=NAME_PATTERN)
    """Prefix of the run ids: at most 64 lower-case letters, digits, dots, dashes and underscores."""
    why: str = Field(min_length=1)
    """The question that this experiment answers."""
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    train: TrainSpec = TrainSpec()

    @model_validator(mode="after")
    def _window_fits_context(self) -> Self:
        if self.train.sequence_length > self.model.context_length:
            raise ValueError(
                f"train.sequence_length {self.train.sequence_length} exceeds "
                f"model.context_length {self.model.context_length}; shorten the sequences or raise the context length"
            )
        return self

    @model_validator(mode="after")
    def _vocabulary_fits_tokenizer(self) -> Self:
        check_vocab_size(self.data.tokenizer, VOCAB_SIZES.get(self.data.tokenizer), self.model.vocab_size)
        return self

    @property
    def parts(self) -> dict[str, str]:
        """The names of parts of the user's own, by the dotted key of their field."""
        sections = {"model": self.model, "train": self.train}
        return {f"{key}.{field}": name for key, section in sections.items() for field, name in section.parts.items()}

    def vary(self, name: str, *, why: str, **changes: Any) -> Self:
        """Return a validated variant of this experiment.

        Args:
            name: The variant's name.
            why: The variant's question.
            changes: New values by dotted key, such as `**{"model.tied": True}`.

        Raises:
            BadInputError: A key does not exist or a value is out of range.
        """
        return self.with_changes({"name": name, "why": why, **changes})

    def with_changes(self, changes: Mapping[str, Any]) -> Self:
        """Return this experiment with new values by dotted key.

        Raises:
            BadInputError: A key does not exist or a value is out of range.
        """
        known = dict(fields_of(type(self)))
        document = self.model_dump()
        for key, value in changes.items():
            if key not in known:
                raise unknown_field(key, known)
            *sections, field = key.split(".")
            section = document
            for name in sections:
                section[name] = section[name] or {}  # an optional section that is not there yet
                section = section[name]
            section[field] = value
        try:
            return type(self).model_validate(document)
        except ValidationError as error:
            raise BadInputError(f"experiment {self.name}: {explain_spec_error(error)}") from None


SECTIONS = ("model", "data", "train")


def check_vocab_size(tokenizer: str, tokens: int | None, vocab_size: int) -> None:
    """Check that a model fits a tokenizer.

    Args:
        tokenizer: Its name or path.
        tokens: Its number of tokens; None if it is not known yet.
        vocab_size: The model's `vocab_size`.

    Raises:
        ValueError: The model has too few embeddings, or, unless the tokenizer is `gpt2`, too many.
    """
    if tokens is None or vocab_size == tokens:
        return
    if tokenizer != "gpt2":
        raise ValueError(
            f"model.vocab_size {vocab_size} does not fit data.tokenizer '{tokenizer}', which has {tokens} tokens; "
            f"set model.vocab_size={tokens}"
        )
    if vocab_size < tokens:
        raise ValueError(
            f"model.vocab_size: input should be greater than or equal to {tokens}, not {vocab_size}: "
            "data.tokenizer 'gpt2' has so many tokens"
        )


def fields_of(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield (dotted key, field) for the fields of a spec and of its nested sections."""
    for name, field in section.model_fields.items():
        nested = _section_type(field)
        if nested is None:
            yield f"{prefix}{name}", field
        else:
            yield from fields_of(nested, f"{prefix}{name}.")


def _section_type(field: FieldInfo) -> type[Section] | None:
    """Return the section that a field holds, optional or not; None if it holds none."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def flatten(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for the leaves of nested mappings."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def unknown_field(key: str, known: Iterable[str]) -> BadInputError:
    """Return the error for a key that is no field of a spec."""
    return BadInputError(f"there is no spec field '{key}'{suggest(key, known)}")


def parse_conditions(conditions: list[str], option: str) -> dict[str, Any]:
    """Parse `["train.learning_rate=1e-3"]` into values to compare with those of specs, by dotted key.

    Raises:
        BadInputError: A condition is not KEY=VALUE, there is no such field, or it can never have that value.
    """
    known = dict(fields_of(Experiment))
    values = {}
    for key, value in parse_settings(conditions, option=option).items():
        if key not in known:
            raise unknown_field(key, known)
        field: Any = Annotated[known[key].annotation, known[key]]
        try:
            values[key] = TypeAdapter(field).validate_python(value)
        except ValidationError as error:
            raise BadInputError(f"{option} {key}: {explain(error)}") from error
    return values


def parse_settings(
    settings: list[str], spec: type[Experiment] = Experiment, *, option: str = "--set"
) -> dict[str, Any]:
    """Parse `["train.learning_rate=1e-3"]` into changes for `Experiment.with_changes`.

    Lists and mappings are parsed as JSON. Other values stay text, which `with_changes` converts and validates.

    Raises:
        BadInputError: A setting is not KEY=VALUE, or a list or mapping is not JSON. Unknown keys are not checked.
    """
    known = dict(fields_of(spec))
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            raise BadInputError(f"{option} expects KEY=VALUE such as train.learning_rate=1e-3, not '{setting}'")
        if key in {"name", "why"}:
            if option == "--set":
                raise BadInputError(f"--set cannot change '{key}'; write a variant in experiments/ instead")
            raise BadInputError(f"{option} takes fields of model, data and train, not '{key}'; use --name instead")
        changes[key] = _parse_value(f"{option} {setting}", value, known[key]) if key in known else value
    return changes


def _parse_value(setting: str, value: str, field: FieldInfo) -> Any:
    annotation: Any = field.annotation
    schema = TypeAdapter(annotation).json_schema()
    types = {option.get("type") for option in schema.get("anyOf", [schema])}
    if "null" in types and value in {"none", "null"}:
        return None
    if not types & {"array", "object"}:
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, list if "array" in types else dict):
        return parsed
    if "string" in types:
        return value
    kind, example = ("list", "[0.9, 0.95]") if "array" in types else ("mapping", '{"key": 1}')
    raise BadInputError(f"{setting}: the value is not a JSON {kind} such as {example}")


def explain_spec_error(error: ValidationError) -> str:
    """Describe a spec's validation error in one line, with suggestions for unknown fields."""
    keys = [key for key, _ in fields_of(Experiment)]
    return explain(error, [*Experiment.model_fields, *keys, *(key.partition(".")[2] for key in keys)])
