"""Notices of process 0 to the others: what to do, and that it has ended.

They are in torchrun's key-value store and not sent as collectives, because process 0 may need minutes before it knows
what to do, such as for tokenizing a text. The others wait without a time limit meanwhile: torchrun ends them if
process 0 dies.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from gptlab.errors import EXIT_FAILED, GptlabError

POLL_S = 0.1
"""Seconds between two looks at the store."""
READY = "ready"
END = "end"


class Board:
    """The notices of one start of the processes; a restart by torchrun has others."""

    def __init__(self) -> None:
        """Connect to torchrun's store, which may be the same one after a restart."""
        store, self.rank, self.size = next(rendezvous("env://"))
        self.store = dist.PrefixStore(f"gptlab/{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        self._count = 0

    def post(self, notice: dict[str, Any]) -> None:
        """Post the next notice."""
        self.store.set(f"notice/{self._count}", json.dumps(notice))
        self._count += 1

    def read(self, *, give_up: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:
        """Wait for the next notice and return it; None after `give_up()`, which is asked meanwhile."""
        key = f"notice/{self._count}"
        if not self._wait(key, give_up):
            return None
        self._count += 1
        notice: dict[str, Any] = json.loads(self.store.get(key))
        return notice

    def report_ready(self) -> None:
        """Tell process 0 that this process is ready to train."""
        if self.store.add(READY, 1) == self.size - 1:
            self.store.set(f"all {READY}", "")

    def wait_until_ready(self, *, give_up: Callable[[], bool]) -> None:
        """Wait until all other processes are ready.

        Raises:
            GptlabError: `give_up()`, which is asked meanwhile.
        """
        if not self._wait(f"all {READY}", give_up):
            raise GptlabError("training did not begin: a signal asked to stop, or another process failed")

    def _wait(self, key: str, give_up: Callable[[], bool]) -> bool:
        while not self.store.check([key]):
            if give_up():
                return False
            time.sleep(POLL_S)  # the store's own wait would keep Python from handling signals
        return True


@cache
def board() -> Board:
    """Return the board of this process, which it connects to once."""
    return Board()


def post_end(code: int) -> None:
    """Tell the other processes that process 0 has ended, with this exit code."""
    with suppress(dist.DistError):  # torchrun is gone, and the others notice that
        board().post({END: code})


def read_end(*, give_up: Callable[[], bool] = lambda: False) -> int | None:
    """Wait until process 0 has ended and return its exit code; None after `give_up()`."""
    try:
        notice = board().read(give_up=give_up)
    except dist.DistError:  # the store is gone, and with it torchrun or process 0
        return EXIT_FAILED
    return None if notice is None else int(notice.get(END, EXIT_FAILED))
