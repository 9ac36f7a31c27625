"""Several processes of one run, forked from the tests' process, which has imported everything already.

A start by torchrun takes 6 CPU seconds, and a fork half a second. torchrun's part is its environment and its store.
"""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

import torch.distributed as dist
from faults import Ended, _exit_code

from gptlab.cli import main
from gptlab.data.vocabularies import GPT2

IN_THE_CHILDREN = ("gptlab.commands.run_seeds", "gptlab.commands.follow", "gptlab.training.sharded", "torch._dynamo")
"""What a child would import, in most of its time; only DistributedDataParallel needs the last one."""


def run_together(
    folder: Path,
    *arguments: str,
    processes: int = 2,
    meanwhile: Callable[[Sequence[int]], object] = lambda processes: None,
) -> list[Ended]:
    """Run a command of gptlab in several processes, and return how each of them ended.

    Args:
        folder: A directory for the output.
        arguments: The command and its options.
        processes: Number of processes.
        meanwhile: Called in the parent with the ids of the processes.
    """
    for module in IN_THE_CHILDREN:
        import_module(module)
    GPT2.encode("the same for all children")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ExitStack() as stack:
        files = [
            [stack.enter_context((folder / f"{name}-{rank}").open("w+")) for name in ("out", "err")]
            for rank in range(processes)
        ]
        children = []
        for rank, (out, err) in enumerate(files):
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout = os.fdopen(1, "w", closefd=False)
                sys.stderr = os.fdopen(2, "w", 1, closefd=False)
                sys.argv = ["gptlab", *arguments]
                os.environ.update(_environment(rank, processes, store.port))
                os._exit(_exit_code(main))
            children.append(child)
        meanwhile(children)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        for each in files:
            for file in each:
                file.seek(0)
        return [Ended(code, out.read(), err.read()) for code, (out, err) in zip(codes, files, strict=True)]


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
