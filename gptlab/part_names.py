"""The names that a spec can give for a part of a model or of its training.

A part is built in, or it is a function or class in the user's own `experiments/` folder:
`experiments.parts.relu:ReLUFeedForward`. Only the form of such a name is checked here; `gptlab.parts` imports it.
"""

import re
from collections.abc import Callable

from gptlab.validation import MAX_LENGTH, did_you_mean

BUILT_IN: dict[str, dict[str, str]] = {
    "model.block": {"pre-norm": "gptlab.model.gpt:TransformerDecoderBlock"},
    "model.attention": {"causal": "gptlab.model.gpt:CausalSelfAttention"},
    "model.feed_forward": {"mlp": "gptlab.model.gpt:FeedForward"},
    "model.activation": {
        "gelu": "gptlab.model.activations:gelu",
        "gelu-exact": "gptlab.model.activations:gelu_exact",
        "relu": "gptlab.model.activations:relu",
        "relu2": "gptlab.model.activations:relu2",
        "silu": "gptlab.model.activations:silu",
    },
    "model.norm": {"layer-norm": "gptlab.model.gpt:layer_norm"},
    "model.position": {"learned": "gptlab.model.gpt:learned_positions"},
    "train.optimizer": {"adamw": "gptlab.training.optimizer:adamw"},
    "train.schedule": {
        "constant": "gptlab.training.schedule:constant",
        "linear": "gptlab.training.schedule:linear",
        "cosine": "gptlab.training.schedule:cosine",
        "wsd": "gptlab.training.schedule:wsd",
    },
}
"""For each field that names a part: the built-in names, and where each is defined as `MODULE:NAME`."""

PART = re.compile(r"experiments(\.[A-Za-z][A-Za-z0-9_]*)+:[A-Za-z][A-Za-z0-9_]*")
EXAMPLE = "experiments.parts.NAME:NAME"
MAX_NAME = 200


def is_part(name: str) -> bool:
    """Return whether a name has the form of a part of the user's own, whether it exists or not."""
    return len(name) <= MAX_NAME and PART.fullmatch(name) is not None


def one_of(field: str) -> Callable[[str], str]:
    """Return a pydantic validator for the names that a field can hold."""

    def check(name: str) -> str:
        known = BUILT_IN[field]
        if name in known or is_part(name):
            return name
        hint = did_you_mean(name, known) or f"; choose {' or '.join([', '.join(known), f'a part, {EXAMPLE}'])}"
        shown = name[:MAX_LENGTH].encode(errors="backslashreplace").decode()  # pydantic refuses a lone surrogate
        raise ValueError(f"there is no {field.partition('.')[2]} '{shown}'{hint}")

    return check
