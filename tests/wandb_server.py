"""A loopback W&B server that stores what the real client sends, and fails on request.

It answers the requests of `wandb-core` 0.31, as recorded and as its source reads (paths are those of the repository
wandb/wandb):

- `RunResumeStatus` reads a run and `UpsertBucket` writes it (recorded). A run has begun if `wandbConfig` is not null
  and has `t`. Without it the client takes the run for a new one, but still sends rows from the offset
  `historyLineCount` of `UpsertBucket` (observed). The next step is `_step` of the first line of `historyTail` plus one,
  and rows are sent from the offset `historyLineCount` (core/internal/runresume/runresume.go: RunHasStarted,
  updateHistory, update).
- Rows are POSTed to `/files/ENTITY/PROJECT/RUN/file_stream` as `{"files": {NAME: {"offset", "content"}}, "complete",
  "exitcode"}` (core/internal/filestream/filestreamimpl.go: FsTransmitData); a line's place is offset plus index.
- 400, 401, 403, 404, 409 and 410 end the stream; other errors are retried
  (core/internal/filestream/retry_policy.go: RetryPolicy).
- `CreateRunFiles` returns an upload URL for each file, to which the client PUTs the content (recorded; without a URL
  wandb-core crashes with a nil pointer in core/internal/runfiles/uploader.go).
- An artifact takes `CreateArtifact`, `CreateArtifactManifest`, `CreateArtifactFiles` and `CommitArtifact` (recorded;
  core/internal/artifacts/saver.go: Save).
"""

import base64
import gzip
import http.server
import json
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

KEY = "0123456789" * 4


@dataclass
class StoredRun:
    """A run as the server stores it."""

    lines: dict[int, str] = field(default_factory=dict)
    """Lines of the history by place."""
    summary: dict[str, Any] = field(default_factory=dict)
    upserts: list[dict[str, Any]] = field(default_factory=list)
    """The variables of each `UpsertBucket`."""
    exit_code: int | None = None
    sent: int = 0
    """Number of rows received, including those that replaced one."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows by place; there is no gap."""
        assert sorted(self.lines) == list(range(len(self.lines)))
        return [json.loads(self.lines[place]) for place in sorted(self.lines)]

    def facts(self) -> dict[str, Any]:
        """The fields of all upserts; later ones override earlier ones."""
        return {key: value for upsert in self.upserts for key, value in upsert.items() if value is not None}


