"""`config.json`: which models GPT-2's architecture in `transformers` can represent, and which of its models gptlab can.

Both compute the same function if the shapes, the activation and the LayerNorm's epsilon agree. Differences in how it is
computed, such as `reorder_and_upcast_attn`, only show in rounding.
"""

from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from gptlab.errors import BadInputError, GptlabError
from gptlab.huggingface.layout import CONFIG
from gptlab.spec import ModelSpec
from gptlab.untrusted import read_document
from gptlab.validation import explain

LAYER_NORM_EPSILON = 1e-5
"""That of `torch.nn.LayerNorm`, which gptlab uses."""

ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_python_tanh": "gelu",
    "gelu": "gelu-exact",
    "gelu_python": "gelu-exact",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
"""gptlab's activation by its name in `transformers`; of several, the first is written. Others, such as `gelu_fast`, use
rounded constants, or compute something else."""


class Gpt2Config(BaseModel):
    """The fields of `config.json` that decide what GPT-2 computes, with the defaults of `GPT2Config`."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    model_type: str = Field(max_length=100)
    n_layer: int = Field(12, validation_alias=AliasChoices("n_layer", "num_hidden_layers"))
    n_head: int = Field(12, validation_alias=AliasChoices("n_head", "num_attention_heads"))
    n_embd: int = Field(768, validation_alias=AliasChoices("n_embd", "hidden_size"))
    n_positions: int = Field(1024, validation_alias=AliasChoices("n_positions", "max_position_embeddings"))
    vocab_size: int = 50257
    n_inner: int | None = None
    activation_function: str = Field("gelu_new", max_length=100)
    layer_norm_epsilon: float = LAYER_NORM_EPSILON
    resid_pdrop: float = Field(0.1, ge=0, le=1)
    tie_word_embeddings: bool = True
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False
    quantization_config: dict[str, Any] | None = None


def read_spec(directory: Path) -> ModelSpec:
    """Return the model that a directory's `config.json` describes. Its dropout is 0: it is no part of the weights.

    Raises:
        BadInputError: The file is missing or invalid, or gptlab cannot represent the model; each reason is named.
    """
    path = directory / CONFIG
    try:
        config = read_document(path, Gpt2Config)
    except FileNotFoundError:
        raise BadInputError(f"{path} is missing; give a directory that `save_pretrained` or gptlab wrote") from None
    except GptlabError as error:
        raise BadInputError(str(error)) from error
    if problems := list(_not_in_gptlab(config)):
        raise BadInputError(f"{path} describes a model that gptlab does not have: {', '.join(problems)}")
    try:
        return ModelSpec(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            context_length=config.n_positions,
            vocab_size=config.vocab_size,
            tied=config.tie_word_embeddings,
            activation=ACTIVATIONS[config.activation_function],
        )
    except ValidationError as error:
        raise BadInputError(f"{path} describes a model that gptlab does not have: {explain(error)}") from None


def config_document(spec: ModelSpec) -> dict[str, Any]:
    """Return the content of `config.json`.

    Raises:
        BadInputError: GPT-2's architecture cannot represent the model; each reason is named.
    """
    if problems := list(_not_in_gpt2(spec)):
        raise BadInputError(
            f"GPT-2 in transformers cannot represent this model: {', '.join(problems)}; its weights are safetensors "
            "files in the run's checkpoints/"
        )
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": spec.n_layer,
        "n_head": spec.n_head,
        "n_embd": spec.n_embd,
        "n_inner": None,
        "n_positions": spec.context_length,
        "vocab_size": spec.vocab_size,
        "activation_function": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == spec.activation),
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "tie_word_embeddings": spec.tied,
        "resid_pdrop": spec.dropout,
        "embd_pdrop": spec.dropout,
        "attn_pdrop": spec.dropout,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }


def _not_in_gpt2(spec: ModelSpec) -> list[str]:
    """Return what GPT-2's architecture cannot represent, as fields of the spec."""
    problems = [f"model.{field} is the part {name}" for field, name in spec.parts.items()]
    if not spec.bias:
        problems.append("model.bias is false, but GPT-2 has biases")
    return problems


def _not_in_gptlab(config: Gpt2Config) -> list[str]:
    """Return what gptlab cannot represent, as fields of the configuration."""
    wanted: dict[str, tuple[object, object]] = {
        "model_type": (config.model_type, "gpt2"),
        "layer_norm_epsilon": (config.layer_norm_epsilon, LAYER_NORM_EPSILON),
        "scale_attn_weights": (config.scale_attn_weights, True),
        "scale_attn_by_inverse_layer_idx": (config.scale_attn_by_inverse_layer_idx, False),
        "add_cross_attention": (config.add_cross_attention, False),
        "n_inner": (config.n_inner or 4 * config.n_embd, 4 * config.n_embd),
    }
    problems = [f"{key} is {found!s:.100}, not {needed}" for key, (found, needed) in wanted.items() if found != needed]
    if config.activation_function not in ACTIVATIONS:
        problems.append(f"activation_function is {config.activation_function}, not one of {', '.join(ACTIVATIONS)}")
    if config.quantization_config is not None:
        problems.append("quantization_config: its weights are quantized")
    return problems
