"""The architecture as a table."""

from dataclasses import dataclass

import torch
import torchinfo

from gptlab.model import gpt
from gptlab.spec import ModelSpec


@dataclass(frozen=True)
class Layer:
    """One row: a module with parameters."""

    label: str
    """Type, depth and index, such as `TransformerDecoderBlock: 2-1`."""
    output_shape: tuple[int, ...]
    """−1 stands for the batch size."""
    parameters: int


def layers(spec: ModelSpec, sequence_length: int) -> list[Layer]:
    """Return the layers in the order in which the forward pass uses them; a decoder block is one layer."""
    model = gpt.empty(spec, "meta")
    tokens = torch.zeros((1, sequence_length), dtype=torch.long, device="meta")
    statistics = torchinfo.summary(model, input_data=tokens, depth=2, verbose=0, device="meta")
    return [
        Layer(f"{info.class_name}: {info.depth}-{info.depth_index}", (-1, *info.output_size[1:]), info.num_params)
        for info in statistics.summary_list
        if 1 <= info.depth <= 2 and info.output_size and info.num_params
    ]
