"""The nodes that train one run together, from an environment variable that their job sets. Without torch."""

import json
import os
from dataclasses import asdict, dataclass

VARIABLE = "GPTLAB_JOB_NODES"


@dataclass(frozen=True)
class Nodes:
    """The nodes of a run, as one of them sees them."""

    count: int
    """Number of nodes."""
    number: int
    """Number of this node. Process 0 is on node 0."""
    endpoint: str
    """Address and port of node 0, where the processes find each other."""

    def environment(self) -> dict[str, str]:
        """Return the variable from which `nodes` reads this."""
        return {VARIABLE: json.dumps(asdict(self))}


def nodes() -> Nodes | None:
    """Return the nodes of the job that started this process; None if it trains on one."""
    value = os.environ.get(VARIABLE)
    return Nodes(**json.loads(value)) if value else None
