"""Ask a W&B server whether it accepts the API key, and for the last row of a run.

These are direct GraphQL queries for fields that W&B's client also uses, because `wandb.Api` (0.31) is no replacement:

- It cannot return `historyTail`, the last row, which resuming needs. Its `lastHistoryStep` uses `historyKeys`, a field
  that W&B-compatible servers such as openwandb do not have.
- If a server returns 500 or refuses the connection, it retries until `timeout=1` (1.00 to 1.05 s) and reports "the
  service process is busy" for both. These queries distinguish the two in 1 to 3 ms.

With a server that hangs or answers byte by byte, both take 1.0 s.
"""

import base64
import http.client
import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, Field, Json

from gptlab.errors import GptlabError
from gptlab.untrusted import Count

PROBE_TIMEOUT_S = 1.0
"""Total time for the probe: resolving the name, connecting and receiving the whole answer."""
POLL_INTERVAL_S = 0.5

VIEWER = "query Viewer { viewer { id } }"
LAST_ROW = """
query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    bucket(name: $name, missingOk: true) { historyTail historyLineCount summaryMetrics }
  }
}
"""

NO_ANSWER = (OSError, ValueError, KeyError, TypeError, RecursionError, http.client.HTTPException)
"""What asking raises when there is no answer, or one that is no JSON or has not the expected fields."""

Answer = TypeVar("Answer")


class NoAnswerError(GptlabError):
    """A server did not say which rows it has."""


@dataclass(frozen=True)
class Server:
    """A W&B server and the API key for it."""

    url: str
    key: str = field(repr=False)
    proxies: Mapping[str, str] = field(default_factory=dict)
    """Proxy by scheme, in addition to those of `HTTP_PROXY` and its like."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers of each request."""
    verify_certificate: bool = True

    def unavailable_reason(self) -> str | None:
        """Return why the server cannot be used now, or None if it can."""
        try:
            viewer = self._query(VIEWER, PROBE_TIMEOUT_S)["data"]["viewer"]
        except urllib.error.HTTPError as error:
            if error.code in {401, 403}:
                return f"{self.url} rejects the API key"
            return f"{self.url} returned HTTP error {error.code}"
        except NO_ANSWER:
            return f"{self.url} does not respond"
        return None if viewer else f"{self.url} rejects the API key"

    def last_step(self, entity: str, project: str, run: str, timeout_s: float) -> int:
        """Return the step of the run's last row on the server; −1 if the server says that it has none.

        An answer that says neither is asked for again until the time is over.

        Raises:
            NoAnswerError: The server does not say which rows it has.
        """
        variables = {"entity": entity, "project": project, "name": run}
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                return _LastRowAnswer.model_validate(self._query(LAST_ROW, left_s, variables)).last_step()
            except NO_ANSWER:
                time.sleep(min(POLL_INTERVAL_S, left_s))  # a server that restarts answers soon
        raise NoAnswerError(f"{self.url} does not say which rows it has")

    def _query(self, query: str, timeout_s: float, variables: dict[str, str] | None = None) -> Any:
        """Send a GraphQL query and return the decoded answer."""
        request = urllib.request.Request(  # noqa: S310 - the user's own W&B server
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables or {}}).encode(),
            {
                **self.headers,
                "Authorization": f"Basic {base64.b64encode(f'api:{self.key}'.encode()).decode()}",
                "Content-Type": "application/json",
            },
        )

        def send() -> Any:
            with self._opener().open(request, timeout=timeout_s) as response:
                return json.load(response)

        return _call_with_timeout(send, timeout_s)

    def _opener(self) -> urllib.request.OpenerDirector:
        context = ssl.create_default_context()
        if not self.verify_certificate:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        https = urllib.request.HTTPSHandler(context=context)
        return urllib.request.build_opener(
            https, urllib.request.ProxyHandler({**urllib.request.getproxies(), **self.proxies})
        )


class _Row(BaseModel):
    step: Count = Field(validation_alias=AliasChoices("step", "_step"))


class _Summary(BaseModel):
    step: Count | None = None


class _Bucket(BaseModel):
    """A run as the server describes it."""

    historyTail: Json[list[Json[_Row]]] | None  # noqa: N815 - W&B's name
    historyLineCount: int | None = None  # noqa: N815 - W&B's name
    summaryMetrics: Json[_Summary] | None = None  # noqa: N815 - W&B's name

    def last_step(self) -> int:
        if self.historyTail is not None:
            return self.historyTail[-1].step if self.historyTail else -1
        # A compatible server that never reports rows; its summary may lag.
        if self.summaryMetrics and self.summaryMetrics.step is not None:
            return self.summaryMetrics.step
        if self.historyLineCount == 0:
            return -1
        raise ValueError("the server reports neither rows nor that there are none")


class _Project(BaseModel):
    bucket: _Bucket | None
    """None if the run does not exist."""


class _Data(BaseModel):
    model: _Project


class _LastRowAnswer(BaseModel):
    data: _Data
    errors: tuple[()] | None = None

    def last_step(self) -> int:
        bucket = self.data.model.bucket
        return bucket.last_step() if bucket else -1


def _call_with_timeout(call: Callable[[], Answer], timeout_s: float) -> Answer:
    """Call a function in a thread: a socket's own timeout covers neither name resolution nor a slow stream of bytes.

    Raises:
        TimeoutError: The call takes longer; its thread is abandoned.
    """
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(timeout_s)
