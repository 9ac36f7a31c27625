"""Tokens do not depend on the number of processes, and no process is left behind."""

import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Ended, in_child
from support import descendants, eventually

from gptlab.data import encoder_child, parallel, tokenizer, tokens
from gptlab.data.encoder_process import EncoderProcess
from gptlab.data.pieces import pieces
from gptlab.data.text import Text
from gptlab.data.tokens import prepare
from gptlab.data.vocabularies import BYTES, GPT2, Tokenizer, find_tokenizer
from gptlab.failures import exit_code
from gptlab.limits import Processors

TextOf = Callable[[bytes], Text]
TOKENIZER_FILE = Path(__file__).resolve().parents[2] / "experiments" / "tokenizers" / "pandas-docs-4096.json"
CONTENT = "Some wörds in a text, <|endoftext|> and\n\n more. ".encode() * 50


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[EncoderProcess]:
    """The processes that tokenize: two for any text, which is cut into many pieces."""
    found: list[EncoderProcess] = []
    start = EncoderProcess.__init__

    def listed(process: EncoderProcess) -> None:
        start(process)
        found.append(process)

    monkeypatch.setattr(EncoderProcess, "__init__", listed)
    monkeypatch.setattr(parallel, "processors", lambda: Processors(2, None))
    monkeypatch.setattr(parallel, "MIN_BYTES_FOR_PROCESSES", 0)
    monkeypatch.setattr(tokens, "pieces", functools.partial(pieces, longest=100))
    return found


def staged(cache: Path) -> list[Path]:
    return [path for path in (cache / "tokens").iterdir() if path.suffix != ".lock"]


def prepared(text: Text, tokenizer: Tokenizer = GPT2) -> list[list[int]]:
    made = prepare(text, 0.25, tokenizer)
    return [part.tokens[:].tolist() for part in (made.train, made.val)]


@pytest.mark.parametrize("source", ["gpt2", str(TOKENIZER_FILE)], ids=["gpt2", "file"])
def test_processes_and_threads_give_the_same_files(
    started: list[EncoderProcess], text_of: TextOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
):
    files, used = [], []
    encode = EncoderProcess.encode
    monkeypatch.setattr(EncoderProcess, "encode", lambda self, text: used.append(self) or encode(self, text))
    for smallest in (0, 1 << 40):
        monkeypatch.setattr(parallel, "MIN_BYTES_FOR_PROCESSES", smallest)
        monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / f"cache-{smallest}"))
        prepare(text_of(CONTENT), 0.25, find_tokenizer(source))
        files.append({path.name: path.read_bytes() for path in tmp_path.glob(f"cache-{smallest}/tokens/*/*")})
        assert len(started) == 2, "only the first text is long enough for processes"
    assert files[0] == files[1]
    assert files[0].keys() == {"train.u16", "val.u16", "meta.json"}
    assert len(used) > 20, "each piece was encoded by a process"


@pytest.mark.parametrize("reason", ["a short text", "one processor", "bytes"])
def test_no_process_is_started_where_it_gains_nothing(
    started: list[EncoderProcess], text_of: TextOf, own_cache: Path, monkeypatch: pytest.MonkeyPatch, reason: str
):
    if reason == "a short text":
        monkeypatch.setattr(parallel, "MIN_BYTES_FOR_PROCESSES", len(CONTENT) + 1)
    if reason == "one processor":
        monkeypatch.setattr(parallel, "processors", lambda: Processors(1, None))
    prepare(text_of(CONTENT), 0.25, BYTES if reason == "bytes" else GPT2)
    assert not started


PRINT_AND_FAIL = "print('from a child')\nimport sys\nsys.exit('from a child')"


@pytest.mark.parametrize("fault", ["no interpreter", "no memory", "it prints and fails"])
def test_threads_tokenize_where_processes_cannot_be_started(
    started: list[EncoderProcess],
    text_of: TextOf,
    own_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault: str,
):
    child = tmp_path / "child.py"
    child.write_text({"no memory": "raise MemoryError"}.get(fault, PRINT_AND_FAIL))
    monkeypatch.setattr(encoder_child, "__file__", str(child))
    if fault == "no interpreter":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    content = CONTENT.replace(b"<|endoftext|>", b"")  # of which a warning is printed
    train, val = prepared(text_of(content))
    assert train + val == tokenizer.gpt2().encode_ordinary(content.decode())
    assert capfd.readouterr() == ("", "")
    assert len(started) == (0 if fault == "no interpreter" else 2)


@pytest.mark.parametrize(
    ("last_act", "how"),
    [("os.kill(os.getpid(), 9)", "was killed by SIGKILL"), ("raise MemoryError", "failed with exit code 1")],
    ids=["killed", "failed"],
)
def test_a_process_that_dies_is_one_line_and_leaves_nothing(
    started: list[EncoderProcess],
    text_of: TextOf,
    own_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    last_act: str,
    how: str,
):
    code = Path(encoder_child.__file__).read_text()
    before = "        send(memoryview("
    assert code.count(before) == 1
    code = code.replace("import sys", "import os, sys").replace(before, f"        {last_act}\n{before}")
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setattr(encoder_child, "__file__", str(tmp_path / "child.py"))
    text = text_of(CONTENT)

    def work() -> int:
        code = exit_code(lambda: prepared(text) and 0)
        assert not descendants(os.getpid())
        return code

    assert in_child(work, tmp_path) == Ended(1, "", f"error: a process that tokenizes {how}; run the command again\n")
    assert staged(own_cache) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "error: interrupted\n"),
        (signal.SIGTERM, 143, ""),
        (signal.SIGHUP, 129, ""),
        (signal.SIGKILL, -9, ""),
    ],
    ids=["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"],
)
def test_processes_end_with_the_one_that_tokenizes_however_it_ends(
    started: list[EncoderProcess],
    text_of: TextOf,
    own_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
    said: str,
):
    text, children = text_of(CONTENT), dict[int, str]()
    monkeypatch.setattr(tokens, "pieces", lambda *arguments: itertools.repeat("some words " * 1000))

    def stop(process: int) -> None:
        eventually(lambda: any(path.stat().st_size for path in (own_cache / "tokens").glob("*.making/train.u16")))
        children.update(descendants(process))
        os.kill(process, number)

    ended = in_child(lambda: exit_code(lambda: prepared(text) and 0), tmp_path, meanwhile=stop)
    assert ended == Ended(code, "", said)
    assert len(children) == 2
    eventually(lambda: not any(map(runs, children)))
    if number != signal.SIGKILL:  # the next process removes what is left
        assert staged(own_cache) == []


def runs(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ctrl_c_on_a_terminal_is_not_sent_to_processes_that_tokenize(started: list[EncoderProcess]):
    process = EncoderProcess()
    try:
        assert os.getpgid(process._process.pid) != os.getpgid(0)
    finally:
        process.end()
