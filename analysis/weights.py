"""What weights are like, and how they move from checkpoint to checkpoint: straight from safetensors, with NumPy.

One tensor is in memory at a time, with the same tensor of the previous and of the first checkpoint to compare it with.
Sums are taken in float64, block by block, which costs no copy of an embedding.
"""

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from gptlab.errors import BadInputError, GptlabError
from gptlab.spec import ModelSpec
from gptlab.tracking.checkpoints import MODEL, Checkpoint, list_checkpoints, sizes
from gptlab.tracking.reading import Count
from gptlab.tracking.run import Run, find

Weights = NDArray[np.float32]

_BLOCK = 1 << 13
"""Elements that are summed at once: they fit a core's cache, and are too few for BLAS to start threads over."""

_GRAM_BLOCK = 1 << 19
"""Elements of which a product is taken at once: enough for threads to be worth their start."""


class _Losses(BaseModel):
    train: float | None = Field(None, alias="train/loss")
    val: float | None = Field(None, alias="val/loss")


class _Header(BaseModel):
    """The facts in a file's header that are read again; it has more."""

    model_config = ConfigDict(extra="ignore")

    tokens: Count
    losses: Annotated[_Losses, Field(default_factory=_Losses)]


def headers(run: Run) -> Iterator[dict[str, Any]]:
    """What the headers of a run's kept checkpoints say, one row each by step; no tensor is touched.

    Raises:
        GptlabError: A file is no checkpoint's; the message names it.
    """
    for checkpoint in list_checkpoints(run.directory):
        path = checkpoint.directory / MODEL
        try:
            with _opened(path, run.record.spec.model) as file:
                text, tensors = (file.metadata() or {}).get("gptlab", "{}"), len(file.keys())
            header = _Header.model_validate_json(text)
        except FileNotFoundError:  # training goes on meanwhile, and keeps only its newest checkpoints
            continue
        except ValidationError as error:
            raise GptlabError(f"{path}: its header is not a run's: {error.errors()[0]['msg']:.200}") from None
        yield {
            "step": checkpoint.step,
            "tokens": header.tokens,
            "train/loss": header.losses.train,
            "val/loss": header.losses.val,
            "tensors": tensors,
            "bytes": path.stat().st_size,
            "resumable": checkpoint.resumable,
            "directory": str(checkpoint.directory),
        }


def files(run: Run) -> list[Path]:
    """The weights of a run's kept checkpoints, by step."""
    return [checkpoint.directory / MODEL for checkpoint in list_checkpoints(run.directory)]


def statistics(run: Run) -> list[dict[str, Any]]:
    """A row per tensor and kept checkpoint, by step and name; `analysis.load.checkpoints` says what is in it.

    Raises:
        GptlabError: A file is no checkpoint's; the message names it.
    """
    rows = []
    with ExitStack() as stack:
        opened = []
        for checkpoint in list_checkpoints(run.directory):
            path = checkpoint.directory / MODEL
            try:
                opened.append((checkpoint, path, stack.enter_context(_opened(path, run.record.spec.model))))
            except FileNotFoundError:
                continue
        for name in sorted({name for _, _, file in opened for name in file.keys()}):  # noqa: SIM118 - it is no dict
            first = previous = None
            for checkpoint, path, file in opened:
                if name not in file.keys():  # noqa: SIM118 - it is no dict
                    continue
                tensor = _read(path, file, name)
                rows.append({"step": checkpoint.step, **describe(name, tensor), **moved(tensor, previous, first)})
                first = tensor if first is None else first
                previous = tensor
    return sorted(rows, key=lambda row: (row["step"], row["tensor"]))


def describe(name: str, tensor: Weights) -> dict[str, Any]:
    """What a tensor is like."""
    norm = math.sqrt(_product(tensor, tensor))
    largest = float(max(tensor.max(), -tensor.min()))
    layer = re.match(r"blocks\.([0-9]{1,9})\.", name)
    return {
        "tensor": name,
        "layer": int(layer[1]) if layer else None,
        "shape": "x".join(map(str, tensor.shape)),
        "dtype": tensor.dtype.name,
        "parameters": tensor.size,
        "rms": norm / math.sqrt(tensor.size),
        "norm": norm,
        "abs_max": largest,
        "zeros": 1 - np.count_nonzero(tensor) / tensor.size,
        "stable_rank": stable_rank(tensor),
    }


