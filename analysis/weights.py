"""Statistics of weights and of their changes between checkpoints, read from safetensors files with NumPy.

At most three tensors are in memory: the current one and its versions in the previous and the first checkpoint. Sums are
computed in float64 block by block, so that no tensor is copied as a whole.

A file is used only if it has the checksum in its manifest, because the format has none. That takes one more pass over
the file; `analysis.load` caches what it reads.
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

from analysis import choices
from gptlab.checkpoints.manifest import (
    MANIFEST,
    MODEL,
    Checkpoint,
    compute_digest,
    list_checkpoints,
    plausible_sizes,
)
from gptlab.errors import BadInputError, GptlabError
from gptlab.spec import ModelSpec
from gptlab.tracking.run import Run, find_run
from gptlab.untrusted import Count

Weights = NDArray[np.float32]

_BLOCK = 1 << 13
"""Elements per block of a sum: small enough for a core's cache, and too few for BLAS to start threads."""

_GRAM_BLOCK = 1 << 19
"""Elements per block of a matrix product: large enough for threads to pay off."""


class _Losses(BaseModel):
    train: float | None = Field(None, alias="train/loss")
    val: float | None = Field(None, alias="val/loss")


class _Header(BaseModel):
    """The fields of a checkpoint's header that are read here."""

    model_config = ConfigDict(extra="ignore")

    tokens: Count
    losses: Annotated[_Losses, Field(default_factory=_Losses)]


def headers(run: Run) -> list[dict[str, Any]]:
    """Return one row per kept checkpoint of a run, by step, with the facts in its header.

    Raises:
        GptlabError: A file is damaged or not a checkpoint of this run; the message names the file.
    """
    rows = []
    for checkpoint in list_checkpoints(run.directory):
        path = checkpoint.directory / MODEL
        try:
            with _open(checkpoint, run.record.spec.model) as file:
                text, tensors = (file.metadata() or {}).get("gptlab", "{}"), len(file.keys())
            header = _Header.model_validate_json(text)
        except FileNotFoundError:  # removed by the retention of a run that is being trained
            continue
        except ValidationError as error:
            raise GptlabError(f"{path}: invalid header: {error.errors()[0]['msg']:.200}") from None
        rows.append(
            {
                "step": checkpoint.step,
                "tokens": header.tokens,
                "train/loss": header.losses.train,
                "val/loss": header.losses.val,
                "tensors": tensors,
                "bytes": path.stat().st_size,
                "resumable": checkpoint.resumable,
                "directory": str(checkpoint.directory),
            }
        )
    return rows


def files(run: Run) -> list[Path]:
    """The files that `headers` and `statistics` depend on: weights and manifests of the kept checkpoints."""
    return [checkpoint.directory / name for checkpoint in list_checkpoints(run.directory) for name in (MODEL, MANIFEST)]


def statistics(run: Run) -> list[dict[str, Any]]:
    """Return one row per tensor and kept checkpoint, by step and name; `load.checkpoints` describes the columns.

    Raises:
        GptlabError: A file is damaged or not a checkpoint of this run; the message names the file.
    """
    rows = []
    with ExitStack() as stack:
        opened = []
        for checkpoint in list_checkpoints(run.directory):
            path = checkpoint.directory / MODEL
            try:
                opened.append((checkpoint, path, stack.enter_context(_open(checkpoint, run.record.spec.model))))
            except FileNotFoundError:
                continue
        for name in sorted({name for _, _, file in opened for name in file.keys()}):  # noqa: SIM118 - not a dict
            first = previous = None
            for checkpoint, path, file in opened:
                if name not in file.keys() or _is_other_buffer(file, name, run):  # noqa: SIM118 - not a dict
                    continue
                tensor = _read_tensor(path, file, name)
                changes = change_statistics(tensor, previous, first)
                rows.append({"step": checkpoint.step, **tensor_statistics(name, tensor), **changes})
                first = tensor if first is None else first
                previous = tensor
    return sorted(rows, key=lambda row: (row["step"], row["tensor"]))


def tensor_statistics(name: str, tensor: Weights) -> dict[str, Any]:
    """The statistics of one tensor, by column."""
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


def change_statistics(tensor: Weights, previous: Weights | None, first: Weights | None) -> dict[str, float]:
    """The statistics of a tensor's change since the previous and the first checkpoint, by column.

    Empty if there is no earlier checkpoint with this tensor in this shape.
    """
    if previous is None or first is None or previous.shape != tensor.shape or first.shape != tensor.shape:
        return {}
    norms = math.sqrt(_product(tensor, tensor)) * math.sqrt(_product(previous, previous))
    return {
        "update": _distance(tensor, previous),
        "cosine": max(-1.0, min(1.0, _product(tensor, previous) / norms)) if norms else math.nan,
        "distance": _distance(tensor, first),
    }


