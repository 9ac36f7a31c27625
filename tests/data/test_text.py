"""Finding, creating and downloading texts, and the errors."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gptlab import checksums
from gptlab.data import text
from gptlab.data.pandas_docs import pandas_docs
from gptlab.data.text import locate
from gptlab.data.tokens import prepare
from gptlab.errors import BadInputError

BODY = b"Speak, speak.\n" * 4_700  # a little more than one block


def message_of(source: str) -> str:
    with pytest.raises(BadInputError) as caught:
        locate(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- The path of a .txt ---


def test_text_has_the_size_and_hash_of_its_bytes(tmp_path: Path):
    content = b"\xef\xbb\xbfa\r\nb\0\n"
    (tmp_path / "a.txt").write_bytes(content)
    found = locate(str(tmp_path / "a.txt"))
    assert (found.source, found.path) == (str(tmp_path / "a.txt"), tmp_path / "a.txt")
    assert (found.size, found.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_relative_path_is_resolved_here_then_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "analysis").mkdir()
    (tmp_path / "a.txt").write_text("root")
    monkeypatch.chdir(tmp_path / "analysis")
    assert locate("a.txt").path == tmp_path / "a.txt"
    (tmp_path / "analysis" / "a.txt").write_text("here")
    assert locate("a.txt").path == tmp_path / "analysis" / "a.txt"


def test_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("home")
    assert locate("~/a.txt").path == tmp_path / "a.txt"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.txt", ["no file 'nowhere.txt'", "path of a .txt", "pandas-docs", "shakespeare"]),
        ("no/where", ["no file 'no/where'"]),
        ("zzz", ["no file 'zzz'"]),
        ("shakespear", ["no text 'shakespear'", "did you mean 'shakespeare'?"]),
        ("Shakespeare", ["no text 'Shakespeare'", "did you mean 'shakespeare'?"]),
        ("pandas_docs", ["no text 'pandas_docs'", "did you mean 'pandas-docs'?"]),
        ("a\0b", ["no file"]),
        ("folder", ["'folder' is not a regular file", "path of a .txt"]),
        ("fifo", ["'fifo' is not a regular file"]),
        ("empty.txt", ["'empty.txt' is empty"]),
        ("dangling.txt", ["no file 'dangling.txt'"]),
    ],
)
def test_source_that_is_not_a_text_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: list[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "fifo")
    message = message_of(source)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("source", ["a" * 5000, "~nobody-of-that-name/a.txt"])
def test_invalid_path_is_a_one_line_error(source: str):
    assert "no file" in message_of(source)


# --- pandas-docs ---


@dataclass
class Docs:
    content: str
    docstrings: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def docs() -> Docs:
    """The docstrings of the installed pandas, collected once because it takes seconds."""
    docstrings: list[str] = []
    get_docstring = ast.get_docstring

    def collect(node: ast.Module, **options: bool) -> str | None:
        docstring = get_docstring(node, **options)
        if docstring is not None:
            docstrings.append(docstring)
        return docstring

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ast, "get_docstring", collect)
        return Docs(pandas_docs(), docstrings)


@pytest.fixture
def quick(docs: Docs, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Create pandas-docs from `docs` without reading pandas; a list with one entry per creation."""
    times: list[int] = []
    monkeypatch.setattr(text, "pandas_docs", lambda: times.append(1) or docs.content)
    return times


@pytest.mark.slow
def test_pandas_docs_are_the_same_bytes_on_every_machine(docs: Docs):
    content = docs.content.encode()
    assert len(content) == 3_072_229
    assert hashlib.sha256(content).hexdigest() == text.PANDAS_DOCS_SHA256
    assert text.PANDAS_DOCS_SHA256 == "24d7b6578989cb289e5843917ff6daeba241ea1bc9d90391465ea1ace7d062c5"


def test_pandas_docs_are_4186_docstrings_separated_by_blank_lines(docs: Docs):
    assert len(docs.docstrings) == 4_186
    assert docs.content == "\n\n".join(docs.docstrings) + "\n"


def test_pandas_docs_are_created_once(quick: list[int], own_cache: Path):
    first, second = locate("pandas-docs"), locate("pandas-docs")
    assert first == second
    assert (first.source, first.size, first.sha256) == ("pandas-docs", 3_072_229, text.PANDAS_DOCS_SHA256)
    assert len(quick) == 1
    assert files_in(own_cache) == ["pandas-docs-3.1.1.txt"]


@pytest.mark.parametrize("damage", [b"", b"damaged"])
def test_damaged_pandas_docs_in_the_cache_are_replaced(quick: list[int], own_cache: Path, damage: bytes):
    locate("pandas-docs").path.write_bytes(damage)
    assert locate("pandas-docs").sha256 == text.PANDAS_DOCS_SHA256
    assert len(quick) == 2


def test_pinned_pandas_causes_no_warning(quick: list[int], own_cache: Path, caplog: pytest.LogCaptureFixture):
    locate("pandas-docs")
    assert not caplog.records