def moved(tensor: Weights, previous: Weights | None, first: Weights | None) -> dict[str, float]:
    """How far a tensor is from what it was; nothing where it was not, or had another shape."""
    if previous is None or first is None or previous.shape != tensor.shape or first.shape != tensor.shape:
        return {}
    norms = math.sqrt(_product(tensor, tensor)) * math.sqrt(_product(previous, previous))
    return {
        "update": _distance(tensor, previous),
        "cosine": max(-1.0, min(1.0, _product(tensor, previous) / norms)) if norms else math.nan,
        "distance": _distance(tensor, first),
    }


def stable_rank(matrix: Weights) -> float:
    """‖A‖²_F / ‖A‖²₂, from 1 to the rank (Rudelson and Vershynin 2007); NaN where A is zero or no matrix."""
    if matrix.ndim != 2:
        return math.nan
    (largest,) = singular_values(matrix, largest_only=True)
    return _product(matrix, matrix) / largest**2 if largest else math.nan


def singular_values(matrix: Weights, *, largest_only: bool = False) -> NDArray[np.float64]:
    """A matrix's singular values, the largest first: roots of the eigenvalues of its smaller Gram matrix."""
    wide = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = np.zeros((wide.shape[1],) * 2)
    rows = max(_GRAM_BLOCK // wide.shape[1], 1)
    for start in range(0, len(wide), rows):
        block = wide[start : start + rows].astype(np.float64)
        gram += block.T @ block
    if not np.isfinite(gram).all():
        return np.full(1 if largest_only else len(gram), math.nan)
    chosen = (len(gram) - 1, len(gram) - 1) if largest_only else None
    values: NDArray[np.float64] = scipy.linalg.eigh(gram, eigvals_only=True, subset_by_index=chosen)
    return np.sqrt(np.maximum(values[::-1], 0.0))


def tensor(run: str, step: int, name: str) -> Weights:
    """One tensor of a run's kept checkpoint.

    Args:
        run: A run's id, a unique prefix of one, or its directory.
        step: The checkpoint's.
        name: The tensor's, as `load.checkpoints()` has it.

    Raises:
        BadInputError: There is no such run, checkpoint or tensor.
    """
    found = find(run)
    for checkpoint in list_checkpoints(found.directory):
        if checkpoint.step == step:
            return _from(checkpoint, found.record.spec.model, name)
    raise BadInputError(f"{found.id} keeps no checkpoint of step {step}")


def neighbours(embedding: Weights, row: int, count: int = 8) -> list[tuple[int, float]]:
    """The rows that are nearest to one row of an embedding, itself left out, with the cosine of the angle between."""
    lengths = np.linalg.norm(embedding, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.nan_to_num(embedding @ embedding[row] / (lengths * lengths[row]), nan=-1.0)
    cosines[row] = -math.inf
    return [(int(other), float(cosines[other])) for other in np.argsort(-cosines, kind="stable")[:count]]


def _from(checkpoint: Checkpoint, model: ModelSpec, name: str) -> Weights:
    path = checkpoint.directory / MODEL
    with _opened(path, model) as file:
        if name not in file.keys():  # noqa: SIM118 - it is no dict
            raise BadInputError(f"{path} has no tensor '{name}'")
        return _read(path, file, name)


def _opened(path: Path, model: ModelSpec) -> Any:
    """The file, open: its header is checked by the library, its length against the model's."""
    try:
        if path.stat().st_size >= sizes(model).stop:
            raise GptlabError(f"{path} is too long for a model of {model.parameters:,} parameters")
        return safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise GptlabError(f"{path} is not a safetensors file: {error}") from error


def _read(path: Path, file: Any, name: str) -> Weights:
    about = file.get_slice(name)
    if about.get_dtype() != "F32" or 0 in about.get_shape():
        raise GptlabError(f"{path} has {name:.80} as {about.get_shape()} {about.get_dtype()}, which is no weight")
    tensor: Weights = file.get_tensor(name)
    return tensor


def _product(one: Weights, other: Weights) -> float:
    """The sum of the products of their elements."""
    return sum(float(np.dot(a, b)) for a, b in zip(_blocks(one), _blocks(other), strict=True))


def _distance(one: Weights, other: Weights) -> float:
    with np.errstate(invalid="ignore"):  # a distance from infinity is NaN
        differences = (a - b for a, b in zip(_blocks(one), _blocks(other), strict=True))
        return math.sqrt(sum(float(np.dot(d, d)) for d in differences))


def _blocks(tensor: Weights) -> Iterator[NDArray[np.float64]]:
    flat = tensor.ravel()
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK].astype(np.float64)
