"""Ask a W&B server whether it accepts the API key, and for the last row of a run.

These are direct GraphQL queries for fields that W&B's client also uses, because `wandb.Api` (0.31) is no replacement:

- It cannot return `historyTail`, the last row, which resuming needs. Its `lastHistoryStep` uses `historyKeys`, a field
  that W&B-compatible servers such as openwandb do not have.
- If a server returns 500 or refuses the connection, it retries until `timeout=1` (1.00 to 1.05 s) and reports "the
  service process is busy" for both. These queries distinguish the two in 1 to 3 ms.

With a server that hangs or answers byte by byte, both take 1.0 s.
"""

import base64
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

TIMEOUT_S = 1.0
"""Total time for one query: resolving the name, connecting and receiving the whole answer."""

VIEWER = "query Viewer { viewer { id } }"
LAST_ROW = """
query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { historyTail summaryMetrics } }
}
"""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Server:
    """A W&B server and the API key for it."""

    url: str
    key: str

    def unavailable_reason(self) -> str | None:
        """Return why the server cannot be used now, or None if it can."""
        try:
            viewer = _call_with_timeout(lambda: self._query(VIEWER))["viewer"]
        except urllib.error.HTTPError as error:
            if error.code in {401, 403}:
                return f"{self.url} rejects the API key"
            return f"{self.url} returned HTTP error {error.code}"
        except (OSError, ValueError, KeyError, TypeError):
            return f"{self.url} does not respond"
        return None if viewer else f"{self.url} rejects the API key"

    def last_step(self, entity: str, project: str, run: str) -> int:
        """Return the step of the run's last row on the server; −1 if it has none or does not answer."""
        variables = {"entity": entity, "project": project, "name": run}
        try:
            answer = _call_with_timeout(lambda: self._query(LAST_ROW, variables))
            bucket = answer["model"]["bucket"]
            if bucket["historyTail"] is None:  # a compatible server that never reports rows; its summary may lag
                return int(json.loads(bucket["summaryMetrics"])["step"])
            return int(json.loads(json.loads(bucket["historyTail"])[-1])["step"])
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return -1

    def _query(self, query: str, variables: dict[str, str] | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the user's own W&B server
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables or {}}).encode(),
            {
                "Authorization": f"Basic {base64.b64encode(f'api:{self.key}'.encode()).decode()}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - as above
            return json.load(response)["data"]


def _call_with_timeout(call: Callable[[], Answer]) -> Answer:
    """Call a function in a thread: a socket's own timeout covers neither name resolution nor a slow stream of bytes.

    Raises:
        TimeoutError: The call takes longer than `TIMEOUT_S`; its thread is abandoned.
    """
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(TIMEOUT_S)