def test_another_pandas_version_causes_a_warning(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "3.9.9")
    monkeypatch.setattr(text, "pandas_docs", lambda: "Other docstrings.\n")
    for _ in range(2):  # also if the text is in the cache
        caplog.clear()
        found = locate("pandas-docs")
        assert found.path.name == "pandas-docs-3.9.9.txt"
        assert found.sha256 != text.PANDAS_DOCS_SHA256
        assert "pandas-docs of pandas 3.9.9 differs from that of pandas 3.1.1" in caplog.text


def test_modified_pandas_of_the_pinned_version_is_refused(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text, "pandas_docs", lambda: "Modified docstrings.\n")
    message = message_of("pandas-docs")
    assert "was modified" in message
    assert "pip install --force-reinstall" in message
    assert files_in(own_cache) == []


def test_missing_pandas_is_a_one_line_error(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install pandas" in message_of("pandas-docs")

    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert "pip install pandas" in message_of("pandas-docs")


# --- shakespeare ---


@dataclass
class Site:
    """A local HTTP server with one file."""

    url: str = ""
    answer: bytes = b""
    requests: list[str] = field(default_factory=list)

    def serve(self, body: bytes, *, status: str = "200 OK", length: int | None = None) -> None:
        head = f"HTTP/1.0 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
        self.answer = head.encode() + body


@pytest.fixture
def site(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append(self.path)
            self.wfile.write(site.answer)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/input.txt"
    site.serve(BODY)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(text, "SHAKESPEARE_URL", site.url)
    monkeypatch.setattr(text, "SHAKESPEARE_SHA256", hashlib.sha256(BODY).hexdigest())
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def test_shakespeare_is_downloaded_once(site: Site, own_cache: Path):
    first, second = locate("shakespeare"), locate("shakespeare")
    assert first == second
    assert first.path.read_bytes() == BODY
    assert (first.source, first.size) == ("shakespeare", len(BODY))
    assert site.requests == ["/input.txt"]
    assert files_in(own_cache) == ["shakespeare.txt"]


def test_download_progress_does_not_go_to_stdout(site: Site, capsys: pytest.CaptureFixture[str]):
    locate("shakespeare")
    assert capsys.readouterr().out == ""


def test_damaged_shakespeare_in_the_cache_is_downloaded_again(site: Site):
    locate("shakespeare").path.write_bytes(BODY[:-1])
    assert locate("shakespeare").path.read_bytes() == BODY
    assert len(site.requests) == 2


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", BODY + b"\n", b""], ids=["html", "longer", "nothing"])
def test_wrong_download_is_refused_and_leaves_nothing(site: Site, own_cache: Path, body: bytes):
    site.serve(body)
    message = message_of("shakespeare")
    assert f"{site.url} is not the expected text" in message
    assert "--text" in message
    assert files_in(own_cache) == []


def test_interrupted_download_is_refused_and_leaves_nothing(site: Site, own_cache: Path):
    site.serve(BODY[:60_000], length=len(BODY))
    assert "--text" in message_of("shakespeare")
    assert files_in(own_cache) == []
    site.serve(BODY)
    assert locate("shakespeare").size == len(BODY)


def test_http_error_is_a_one_line_error_and_leaves_nothing(site: Site, own_cache: Path):
    site.serve(b"", status="404 Not Found")
    message = message_of("shakespeare")
    assert "could not be downloaded" in message
    assert "404" in message
    assert files_in(own_cache) == []


def test_server_without_http_is_a_one_line_error_and_leaves_nothing(site: Site, own_cache: Path):
    site.answer = b"220 mail.example ready\r\n"
    assert "could not be downloaded" in message_of("shakespeare")
    assert files_in(own_cache) == []


def test_offline_error_says_how_to_pass_a_path(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed_port:
        closed_port.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed_port.getsockname()[1]}/input.txt"
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(text, "SHAKESPEARE_URL", url)
        message = message_of("shakespeare")
    assert f"could not be downloaded from {url}" in message
    assert "--text path/to/shakespeare.txt" in message
    assert files_in(own_cache) == []


def test_shakespeare_in_the_cache_needs_no_network(own_cache: Path, shakespeare_file: Path):
    (own_cache / "texts").mkdir(parents=True)
    (own_cache / "texts" / "shakespeare.txt").write_bytes(shakespeare_file.read_bytes())
    assert locate("shakespeare").size == text.SHAKESPEARE_BYTES == 1_115_394


# --- Remembered hashes ---


def test_a_remembered_hash_that_proves_wrong_is_dropped_so_that_the_next_try_works(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checksums, "MIN_BYTES", 0)
    monkeypatch.setattr(checksums, "MIN_AGE_NS", -1)
    path = tmp_path / "a.txt"
    path.write_bytes(BODY)
    locate(str(path))
    path_of_note = next((own_cache / "checksums").iterdir())
    content = checksums._read(path_of_note)
    assert content is not None
    checksums._write(path_of_note, {**content, "checksum": "0" * 64})  # as if the file changed and kept its times
    stale = locate(str(path))
    assert stale.sha256 == "0" * 64
    with pytest.raises(BadInputError, match="changed while it was read; try again"):
        prepare(stale, 0.1)
    found = locate(str(path))
    assert found.sha256 == hashlib.sha256(BODY).hexdigest()
    assert prepare(found, 0.1).train.size > 0
