"""Files of tensors in the safetensors format: written and read in one pass, straight from and into the tensors' memory.

The library's writer copies everything first, does not flush to the disk and hides the file from the group; its readers
map the file or copy it twice, and check a header only in a mapped file. So both are written here, for float32 only,
which is all that a checkpoint holds. What is written is byte for byte what the library writes (names in order, one key
of metadata), and what is read the library would read too. A checksum is taken of each piece while it is in the cache.

Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Protocol

import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from gptlab.checkpoints.manifest import MIB, FileDigest
from gptlab.errors import GptlabError
from gptlab.untrusted import Count
from gptlab.validation import explain

Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")  # of the header, before it
_F32 = 4  # bytes


class Hash(Protocol):
    """As in hashlib."""

    def update(self, data: memoryview, /) -> object:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The digest of all bytes so far."""


class _Entry(BaseModel):
    """What a header says about a tensor."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    dtype: str
    shape: tuple[Count, ...]
    data_offsets: tuple[Count, Count]


class _Header(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow")
    __pydantic_extra__: dict[str, _Entry]
    metadata: dict[str, str] = Field({}, alias=METADATA)


def pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The memory of a contiguous tensor on the CPU, in pieces that fit into the processor's cache."""
    memory = tensor.detach().view(-1).view(torch.uint8).numpy()
    for start in range(0, len(memory), MIB):
        yield memory[start : start + MIB].data


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> FileDigest:
    """Write a new file, without flushing it to the disk.

    Args:
        path: Of the file.
        tensors: By name; float32, contiguous and on the CPU.
        metadata: One key: the library writes several in random order.

    Returns:
        Size and checksum of what was in memory.

    Raises:
        GptlabError: The disk is full, for one.
    """
    digest, size = xxhash.xxh3_128(), 0
    contents = (pieces(tensors[name]) for name in sorted(tensors))
    try:
        with path.open("xb") as file:
            for piece in chain([memoryview(_header(tensors, metadata))], *contents):
                digest.update(piece)
                size += file.write(piece)
    except OSError as error:
        raise GptlabError(f"{path} cannot be written: {error.strerror}") from error
    return FileDigest(bytes=size, xxh3_128=digest.hexdigest())


def read_tensors(
    path: Path, file: BufferedReader, size: int, shapes: Shapes, digest: Hash, expected: str | None
) -> Tensors:
    """Read a file to its end, into tensors of torch's own memory: kernels may depend on its alignment.

    Args:
        path: What to call the file.
        file: The file, at its beginning.
        size: How long it is.
        shapes: Of the tensors that it must hold, all of them float32.
        digest: Takes in all that is read.
        expected: The digest that the bytes must have.

    Raises:
        GptlabError: It holds something else; the message names file and tensor.
    """
    try:
        tensors = {name: _empty(shapes[name], path, size) for name in _names(path, file, size, shapes, digest)}
        for piece in chain.from_iterable(map(pieces, tensors.values())):
            if file.readinto(piece) != len(piece):
                raise GptlabError(f"{path} became shorter while it was read")
            digest.update(piece)
    except GptlabError:  # of which damage is the better explanation
        while rest := file.read(MIB):
            digest.update(memoryview(rest))
        _verify(path, digest, expected)
        raise
    _verify(path, digest, expected)
    return tensors


def _header(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    document: dict[str, object] = {METADATA: metadata}
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.dtype != torch.float32 or name == METADATA:
            raise ValueError(f"{name} is {tensor.dtype}")
        start, end = end, end + _F32 * tensor.numel()
        document[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return _LENGTH.pack(len(encoded)) + encoded


def _names(path: Path, file: BufferedReader, size: int, shapes: Shapes, digest: Hash) -> list[str]:
    """The names in the order of their bytes, which follow each other without a hole to the file's end."""
    broken = f"{path} is not a safetensors file"
    start = file.read(_LENGTH.size)
    digest.update(memoryview(start))
    length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else size
    if length > min(size - _LENGTH.size, MIB + 1024 * len(shapes)):
        raise GptlabError(f"{broken}: its header cannot have {length:,} bytes")
    header = file.read(length)
    digest.update(memoryview(header))
    try:
        entries = _Header.model_validate_json(header).__pydantic_extra__
    except ValidationError as error:
        raise GptlabError(f"{broken}: {explain(error)}") from None
    for name in sorted(shapes.keys() | entries.keys()):
        wanted, given = shapes.get(name), entries.get(name)
        if given is None:
            raise GptlabError(f"{path} lacks the tensor {name}")
        if wanted is None:
            raise GptlabError(f"{path} has a tensor {name:.80}, which this model has not")
        if (given.shape, given.dtype) != (wanted, "F32"):
            is_now = f"{list(given.shape)!s:.80} {given.dtype:.20}"
            raise GptlabError(f"{path} has {name} as {is_now}, but this model's is {list(wanted)} F32")
    names = sorted(entries, key=lambda name: entries[name].data_offsets)
    end = 0
    for name in names:
        begin, end = end, end + _F32 * math.prod(shapes[name])
        if entries[name].data_offsets != (begin, end):
            raise GptlabError(f"{broken}: {name} does not lie at {begin:,} to {end:,}")
    if _LENGTH.size + length + end != size:
        raise GptlabError(f"{broken}: it does not end with its last tensor")
    return names


def _empty(shape: tuple[int, ...], path: Path, size: int) -> Tensor:
    try:
        return torch.empty(shape)
    except RuntimeError:
        raise GptlabError(f"{path} does not fit into memory: {size:,} bytes") from None


def _verify(path: Path, digest: Hash, expected: str | None) -> None:
    if expected and digest.hexdigest() != expected:
        raise GptlabError(f"{path} is damaged: its checksum is not {expected}")
