"""The file of an explanation: small, with a checksum, and read as untrusted data.

It holds sums, not text: over blocks of windows and bins of positions and frequencies, and how far each passage was
continued verbatim. Intervals and paired differences are computed from it without the model.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors.numpy
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open

from gptlab.errors import GptlabError
from gptlab.explanation.bins import Bin, frequency_bins, position_bins
from gptlab.untrusted import Count

MAX_BLOCKS = 1024
"""Blocks of adjacent windows whose sums are kept; a text with fewer windows has one window in each."""
MAX_PASSAGES = 10_000
MAX_BYTES = 1 << 22
METADATA = "gptlab"
EXCLUDED = -1
"""Match length of a passage that also occurs in the other part of the text."""

PREFIX = "explained-"
"""Beginning of a file's name; the rest is the name of the file with the losses of the windows."""

_NAME = re.compile(PREFIX + r"step-([0-9]{8})-([0-9a-f]{8})\.safetensors")


class Facts(BaseModel):
    """What the sums are about."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    windows: Annotated[int, Field(ge=1, lt=2**53)]
    sequence_length: Annotated[int, Field(ge=1, lt=2**31)]
    """Predicted tokens per window."""
    counted: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]
    """SHA-256 of the text in which the tokens were counted."""
    counted_in_training_part: bool
    """Whether that text is the training part; else it is the evaluated text itself."""
    most: Count
    """The largest count of a token."""
    prompts: Annotated[list[Annotated[int, Field(ge=1, lt=2**31)]], Field(max_length=16)] = []
    """Tokens of the prompts; empty if memorization was not measured."""
    continuation: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Tokens of the continuations."""
    trained_windows: Count = 0
    """Number of windows among which the training passages were drawn."""


@dataclass(frozen=True)
class Explanation:
    """Sums over blocks of windows, and match lengths of passages."""

    facts: Facts
    windows: NDArray[np.int64]
    """Windows in each block, `(blocks,)`."""
    position_loss: NDArray[np.float64]
    """Nats, `(blocks, position bins)`."""
    position_bytes: NDArray[np.int64]
    """Bytes of the predicted text, `(blocks, position bins)`."""
    frequency_loss: NDArray[np.float64]
    """Nats, `(blocks, frequency bins)`."""
    frequency_tokens: NDArray[np.int64]
    """Predicted tokens, `(blocks, frequency bins)`."""
    frequency_bytes: NDArray[np.int64]
    """Bytes of the predicted text, `(blocks, frequency bins)`."""
    trained_start: NDArray[np.int64]
    """Index of each training passage's first token in the training part, `(passages,)`."""
    trained_match: NDArray[np.int64]
    """Tokens that are continued verbatim, `(passages, prompts)`; `EXCLUDED` if the passage does not count."""
    held_out_start: NDArray[np.int64]
    """Index of each held-out passage's first token in the validation part, `(passages,)`."""
    held_out_match: NDArray[np.int64]
    """As `trained_match`."""

    @property
    def position_bins(self) -> list[Bin]:
        """The bins of positions."""
        return position_bins(self.facts.sequence_length)

    @property
    def frequency_bins(self) -> list[Bin]:
        """The bins of counts."""
        return frequency_bins(self.facts.most)

    @property
    def position_tokens(self) -> NDArray[np.int64]:
        """Predicted tokens, `(blocks, position bins)`."""
        widths = [(bin_.last or 0) - bin_.first + 1 for bin_ in self.position_bins]
        tokens: NDArray[np.int64] = self.windows[:, None] * np.array(widths)
        return tokens


@dataclass(frozen=True)
class Stored:
    """An explanation in a run's directory."""

    step: int
    yardstick: str
    explanation: Explanation


def file_name(step: int, yardstick: str) -> str:
    """Return the name of the file of a checkpoint's explanation in the run's `evaluations/`."""
    return f"{PREFIX}step-{step:08d}-{yardstick}.safetensors"


def to_bytes(explanation: Explanation) -> bytes:
    """Return the content of a file."""
    tensors, facts = _tensors(explanation), explanation.facts.model_dump(mode="json")
    metadata = {**facts, "xxh3_128": _checksum(facts, tensors)}
    return safetensors.numpy.save(tensors, {METADATA: json.dumps(metadata, sort_keys=True)})


def read_all(folder: Path) -> Iterator[Stored]:
    """Yield the explanations in a run's `evaluations/`, by step.

    Raises:
        GptlabError: A file is damaged; the message names it.
    """
    for path in sorted(folder.glob(f"{PREFIX}step-*.safetensors")):
        if name := _NAME.fullmatch(path.name):
            yield Stored(int(name[1]), name[2], read(path))


def read(path: Path) -> Explanation:
    """Read a file.

    Raises:
        GptlabError: It is damaged, too large or not an explanation; the message names it.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise GptlabError(f"{path} is larger than {MAX_BYTES:,} bytes")
        with safe_open(path, framework="numpy", backend="pread") as file:  # a file that shrinks is an error
            metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        facts = Facts.model_validate(metadata)
        checksum = metadata.get("xxh3_128")
    except (SafetensorError, OSError) as error:
        raise GptlabError(f"{path} is not a safetensors file: {error}") from error
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise GptlabError(f"{path} does not contain an explanation of losses") from None
    _check_shapes(path, facts, tensors)
    if checksum != _checksum(facts.model_dump(mode="json"), tensors):
        raise GptlabError(
            f"{path} is damaged: its checksum is wrong; evaluate the run again with: gptlab eval RUN --explain"
        )
    return Explanation(facts, **tensors)


def _tensors(explanation: Explanation) -> dict[str, NDArray[Any]]:
    return {
        field.name: np.ascontiguousarray(getattr(explanation, field.name))
        for field in fields(explanation)
        if field.name != "facts"
    }


def _checksum(facts: dict[str, object], tensors: dict[str, NDArray[Any]]) -> str:
    """Checksum of the facts, and of the names, shapes and little-endian values of the tensors."""
    digest = xxhash.xxh3_128(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _check_shapes(path: Path, facts: Facts, tensors: dict[str, NDArray[Any]]) -> None:
    """Check that the tensors fit the facts and each other.

    Raises:
        GptlabError: They do not.
    """
    blocks, prompts = len(tensors.get("windows", ())), len(facts.prompts)
    by_position, by_frequency = len(position_bins(facts.sequence_length)), len(frequency_bins(facts.most))
    shapes: dict[str, tuple[int, ...]] = {"windows": (blocks,)}
    shapes |= {f"position_{name}": (blocks, by_position) for name in ("loss", "bytes")}
    shapes |= {f"frequency_{name}": (blocks, by_frequency) for name in ("loss", "tokens", "bytes")}
    for part in ("trained", "held_out"):
        passages = len(tensors.get(f"{part}_start", ()))
        shapes |= {f"{part}_start": (passages,), f"{part}_match": (passages, prompts)}
    dtypes = {name: np.float64 if name.endswith("_loss") else np.int64 for name in shapes}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    if found != {name: (shape, np.dtype(dtypes[name])) for name, shape in shapes.items()}:
        raise GptlabError(f"{path} does not contain an explanation of losses")
    counts = [tensor for name, tensor in tensors.items() if dtypes[name] is np.int64]
    fits = tensors["windows"].sum() == facts.windows and (tensors["windows"] > 0).all()
    if not fits or any((tensor < EXCLUDED).any() for tensor in counts):
        raise GptlabError(f"{path} does not contain an explanation of losses")
