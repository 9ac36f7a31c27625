"""The size of a model: how many parameters it has, and how many FLOPs its forward pass takes.

Without parts it follows from the spec. The size of a model with parts is counted when it is built, and a run's record
keeps it for readers that cannot build the model.
"""

from pydantic import BaseModel, ConfigDict

from gptlab.spec import Experiment
from gptlab.untrusted import Count


class Size(BaseModel):
    """Parameters and FLOPs of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: Count
    """Number of trainable parameters."""
    forward_flops_per_token: Count
    """See `ModelSpec.forward_flops_per_token`; at the experiment's sequence length."""


def size_in_closed_form(experiment: Experiment) -> Size | None:
    """Return the size of an experiment's model, or None if it has parts."""
    model = experiment.model
    if model.has_parts:
        return None
    forward = model.forward_flops_per_token(experiment.train.sequence_length)
    return Size(parameters=model.parameters, forward_flops_per_token=forward)