def stable_rank(matrix: Weights) -> float:
    """‖A‖²_F / ‖A‖²₂, between 1 and the rank (Rudelson and Vershynin 2007); NaN if A is zero or not a matrix."""
    if matrix.ndim != 2:
        return math.nan
    (largest,) = singular_values(matrix, largest_only=True)
    return _product(matrix, matrix) / largest**2 if largest else math.nan


def singular_values(matrix: Weights, *, largest_only: bool = False) -> NDArray[np.float64]:
    """The singular values in descending order: square roots of the eigenvalues of the smaller Gram matrix."""
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


def read_tensor(run: str, step: int, name: str) -> Weights:
    """Read one tensor of a kept checkpoint.

    Args:
        run: A run's id, a unique prefix of one, or its directory.
        step: The checkpoint's step.
        name: The tensor's name, as in `load.checkpoints()`.

    Raises:
        BadInputError: There is no such run, checkpoint or tensor.
        GptlabError: The checkpoint is damaged; the message names the file.
    """
    source = find_run(run)
    for checkpoint in list_checkpoints(source.directory):
        if checkpoint.step == step:
            path = checkpoint.directory / MODEL
            with _open(checkpoint, source.record.spec.model) as file:
                known = sorted(file.keys())
                if name not in known:
                    raise BadInputError(f"{path} has no tensor '{name}'; its tensors are: {choices.listed(known)}")
                return _read_tensor(path, file, name)
    kept = ", ".join(str(checkpoint.step) for checkpoint in list_checkpoints(source.directory)) or "none"
    raise BadInputError(f"{source.id} keeps no checkpoint of step {step}; available: {kept}")


def nearest_rows(embedding: Weights, row: int, count: int = 8) -> list[tuple[int, float]]:
    """The rows with the highest cosine similarity to a given row, as pairs of row and cosine in descending order.

    Args:
        embedding: Matrix of shape (rows, features).
        row: The row to compare with.
        count: Number of rows to return.
    """
    lengths = np.linalg.norm(embedding, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.nan_to_num(embedding @ embedding[row] / (lengths * lengths[row]), nan=-1.0)
    cosines[row] = -math.inf
    return [(int(other), float(cosines[other])) for other in np.argsort(-cosines, kind="stable")[:count]]


def _open(checkpoint: Checkpoint, model: ModelSpec) -> Any:
    """Open a weight file. The library checks the header; this function checks the size and the checksum."""
    path = checkpoint.directory / MODEL
    try:
        if path.stat().st_size >= plausible_sizes(model, MODEL).stop:
            raise GptlabError(f"{path} is too large for a model of {model.parameters:,} parameters")
        file = safe_open(path, framework="numpy", backend="pread")  # a file that shrinks is an error
        if compute_digest(path) != checkpoint.manifest.files[MODEL]:
            raise GptlabError(f"{path} is damaged: its checksum is not the one in its manifest")
        return file
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise GptlabError(f"{path} is not a safetensors file: {error}") from error


def _is_other_buffer(file: Any, name: str, run: Run) -> bool:
    """Whether a tensor is a buffer of a part that holds no float32 numbers, such as a mask."""
    return run.record.spec.model.has_parts and file.get_slice(name).get_dtype() != "F32"


def _read_tensor(path: Path, file: Any, name: str) -> Weights:
    try:
        header = file.get_slice(name)
        dtype, shape = header.get_dtype(), header.get_shape()
        if dtype != "F32" or 0 in shape:
            raise GptlabError(
                f"{path}: {name:.80} has dtype {dtype} and shape {shape}; expected a non-empty F32 tensor"
            )
        tensor: Weights = file.get_tensor(name)
    except (SafetensorError, OSError) as error:  # the file became shorter
        raise GptlabError(f"{path} cannot be read: {error}") from error
    return tensor


def _product(one: Weights, other: Weights) -> float:
    """The inner product of two tensors of one shape."""
    return sum(float(np.dot(a, b)) for a, b in zip(_blocks(one), _blocks(other), strict=True))


def _distance(one: Weights, other: Weights) -> float:
    """The Frobenius norm of the difference of two tensors."""
    with np.errstate(invalid="ignore"):  # a distance to infinity is NaN
        differences = (a - b for a, b in zip(_blocks(one), _blocks(other), strict=True))
        return math.sqrt(sum(float(np.dot(d, d)) for d in differences))


def _blocks(tensor: Weights) -> Iterator[NDArray[np.float64]]:
    """The elements in float64, `_BLOCK` at a time."""
    flat = tensor.ravel()
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK].astype(np.float64)
