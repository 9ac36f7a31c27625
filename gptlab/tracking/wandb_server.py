"""What a W&B server says by itself: whether it takes the key, and how far it has a run.

Both are asked in GraphQL, with fields that W&B's own client asks for, so that every compatible server knows them.
"""

import base64
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

ANSWER_S = 1.0
"""How long one question may take in all: finding the host, connecting, and every byte of the answer."""

VIEWER = "query Viewer { viewer { id } }"
LAST_ROW = """
query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { historyTail summaryMetrics } }
}
"""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Server:
    """A W&B server and the key for it."""

    url: str
    key: str

    def objection(self) -> str | None:
        """Why the server is of no use now, or None."""
        try:
            viewer = _within(ANSWER_S, lambda: self._ask(VIEWER))["viewer"]
        except urllib.error.HTTPError as error:
            if error.code in {401, 403}:
                return f"{self.url} refuses the API key"
            return f"{self.url} answers with error {error.code}"
        except (OSError, ValueError, KeyError, TypeError):
            return f"{self.url} does not answer"
        return None if viewer else f"{self.url} refuses the API key"

    def last_step(self, entity: str, project: str, run: str) -> int:
        """The step of the last row that the server has of a run; -1 where it has none, or does not say."""
        variables = {"entity": entity, "project": project, "name": run}
        try:
            answer = _within(ANSWER_S, lambda: self._ask(LAST_ROW, variables))
            bucket = answer["model"]["bucket"]
            if bucket["historyTail"] is None:  # a server of other make, which tells no rows; a summary may be behind
                return int(json.loads(bucket["summaryMetrics"])["step"])
            return int(json.loads(json.loads(bucket["historyTail"])[-1])["step"])
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return -1

    def _ask(self, query: str, variables: dict[str, str] | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the user's own W&B server
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables or {}}).encode(),
            {
                "Authorization": f"Basic {base64.b64encode(f'api:{self.key}'.encode()).decode()}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:  # noqa: S310 - as above
            return json.load(answer)["data"]


def _within(seconds: float, work: Callable[[], Answer]) -> Answer:
    """What `work` gives, if it gives it in time: a socket's own timeout counts neither DNS nor a slow drip.

    Raises:
        TimeoutError: It takes longer, and is left to itself.
    """
    outcome: list[Answer | Exception] = []

    def do() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]
