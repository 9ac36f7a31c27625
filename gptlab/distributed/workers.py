"""The processes that train one run together: what each computes, and what they tell each other.

The batch of a step is a function of (seed, step), and each process takes its rows of it. So the number of processes
changes nothing but the order of sums.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gptlab.distributed.board import Board
from gptlab.distributed.place import place
from gptlab.errors import GptlabError

DTYPES = {str(dtype): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)} | {
    str(dtype): dtype for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
}
CONNECTION_WORDS = ("gloo", "nccl", "timed out", "timeout", "connection", "peer")
"""What the messages of errors of a connection contain."""
ValueT = TypeVar("ValueT", bound=np.generic)


class LostProcessError(GptlabError):
    """Another process has ended or does not answer."""


class Workers:
    """The processes of a run. This class stands for a single one; nothing is sent."""

    rank = 0
    size = 1

    def rows(self, count: int) -> slice:
        """Return which of the rows of a batch this process computes."""
        return slice(None)

    def share(self, values: NDArray[ValueT]) -> NDArray[ValueT]:
        """Return which of these values this process evaluates. The last one may be repeated, so that shares are equal.

        See `collect`.
        """
        return values

    def collect(self, results: Tensor, count: int) -> Tensor:
        """Return the results for all `count` values from those for each process's share, `(share, …)` on the CPU."""
        return results

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return values


SINGLE = Workers()


class Group(Workers):
    """Several processes, connected by `torch.distributed` until they end.

    The connection is never closed. Gloo's destructor waits for a thread that may wait for Python's interpreter lock,
    which the caller holds: one process in four hung there. `gptlab.cli.leave` ends a process without destructors.
    """

    def __init__(self, board: Board, device: str, timeout_s: float) -> None:
        """Connect the processes. Each of them must call this before it uses its GPU.

        Args:
            board: Where the processes find each other.
            device: The device that training uses.
            timeout_s: How long to wait for another process before it counts as lost.
        """
        self.rank, self.size, self.device = board.rank, board.size, device
        if device == "cuda":
            torch.cuda.set_device(place().local_rank)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            store=dist.PrefixStore("group", board.store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=timeout_s),
        )

    def rows(self, count: int) -> slice:
        """See `Workers`. The processes have equal numbers of adjacent rows."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def share(self, values: NDArray[ValueT]) -> NDArray[ValueT]:
        """See `Workers`."""
        missing = -len(values) % self.size
        padded = np.concatenate([values, np.repeat(values[-1:], missing)])
        return padded[self.rows(len(padded))]

    def collect(self, results: Tensor, count: int) -> Tensor:
        """See `Workers`."""
        shares = [torch.empty_like(results) for _ in range(self.size)]
        dist.all_gather(shares, results.contiguous())
        return torch.cat(shares)[:count]

    def total(self, values: Tensor) -> Tensor:
        """See `Workers`."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    def tell(self, document: Any) -> Any:
        """Return a JSON document of process 0 in each process. The other processes pass None."""
        content = json.dumps(document).encode() if self.rank == 0 else b""
        data = torch.empty(int(self.total(torch.tensor(len(content)))), dtype=torch.uint8)
        if self.rank == 0:
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        dist.broadcast(data, src=0)
        return json.loads(data.numpy().tobytes())

    def spread(self, tensors: Mapping[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of process 0 with their names in each process, one after the other, on the CPU.

        Args:
            tensors: The tensors in process 0, on the CPU; None elsewhere.
        """
        shapes = self.tell(tensors and {name: (tensor.shape, str(tensor.dtype)) for name, tensor in tensors.items()})
        for name, (shape, dtype) in (shapes or {}).items():
            tensor = tensors[name].detach().contiguous() if tensors else torch.empty(shape, dtype=DTYPES[dtype])
            dist.broadcast(tensor, src=0)
            yield name, tensor


@contextmanager
def explain_lost_processes(workers: Workers) -> Iterator[None]:
    """Turn errors of the connection to other processes into one line.

    Raises:
        LostProcessError: Another process has ended, or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if workers.size == 1 or not _is_of_connection(error):
            raise
        waited = any(word in str(error).lower() for word in ("timed out", "timeout"))
        what = "did not answer in time (see --timeout)" if waited else "has ended"
        raise LostProcessError(
            f"process {workers.rank} of {workers.size} stops, because another process {what}; nothing was saved since "
            "the last checkpoint"
        ) from error


def _is_of_connection(error: RuntimeError) -> bool:
    """Whether an error comes from a connection; Gloo has no class for its errors, which name its source files."""
    message = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in message for word in CONNECTION_WORDS)
