"""Write tensor files whose tensors are gathered one after the other, so that no process ever holds all of them.

The bytes are those that `write_tensors` would write. The library cannot be used: it needs all tensors at once.
"""

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from gptlab.checkpoints.manifest import FileDigest
from gptlab.checkpoints.tensors import DTYPES, LENGTH_BYTES, pieces
from gptlab.errors import GptlabError

ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""Dtypes in the order in which the library writes their tensors."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 8
"""The library pads the header with spaces to a multiple of this many bytes."""


def file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors in the order of a file."""
    return sorted(tensors, key=lambda name: (ORDER.index(NAMES[tensors[name].dtype]), name))


def write_gathered(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], gather: Callable[[Tensor], Tensor]
) -> FileDigest:
    """Write a new file, without flushing it to the disk. See `write_tensors`.

    Args:
        path: The file.
        tensors: Tensors by name, with their whole shapes.
        metadata: Text for the header; at most one key.
        gather: Returns the values of one of them on the CPU. It is called in the order of `file_order`.

    Raises:
        GptlabError: The file cannot be written.
    """
    digest, size = xxhash.xxh3_128(), 0
    try:
        with path.open("xb") as file:
            header = _header(tensors, metadata)
            for name in (None, *file_order(tensors)):
                content = [memoryview(header)] if name is None else pieces(gather(tensors[name]).contiguous())
                for piece in content:
                    digest.update(piece)
                    size += file.write(piece)
        path.chmod(path.parent.stat().st_mode & 0o666)
    except OSError as error:
        raise GptlabError(f"{path} cannot be written: {error}") from error
    return FileDigest(bytes=size, xxh3_128=digest.hexdigest())


def _header(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name in file_order(tensors):
        start, (shape, dtype) = end, (list(tensors[name].shape), tensors[name].dtype)
        end += prod(shape) * torch.empty((), dtype=dtype).element_size()
        entries[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % ALIGNMENT)
    return len(content).to_bytes(LENGTH_BYTES, "little") + content
