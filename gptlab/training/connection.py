"""Connect the processes of a run, as it is distributed."""

from gptlab.distributed.board import board
from gptlab.distributed.workers import Group
from gptlab.training.distribution import Joint, Replicated
from gptlab.training.settings import Settings


def connect(settings: Settings, timeout_s: float, *, shard: bool) -> Joint:
    """Connect this process to the others of its run.

    Args:
        settings: The settings of all processes.
        timeout_s: How long to wait for another process before it counts as lost.
        shard: Whether each process has a part of the state only.
    """
    workers = Group(board(), settings.device, timeout_s)
    if shard:
        from gptlab.training.sharded import Sharded  # importing FSDP2 takes a second

        return Sharded(workers)
    return Replicated(workers)
