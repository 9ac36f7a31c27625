"""Compare the checkpoints of a run with those of its replay."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from gptlab.checkpoints.manifest import Checkpoint, open_tensors
from gptlab.checkpoints.tensors import Tensors, read_tensors
from gptlab.errors import GptlabError
from gptlab.spec import ModelSpec
from gptlab.verification.result import TensorDifference
from gptlab.verification.rows import FLOOR, MULTIPLE


@dataclass
class TensorComparison:
    """What a comparison of checkpoints finds."""

    first: TensorDifference | None = None
    largest: TensorDifference | None = None
    first_beyond: TensorDifference | None = None
    """The first difference that exceeds its bound."""

    def add(self, found: TensorDifference) -> None:
        """Add a difference."""
        self.first = self.first or found
        if self.largest is None or (found.excess, found.difference) > (self.largest.excess, self.largest.difference):
            self.largest = found
        if self.first_beyond is None and found.excess > 1:
            self.first_beyond = found


Checkpoints = Mapping[int, Checkpoint]


def same_bytes(recorded: Checkpoint, replayed: Checkpoint) -> bool:
    """Return whether the files that the run's checkpoint has are the replay's, by size and checksum."""
    return recorded.manifest.files == replayed.manifest.files


def compare_tensors(
    model: ModelSpec, recorded: Checkpoints, replayed: Checkpoints, rounded: Checkpoints | None = None
) -> TensorComparison:
    """Compare the tensors of checkpoints.

    Args:
        model: The run's model.
        recorded: Checkpoints of the run by step.
        replayed: Those of the replay that differ.
        rounded: Those of the replay with other rounding, from which the bounds come. Without them, bounds are zero.
    """
    found = TensorComparison()
    sensitivity: dict[tuple[str, str], float] = {}
    for step, ours in sorted(replayed.items()):
        for file in sorted(recorded[step].manifest.files):
            try:
                theirs, our = _read(recorded[step], file, model), _read(ours, file, model)
                other = _read(rounded[step], file, model) if rounded else None
            except (GptlabError, KeyError):  # it has another size, or tensors of another model
                found.add(TensorDifference(step, file, "", math.inf))
                continue
            for name in sorted(theirs.keys() | our.keys()):
                bound, key = 0.0, (file, name)
                if other is not None:
                    sensitivity[key] = max(
                        sensitivity.get(key, 0.0), relative_difference(our.get(name), other.get(name))
                    )
                    bound = MULTIPLE * sensitivity[key] + FLOOR
                if not _same_bytes(theirs.get(name), our.get(name)):
                    difference = relative_difference(our.get(name), theirs.get(name))
                    found.add(TensorDifference(step, file, name, difference, bound))
    return found


def relative_difference(a: Tensor | None, b: Tensor | None) -> float:
    """Return ‖a − b‖ / ‖a‖, 0 for equal tensors, and infinity if they cannot be compared or are not finite."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if torch.equal(a, b):
        return 0.0
    if not a.is_floating_point():
        return math.inf
    norm, difference = a.double().norm().item(), (a.double() - b.double()).norm().item()  # float32 could overflow
    return difference / norm if norm and math.isfinite(difference) else math.inf


def _same_bytes(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors are the same in every bit, the sign of a zero included."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))


def _read(checkpoint: Checkpoint, file: str, model: ModelSpec) -> Tensors:
    path, listed = checkpoint.directory / file, checkpoint.manifest.files[file]
    with open_tensors(path, model, listed, any_size=True) as (opened, size):
        return read_tensors(path, opened, size, None, xxhash.xxh3_128(), listed.xxh3_128)
