"""What a server says about its rows: only a definite answer lets the mirror send from the first row."""

import http.server
import json
import ssl
import threading
import urllib.request
from email.message import Message

import pytest
from wandb_server import KEY
from wandb_server import Server as LoopbackServer

from gptlab.mirror.server import NoAnswerError, Server


class Fixed:
    """A server that gives every request the same answer."""

    def __init__(self, content: bytes, status: int = 200, delay_s: float = 0) -> None:
        self.requests: list[tuple[str, Message]] = []
        """Path and headers of each request."""
        server, self._over = self, threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.requests.append((self.path, self.headers))
                server._over.wait(delay_s)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *arguments: None  # the client has hung up
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "Fixed":
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._http.shutdown()
        self._http.server_close()


def answer(bucket: object, **further: object) -> bytes:
    return json.dumps({"data": {"model": {"bucket": bucket}}, **further}).encode()


def last_step(server: Fixed, timeout_s: float = 30) -> int:
    return Server(server.url, KEY).last_step("somebody", "gptlab", "run", timeout_s)


ROW = json.dumps([json.dumps({"step": 50, "_step": 50})])


@pytest.mark.parametrize(
    ("bucket", "step"),
    [
        (None, -1),
        ({"historyTail": "[]", "summaryMetrics": '{"step": 9}'}, -1),
        ({"historyTail": ROW, "summaryMetrics": "{}"}, 50),
        ({"historyTail": '["{\\"_step\\": 7}"]'}, 7),
        ({"historyTail": None, "historyLineCount": 0, "summaryMetrics": '{"step": 40}'}, 40),
        ({"historyTail": None, "historyLineCount": 0, "summaryMetrics": None}, -1),
        ({"historyTail": None, "historyLineCount": 0, "summaryMetrics": "{}"}, -1),
    ],
    ids=["no run", "no rows", "a row", "another row", "by the summary", "counted", "counted, empty summary"],
)
def test_a_definite_answer_is_the_last_step(bucket, step):
    with Fixed(answer(bucket)) as server:
        assert last_step(server) == step
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 500),
        (answer(None), 500),
        (answer(None), 401),
        (b"", 200),
        (b"<html>", 200),
        (b"\xff", 200),
        (b"[" * 100_000, 200),
        (b"null", 200),
        (b"[]", 200),
        (b"{}", 200),
        (b'{"data": null}', 200),
        (b'{"data": {"model": null}}', 200),
        (b'{"data": {"model": {}}}', 200),
        (answer(None, errors=[{"message": "try later"}]), 200),
        (answer({}), 200),
        (answer({"historyTail": None}), 200),
        (answer({"historyTail": None, "summaryMetrics": None, "historyLineCount": 3}), 200),
        (answer({"historyTail": "null"}), 200),
        (answer({"historyTail": "[null]"}), 200),
        (answer({"historyTail": '["{}"]'}), 200),
        (answer({"historyTail": '["{\\"step\\": Infinity}"]'}), 200),
        (answer({"historyTail": '["{\\"step\\": null}"]'}), 200),
        (answer({"historyTail": []}), 200),
    ],
    ids=repr,
)
def test_no_answer_is_not_no_rows(content, status):
    with Fixed(content, status) as server, pytest.raises(NoAnswerError, match="does not say which rows it has"):
        last_step(server, 0.05)


def test_a_late_answer_counts_within_the_time_and_no_longer():
    with Fixed(answer({"historyTail": ROW}), delay_s=1.2) as server:
        assert last_step(server) == 50
    with Fixed(answer(None), delay_s=60) as server, pytest.raises(NoAnswerError):
        last_step(server, 0.1)
    with pytest.raises(NoAnswerError):
        Server("http://127.0.0.1:9", KEY).last_step("somebody", "gptlab", "run", 0.05)


def test_a_server_that_recovers_is_asked_again():
    with LoopbackServer() as server:
        server.fault = 503
        threading.Timer(0.2, lambda: setattr(server, "fault", None)).start()
        assert Server(server.url, KEY).last_step("somebody", "gptlab", "run", 30) == -1


def test_queries_use_the_proxy_and_the_headers_of_the_users_settings():
    with Fixed(answer(None)) as proxy:
        through = Server("http://wandb.invalid", KEY, {"http": proxy.url}, {"X-Gateway": "open"})
        assert through.last_step("somebody", "gptlab", "run", 30) == -1
        ((path, headers),) = proxy.requests
        assert path == "http://wandb.invalid/graphql"
        assert headers["X-Gateway"] == "open"
    assert KEY not in repr(through)


def test_the_certificate_is_verified_unless_the_user_says_otherwise():
    for verify, mode in [(True, ssl.CERT_REQUIRED), (False, ssl.CERT_NONE)]:
        opener = Server("https://wandb.invalid", KEY, verify_certificate=verify)._opener()
        (handler,) = [handler for handler in opener.handlers if isinstance(handler, urllib.request.HTTPSHandler)]
        assert handler._context.verify_mode == mode
