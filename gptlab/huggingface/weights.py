"""GPT-2's weights by the names of `transformers`: convert them, and read those of a directory.

`transformers` stores the matrices of the blocks as (inputs, outputs), torch's `Linear` as (outputs, inputs). Files are
read as those of checkpoints are: bounded by their length, checked, never executed.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from gptlab.checkpoints.read import weight_shapes
from gptlab.checkpoints.tensors import Hash, Tensors, read_tensors
from gptlab.errors import BadInputError, GptlabError
from gptlab.huggingface.layout import INDEX, PICKLES, WEIGHTS
from gptlab.spec import ModelSpec
from gptlab.untrusted import open_regular, read_document

MAX_SHARDS = 1000

OUTSIDE = {
    "position_embedding": "transformer.wpe",
    "token_embedding": "transformer.wte",
    "final_norm": "transformer.ln_f",
    "output": "lm_head",
}
IN_BLOCK = {
    "attention_norm": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.expansion": "mlp.c_fc",
    "feed_forward.projection": "mlp.c_proj",
}
"""The modules of `transformers` by those of gptlab, outside the blocks and in each block."""
MASKS = (".attn.bias", ".attn.masked_bias")
"""Causal masks in files of older versions of `transformers`; they are no weights."""
EXACT_IN_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16)


class _Index(BaseModel):
    """`model.safetensors.index.json`: the file of each tensor."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    weight_map: dict[str, str]


def their_name(name: str) -> str:
    """Return the name in `transformers` of a parameter of `gptlab.model.gpt.GPT`."""
    module, _, kind = name.rpartition(".")
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{kind}"
    _, number, layer = module.split(".", 2)
    return f"transformer.h.{number}.{IN_BLOCK[layer]}.{kind}"


def to_theirs(weights: Mapping[str, Tensor]) -> Tensors:
    """Return the weights as `transformers` stores them."""
    return {their_name(name): _transposed(name, weight).contiguous() for name, weight in weights.items()}


def weight_files(directory: Path) -> list[Path]:
    """Return the files with a directory's weights, by name.

    Raises:
        BadInputError: There are none, the weights are pickled, or the index of several files is invalid.
    """
    if (directory / WEIGHTS).exists():
        return [directory / WEIGHTS]
    try:
        index = read_document(directory / INDEX, _Index)
    except FileNotFoundError:
        raise _no_weights(directory) from None
    except GptlabError as error:
        raise BadInputError(str(error)) from error
    names = sorted(set(index.weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or not name.isprintable():
            raise BadInputError(f"{directory / INDEX} names {name!r:.100}, which is no safetensors file beside it")
    if not 0 < len(names) <= MAX_SHARDS:
        raise BadInputError(f"{directory / INDEX} names {len(names):,} files; 1 to {MAX_SHARDS:,} are supported")
    return [directory / name for name in names]


def read_model_weights(directory: Path, spec: ModelSpec) -> tuple[Tensors, str]:
    """Read a directory's weights as gptlab names and stores them, in float32.

    Args:
        directory: The directory.
        spec: The model that the weights must belong to.

    Returns:
        The weights, and the SHA-256 of the files' bytes in the order of their names: for one file, that of the file.

    Raises:
        BadInputError: Files or tensors are missing or damaged, or belong to another model; the message names them.
    """
    digest = hashlib.sha256()
    found: Tensors = {}
    for path in weight_files(directory):
        for name, tensor in _read_file(path, digest):
            if name in found:
                raise BadInputError(f"{directory} has {name:.80} twice")
            found[name] = tensor
    if spec.tied:
        _drop_copy_of_embedding(directory, found)
    return dict(_to_ours(directory, found, spec)), digest.hexdigest()


def _no_weights(directory: Path) -> BadInputError:
    if pickles := [name for name in PICKLES if (directory / name).exists()]:
        return BadInputError(
            f"{directory / pickles[0]} is pickled, and reading it could execute code, so gptlab does not; convert it "
            "where you trust it: python -c 'import sys; from transformers import GPT2LMHeadModel as M; "
            "M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])' OLD NEW"
        )
    return BadInputError(f"{directory} has no weights: neither {WEIGHTS} nor {INDEX}")


def _read_file(path: Path, digest: Hash) -> Iterator[tuple[str, Tensor]]:
    """Yield a file's tensors by the names of `GPT2LMHeadModel`; those of a `GPT2Model` have no prefix."""
    try:
        with open_regular(path) as file:
            tensors = read_tensors(path, file, os.fstat(file.fileno()).st_size, None, digest, None)
    except FileNotFoundError:
        raise BadInputError(f"{path} is missing") from None
    except GptlabError as error:
        raise BadInputError(str(error)) from error
    for name, tensor in tensors.items():
        if not name.endswith(MASKS):
            yield name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}", tensor


def _drop_copy_of_embedding(directory: Path, found: Tensors) -> None:
    """Drop the output layer of a tied model, which some files hold twice."""
    output, embedding = found.pop("lm_head.weight", None), found.get("transformer.wte.weight")
    if output is not None and embedding is not None and not torch.equal(output, embedding):
        raise BadInputError(
            f"{directory} has lm_head.weight and transformer.wte.weight with different values, but config.json says "
            'that they are tied; if they are not, set "tie_word_embeddings": false there'
        )


def _to_ours(directory: Path, found: Tensors, spec: ModelSpec) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights by gptlab's names. `found` is emptied meanwhile, so that memory holds few weights twice."""
    for name, shape in weight_shapes(spec).items():
        theirs = their_name(name)
        if theirs not in found:
            raise BadInputError(f"{directory} has no tensor {theirs}")
        weight = _transposed(name, found.pop(theirs))
        if tuple(weight.shape) != shape:
            needed = _transposed(name, torch.empty(shape, device="meta")).shape
            raise BadInputError(
                f"{directory} has {theirs} as {list(_transposed(name, weight).shape)!s:.80}, but this model needs "
                f"{list(needed)}"
            )
        if weight.dtype not in EXACT_IN_FLOAT32:
            raise BadInputError(
                f"{directory} has {theirs} as {weight.dtype}, which float32 cannot hold exactly; convert it to float32"
            )
        yield name, weight.float().contiguous()
    if found:
        raise BadInputError(f"{directory} has a tensor {min(found):.80}, which this model does not have")


def _transposed(name: str, weight: Tensor) -> Tensor:
    """Return a matrix of a block transposed, and any other weight as it is."""
    return weight.t() if name.startswith("blocks.") and weight.ndim == 2 else weight