class Server:
    """The server, a context manager."""

    def __init__(self, port: int = 0) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.uploads: dict[str, bytes] = {}
        """PUT contents by path."""
        self.unknown: list[str] = []
        """Queries that it cannot answer."""
        self.fault: int | Literal["stall"] | None = None
        """Fail every request: the HTTP status, or no answer at all."""
        self.fault_after_rows: tuple[int, int | Literal["stall"]] | None = None
        """Number of rows of a run to store before failing, in the middle of a request, and the `fault`."""
        self.refused: set[str] = set()
        """Runs whose rows it rejects with 404."""
        self.last_row_delay_s = 0.0
        """Time before it says which rows a run has."""
        self.knows_beginnings = True
        """Whether its answers show that runs have begun."""
        self._released = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._answer(self)

            def do_POST(self) -> None:
                server._answer(self)

            def do_PUT(self) -> None:
                server._answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *arguments: None  # a client that was killed hangs up
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Server":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._released.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which a client uses it."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def run(self) -> StoredRun:
        """Its only run."""
        (run,) = self.runs.values()
        return run

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = _body(request)
        status, answer = 200, {}
        if self.fault:
            answer = {}
        elif request.command == "PUT":
            self.uploads[request.path] = body
        elif request.headers.get("Authorization") != f"Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}":
            status = 401
        elif request.path.endswith("/file_stream") and request.path.split("/")[-2] in self.refused:
            status = 404
        elif request.path.endswith("/file_stream"):
            self._stream(request.path.split("/")[-2], json.loads(body))
        elif request.path == "/graphql":
            question = json.loads(body)
            answer = {"data": self._data(question["query"], question.get("variables") or {})}
        if self.fault == "stall":
            self._released.wait(300)
            return
        content = json.dumps(answer).encode()
        request.send_response(self.fault or status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _stream(self, name: str, sent: dict[str, Any]) -> None:
        run = self.runs.setdefault(name, StoredRun())
        for file, chunk in (sent.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                for place, line in enumerate(chunk["content"], chunk["offset"]):
                    if self.fault_after_rows and len(run.lines) >= self.fault_after_rows[0]:
                        self.fault = self.fault_after_rows[1]
                        return
                    run.lines[place] = line
                    run.sent += 1
            elif file == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")

    def _data(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "UHJvamVjdA==", "name": given.get("project"), "entity": {"id": "RW50aXR5", "name": "somebody"}}
        if "upsertBucket" in query:
            run = self.runs.setdefault(given["name"], StoredRun())
            run.upserts.append(given)
            bucket = {"id": "UnVu", "name": given["name"], "displayName": given["displayName"], "project": project}
            bucket |= {"description": "", "config": "{}", "sweepName": None, "historyLineCount": len(run.lines)}
            return {"upsertBucket": {"bucket": bucket, "inserted": len(run.upserts) == 1}}
        if "viewer" in query:
            return {"viewer": {"id": "VXNlcg==", "entity": "somebody", "username": "somebody", "flags": "{}"}}
        if "bucket(name: $name, missingOk: true)" in query:
            self._released.wait(self.last_row_delay_s)
            return {"model": project | {"bucket": self._bucket(given["name"])}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "UnVu", "uploadHeaders": [], "files": files}}
        if "serverInfo" in query:
            return {"serverInfo": {"features": []}}
        if "rtifact" in query:
            return self._artifact_data(query, given)
        self.unknown.append(query + json.dumps(given))
        return {}

    def _artifact_data(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "query ArtifactType" in query:  # which type a name belongs to: it is new
            return {"project": {"artifact": None}}
        if "createArtifact(input" in query:
            asked = given["input"]
            same = [a for a in self.artifacts if all(a[k] == asked[k] for k in ("artifactCollectionName", "digest"))]
            if same:
                same[0]["aliases"] = asked["aliases"]
                artifact, state = same[0], "COMMITTED"
            else:
                artifact, state = asked | {"id": f"QXJ0aWZhY3Q6{len(self.artifacts)}"}, "PENDING"
                self.artifacts.append(artifact)
            found = {"id": artifact["id"], "state": state, "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": found}}
        if "createArtifactManifest" in query:
            file = {"uploadUrl": f"{self.url}/manifest/{given.get('artifactID')}", "uploadHeaders": []}
            manifest = {"id": "TWFuaWZlc3Q=", "file": {"id": "RmlsZQ==", "name": "m", "displayName": "m"} | file}
            return {"createArtifactManifest": {"artifactManifest": manifest}}
        if "createArtifactFiles" in query:
            return {"createArtifactFiles": {"files": {"edges": [self._file(spec) for spec in _specs(given)]}}}
        if "query ArtifactByID" in query:
            return {"artifact": _described(next(a for a in self.artifacts if a["id"] == given["id"]))}
        if "commitArtifact" in query:
            return {"commitArtifact": {"artifact": {"id": "", "digest": ""}}}
        self.unknown.append(query + json.dumps(given))
        return {}

    def _file(self, spec: dict[str, Any]) -> dict[str, Any]:
        path = f"/artifact/{spec['artifactID']}/{spec['name']}"
        node = {"id": "RmlsZQ==", "name": spec["name"], "displayName": spec["name"], "artifact": {"id": "QXJ0"}}
        return {"node": node | {"uploadUrl": self.url + path, "uploadHeaders": [], "storagePath": path}}

    def _bucket(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        return {
            "id": "UnVu",
            "name": name,
            "displayName": name,
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.lines),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([run.lines[place] for place in sorted(run.lines)[-1:]]),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "notes": "",
            "wandbConfig": '{"t": 1}' if self.knows_beginnings else "{}",
        }


def _described(artifact: dict[str, Any]) -> dict[str, Any]:
    """A committed artifact with the fields that the client queries (recorded)."""
    project = {"id": "UHJv", "internalId": "1", "name": artifact["projectName"], "entity": {"name": "somebody"}}
    collection = {"__typename": "ArtifactSequence", "name": artifact["artifactCollectionName"], "project": project}
    return {
        "description": None,
        "updatedAt": None,
        "commitHash": None,
        "ttlDurationSeconds": -1,
        "ttlIsInherited": False,
        "__typename": "Artifact",
        "id": artifact["id"],
        "artifactSequence": collection,
        "versionIndex": 0,
        "artifactType": {"name": artifact["artifactTypeName"]},
        "metadata": artifact["metadata"],
        "tags": [],
        "historyStep": artifact["historyStep"],
        "state": "COMMITTED",
        "size": "1",
        "digest": artifact["digest"],
        "fileCount": 2,
        "createdAt": "2026-01-01T00:00:00",
        "aliases": [],
    }


def _specs(given: dict[str, Any]) -> list[dict[str, Any]]:
    return given.get("artifactFiles") or given["input"]["artifactFiles"]


def _body(request: http.server.BaseHTTPRequestHandler) -> bytes:
    body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
    return gzip.decompress(body) if request.headers.get("Content-Encoding") == "gzip" else body
