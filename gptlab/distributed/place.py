"""The place of this process among those of a run, from the environment variables that torchrun sets. Without torch."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """The place of a process among those that train one run together."""

    rank: int = 0
    """Number of this process. Process 0 plans the run, records it and prints; the others compute."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number of this process among those on its machine, and of its GPU."""
    local_size: int = 1
    """Number of processes on this machine."""

    @property
    def is_follower(self) -> bool:
        """Whether another process plans the run."""
        return self.rank > 0

    @property
    def has_followers(self) -> bool:
        """Whether this process plans a run for others."""
        return self.rank == 0 and self.size > 1


def place() -> Place:
    """Return this process's place. Without torchrun, it is alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Place()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Place(*(int(os.environ[name]) for name in names))
