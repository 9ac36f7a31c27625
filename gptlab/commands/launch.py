"""`--nproc N`: start the processes of a run on this node, with torchrun's agent and without its messages.

The agent starts them, lets them find each other, and ends all of them when one fails. Signals are forwarded here, not
by the agent, which would give a checkpoint 30 seconds to be saved.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from uuid import uuid4

from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from gptlab.distributed.nodes import Nodes
from gptlab.errors import EXIT_FAILED
from gptlab.failures import print_line
from gptlab.limits import THREAD_VARIABLES, processors
from gptlab.training.signals import StopSignals

HERE = "127.0.0.1"
ROLE = "worker"


def launch(processes: int, arguments: Sequence[str], nodes: Nodes | None = None) -> int:
    """Run a command of gptlab in several processes, and return the exit code of the first one on this node.

    Args:
        processes: Number of processes on this node.
        arguments: The command's arguments.
        nodes: The nodes whose processes work together; None for this one alone.
    """
    logging.disable()  # the agent logs what a user need not know; this process has no other messages
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""  # see the module's docstring
    if not any(map(os.environ.get, THREAD_VARIABLES)):
        share = max(processors().threads // processes, 1)
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(share)))
    agent = _agent(processes, arguments, nodes)
    with _Forwarded(agent) as signals:
        result = agent.run()
    if not result.is_failed():
        return 0
    for rank, failure in sorted(result.failures.items()):
        if failure.exitcode < 0 and not signals.insisted:
            name = signal.Signals(-failure.exitcode).name
            total = processes * (nodes.count if nodes else 1)
            print_line(f"error: process {rank} of {total} was ended by {name}")
    if signals.insisted and signals.received:
        return 128 + signals.received
    first = result.failures[min(result.failures)].exitcode
    return first if first > 0 else EXIT_FAILED


def _agent(processes: int, arguments: Sequence[str], nodes: Nodes | None) -> LocalElasticAgent:
    """Return the agent of `torchrun --standalone`, on the loopback interface, or of `torchrun --node-rank`."""
    if nodes:
        rendezvous = RendezvousParameters(
            backend="static",
            endpoint=nodes.endpoint,
            run_id="gptlab",  # the endpoint serves no other run
            min_nodes=nodes.count,
            max_nodes=nodes.count,
            rank=nodes.number,
        )
    else:
        rendezvous = RendezvousParameters(
            backend="c10d", endpoint=f"{HERE}:0", run_id=str(uuid4()), min_nodes=1, max_nodes=1, local_addr=HERE
        )
    spec = WorkerSpec(
        role=ROLE,
        local_world_size=processes,
        rdzv_handler=get_rendezvous_handler(rendezvous),
        entrypoint=sys.executable,
        args=("-m", "gptlab", *arguments),
        max_restarts=0,
        local_addr=None if nodes else HERE,
    )
    return LocalElasticAgent(spec, DefaultLogsSpecs(log_dir=os.devnull))


class _Forwarded(StopSignals):
    """Forwards signals to the processes; a second Ctrl-C or SIGTERM kills them."""

    def __init__(self, agent: LocalElasticAgent) -> None:
        super().__init__()
        self._agent = agent
        self.insisted = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        super()._handle(number, frame)
        if not self._forward(signal.SIGKILL if self.insisted else number):
            sys.exit(128 + number)  # before they have started

    def insist(self, number: int) -> None:
        """See `StopSignals`."""
        self.insisted = True

    def _forward(self, number: int) -> bool:
        """Send a signal to all processes. Returns whether there are any."""
        groups = [worker.id for worker in self._agent.get_worker_group(ROLE).workers if isinstance(worker.id, int)]
        for group in groups:
            with suppress(ProcessLookupError):
                os.killpg(group, number)
        return bool(groups)
