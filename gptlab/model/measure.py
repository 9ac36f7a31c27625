"""Count the parameters and the FLOPs of a model."""

import torch

from gptlab.errors import BadInputError
from gptlab.experiment_files import reason
from gptlab.model import gpt
from gptlab.parts import resolve
from gptlab.size import Size, size_in_closed_form
from gptlab.spec import Experiment, ModelSpec


def size_of(experiment: Experiment) -> Size:
    """Return the size of an experiment's model; one with parts is built without memory to count it.

    Raises:
        BadInputError: A part is gone, or the model cannot be computed with it.
    """
    return size_in_closed_form(experiment) or count(experiment.model, experiment.train.sequence_length)


def check_parts(experiment: Experiment) -> None:
    """Check that the parts of an experiment are there, and that its model can be built.

    Raises:
        BadInputError: A part is gone, cannot be imported, or cannot be built.
    """
    for field, name in experiment.parts.items():
        resolve(field, name)
    if experiment.model.has_parts:
        gpt.empty(experiment.model, "meta")


def count(spec: ModelSpec, sequence_length: int) -> Size:
    """Build a model without memory, compute one sequence, and count the FLOPs of all matrix products.

    Raises:
        BadInputError: See `size_of`.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes longer to import than to count

    model = gpt.empty(spec, "meta").eval()
    tokens = torch.zeros((1, sequence_length), dtype=torch.long, device="meta")
    try:
        with FlopCounterMode(display=False) as counted:
            logits = model(tokens)
        logits.sum().backward()
    except BadInputError:
        raise
    except Exception as error:
        raise BadInputError(f"the model cannot be computed with {_named(spec)}: {reason(error)}") from error
    if logits.shape != (1, sequence_length, spec.vocab_size):
        raise BadInputError(f"the model with {_named(spec)} returns logits of shape {tuple(logits.shape)}")
    if unused := [name for name, parameter in model.named_parameters() if parameter.grad is None]:
        raise BadInputError(f"{unused[0]} has no gradient with {_named(spec)}: the forward pass does not use it")
    return Size(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        forward_flops_per_token=counted.get_total_flops() // sequence_length,
    )


def _named(spec: ModelSpec) -> str:
    return " and ".join(f"model.{field} {name}" for field, name in spec.parts.items())
