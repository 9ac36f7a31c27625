"""Packing runs into a bundle, and opening one that may be damaged or malicious."""

import hashlib
import io
import json
import os
import resource
import shutil
import signal
import tarfile
import tempfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import explained
import pytest
from faults import in_child
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.bundles.collect import collect
from gptlab.bundles.contents import CONTENTS, Contents
from gptlab.bundles.members import end, header, length, padding
from gptlab.bundles.missing import Found, find_needed
from gptlab.bundles.pack import Bundle, write
from gptlab.bundles.runs import UnpackedRun, unpacked_runs
from gptlab.bundles.unpack import unpacked
from gptlab.digests import with_digest
from gptlab.errors import BadInputError, GptlabError
from gptlab.explanation.stored import PREFIX
from gptlab.failures import exit_code
from gptlab.identity import UNKNOWN
from gptlab.tracking.provenance import patch_path
from gptlab.tracking.run import RECORD, Run, load_run

PATCH = b"diff --git a/gptlab/x.py b/gptlab/x.py\n+print('\x1b[2J')\n"
COMMIT = "c" * 40


@pytest.fixture
def run(make_run) -> Run:
    """A run with uncommitted changes, made by somebody in a directory of their own."""
    made = make_run(loss=2.5)
    sha256 = hashlib.sha256(PATCH).hexdigest()
    number = made.start_attempt(steps=10, host="laptop", git_commit=COMMIT, git_dirty=True, diff_sha256=sha256)
    patch_path(made.directory, sha256).write_bytes(PATCH)
    metrics = made.directory / "metrics.jsonl"
    made.end_attempt(number, 10, "complete", metrics_bytes=metrics.stat().st_size)
    made.add_sample(10, "The", "The end")
    text = made.record.text.model_copy(
        update={"source": "/home/somebody/words.txt", "path": "/home/somebody/words.txt"}
    )
    (made.directory / RECORD).write_text(made.record.model_copy(update={"text": text}).to_json())
    for name in ("log.txt", "text.json", "lock", "heartbeat", "wandb/run.wandb", "profile/trace.json", ".x.tmp"):
        (made.directory / name).parent.mkdir(exist_ok=True)
        (made.directory / name).write_text("somebody")
    return load_run(made.directory)


@pytest.fixture
def bundle(run: Run, tmp_path: Path) -> Bundle:
    return pack(tmp_path / "results.tar", run)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary directory of this test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def pack(path: Path, *runs: Run) -> Bundle:
    return write(path, runs, collect(runs, "last", with_text=False), force=False)


def open_bundle(path: Path) -> list[UnpackedRun]:
    with unpacked(path) as found:
        return unpacked_runs(found)


def refusal(path: Path, temporary: Path) -> str:
    """Why a bundle is refused; nothing of it may be left."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(BadInputError) as refused:
        open_bundle(path)
    assert sorted(path.parent.rglob("*")) == before
    assert list(temporary.iterdir()) == []
    message = str(refused.value)
    assert message.isprintable()
    assert len(message) < 600
    return message


def test_a_bundle_holds_what_a_replay_needs_and_nothing_else(run, bundle):
    with tarfile.open(bundle.path) as tar:
        names = tar.getnames()
        assert all(member.isreg() and member.mtime == member.uid == 0 for member in tar)
    patch = f"source-{hashlib.sha256(PATCH).hexdigest()[:8]}.patch"
    expected = ["attempts.jsonl", "metrics.jsonl", "run.json", "samples.jsonl", patch]
    assert names == ["bundle.json", *(f"runs/{run.id}/{name}" for name in expected)]
    assert bundle.sha256 == hashlib.sha256(bundle.path.read_bytes()).hexdigest()
    assert bundle.bytes == bundle.path.stat().st_size


def test_a_bundle_holds_losses_and_their_explanations(run, tmp_path):
    paths = [explained.store(run, explained.explanation())]
    paths.append(paths[0].with_name(paths[0].name.removeprefix(PREFIX)))
    paths[1].write_bytes(b"losses of windows")
    packed = pack(tmp_path / "results.tar", run)
    with tarfile.open(packed.path) as tar:
        for path in paths:
            assert tar.extractfile(f"runs/{run.id}/evaluations/{path.name}").read() == path.read_bytes()
    open_bundle(packed.path)


def test_a_bundle_names_no_directory_of_the_machine(run, bundle):
    assert b"somebody" not in bundle.path.read_bytes()
    (found,) = open_bundle(bundle.path)
    assert found.run.id == run.id
    assert (found.run.record.text.source, found.run.record.text.path) == ("words.txt", "/words.txt")
    assert found.needs.text.name == "words.txt"


def test_equal_runs_give_equal_bytes(run, bundle, tmp_path, make_run):
    other = make_run(seed=1, loss=2.5)
    for path in run.directory.rglob("*"):
        os.utime(path, (0, 10**9))
    os.umask(os.umask(0o077))
    assert pack(tmp_path / "again.tar", run).sha256 == bundle.sha256
    both = pack(tmp_path / "both.tar", run, other)
    assert [found.needs.run for found in open_bundle(both.path)] == [run.id, other.id]


def test_the_bytes_of_headers_never_change():
    """Readers compare headers with their own."""
    short, large = header(f"runs/{'x' * 64}-00000000-s0/run.json", 5), header("texts/x.txt", 9 << 30)
    assert (len(short), len(large)) == (512, 1536)
    long = header(f"runs/{'x' * 64}-00000000-s0/checkpoints/step-00000000/optimizer.safetensors", 5)
    found = hashlib.sha256(short + large + long).hexdigest()
    assert found == GOLDEN_HEADERS
    with tarfile.open(fileobj=io.BytesIO(long + b"12345" + padding(5) + end(len(long) + 512))) as tar:
        assert tar.getnames() == [f"runs/{'x' * 64}-00000000-s0/checkpoints/step-00000000/optimizer.safetensors"]


GOLDEN_HEADERS = "e020f87ee440e57351f4149bf32dec5c11530953632efadaecfcd4d2eec6e2e3"


@settings(max_examples=settings.default.max_examples)
@given(data=st.data())
def test_one_flipped_bit_is_found_wherever_it_is(bundle, temporary, data):
    """Also in the padding of a tar: no byte is without meaning."""
    content = bytearray(bundle.path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = bundle.path.with_name("damaged.tar")
    damaged.write_bytes(content)
    refusal(damaged, temporary)


def test_a_flipped_bit_in_each_kind_of_place_is_found(bundle, temporary):
    content = bundle.path.read_bytes()
    size = len(bundle.contents.to_json())
    places = {0: "not a tar", 300: "not a tar", 512 + 5: "bundle.json", 512 + size: "the bytes after bundle.json"}
    second = 512 + size + len(padding(size))
    places |= {second: "the header of", second + 400: "header", second + 512: "sha256", len(content) - 1: "its end"}
    for place, answer in places.items():
        damaged = bundle.path.with_name("damaged.tar")
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert answer in refusal(damaged, temporary), place


Rebuild = Callable[..., bytes]


def rebuilt(bundle: Bundle, change: Callable[[dict], None] = lambda document: None, *, digest: bool = True) -> bytes:
    """The bundle with another `bundle.json`, and the files as they were."""
    content = bundle.path.read_bytes()
    document = bundle.contents.model_dump(mode="json")
    change(document)
    new = json.dumps(with_digest(document) if digest else document, indent=1).encode() + b"\n"
    old = bundle.contents.to_json()
    start = 512 + len(old) + len(padding(len(old)))
    body = header(CONTENTS, len(new)) + new + padding(len(new)) + content[start : -len(end(start))].rstrip(b"\0")
    body += bytes(-len(body) % 512)
    return body + end(len(body))


def replaced(bundle: Bundle, **changes: object) -> bytes:
    """The bundle with another header of its second member."""
    content, first = bundle.path.read_bytes(), bundle.contents.files[0]
    old = header(first.name, first.bytes)
    info = tarfile.TarInfo(first.name)
    info.size = first.bytes
    for name, value in changes.items():
        setattr(info, name, value)
    new = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    assert content.count(old) == 1
    return content.replace(old, new)


def with_file(**facts: object) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        document["files"] = [{**document["files"][0], **facts}, *document["files"][1:]]

    return change


def more_files(count: int) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        file = document["files"][0]
        document["files"] = [{**file, "name": f"texts/{number:064x}.txt"} for number in range(count)]

    return change


def nested(bundle: Bundle) -> bytes:
    deep = b"[" * 200_000 + b"]" * 200_000
    return header(CONTENTS, len(deep)) + deep + padding(len(deep)) + end(0)


HOSTILE: dict[str, tuple[Callable[[Bundle], bytes], str]] = {
    "nothing": (lambda bundle: b"", "it is truncated"),
    "a picture": (lambda bundle: b"\x89PNG" + bytes(5000), "it is not a tar"),
    "zeros": (lambda bundle: bytes(10240), "it is not a tar"),
    "gzip": (lambda bundle: b"\x1f\x8b\x08" + bytes(5000), "it is compressed with gzip"),
    "xz": (lambda bundle: b"\xfd7zXZ" + bytes(5000), "it is compressed with xz"),
    "another tar": (lambda bundle: header("x", 0) + end(512), "its first file is not bundle.json"),
    "truncated": (lambda bundle: bundle.path.read_bytes()[:-5000], "it is truncated: it has"),
    "in the contents": (lambda bundle: bundle.path.read_bytes()[:700], "it is truncated: it ends at byte 700"),
    "longer": (lambda bundle: bundle.path.read_bytes() + b"more", "4 bytes follow its end"),
    "another at the end": (lambda bundle: bundle.path.read_bytes() * 2, "bytes follow its end"),
    "symbolic link": (lambda b: replaced(b, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "holds a symbolic link"),
    "hard link": (lambda b: replaced(b, type=tarfile.LNKTYPE, linkname="/etc/passwd"), "holds a hard link"),
    "device": (lambda b: replaced(b, type=tarfile.CHRTYPE), "holds a device"),
    "pipe": (lambda b: replaced(b, type=tarfile.FIFOTYPE), "holds a pipe"),
    "folder": (lambda b: replaced(b, type=tarfile.DIRTYPE), "holds a folder"),
    "sparse": (lambda b: replaced(b, type=tarfile.GNUTYPE_SPARSE), "holds a sparse file"),
    "PAX header": (lambda b: replaced(b, type=tarfile.XHDTYPE), "is not as gptlab writes it"),
    "traversal": (lambda b: replaced(b, name="../../x"), "holds '../../x' instead of runs/"),
    "absolute": (lambda b: replaced(b, name="/etc/x"), "holds '/etc/x' instead of runs/"),
    "control": (lambda b: replaced(b, name="\x1b[2J"), "holds '\\x1b[2J' instead of runs/"),
    "right to left": (lambda b: replaced(b, name="\u202egnp"), "holds '\\u202egnp' instead of runs/"),
    "huge": (lambda b: replaced(b, size=1 << 60), "is not as gptlab writes it"),
    "negative": (lambda b: replaced(b, size=-1), "is not as gptlab writes it"),
    "executable": (lambda b: replaced(b, mode=0o4777), "is not as gptlab writes it"),
    "listed traversal": (lambda b: rebuilt(b, with_file(name="runs/../../x")), "files.0.name"),
    "listed absolute": (lambda b: rebuilt(b, with_file(name="/etc/passwd")), "files.0.name"),
    "listed control": (lambda b: rebuilt(b, with_file(name="runs/\x1b[2J")), "files.0.name"),
    "listed pickle": (lambda b: rebuilt(b, with_file(name="runs/micro-00000000-s0/model.pt")), "files.0.name"),
    "listed twice": (lambda b: rebuilt(b, lambda d: d["files"].insert(0, d["files"][0])), "listed twice"),
    "other run": (lambda b: rebuilt(b, with_file(name="runs/a-00000000-s0/run.json")), "belongs to none of its runs"),
    "huge size": (lambda b: rebuilt(b, with_file(bytes=1 << 62)), "it is truncated: it has"),
    "other size": (lambda b: rebuilt(b, with_file(bytes=b.contents.files[0].bytes + 10240)), "it is truncated"),
    "same length": (lambda b: rebuilt(b, with_file(bytes=b.contents.files[0].bytes + 1)), "not as gptlab writes it"),
    "other sha256": (lambda b: rebuilt(b, with_file(sha256="0" * 64)), "its sha256 is not the one in bundle.json"),
    "no record": (lambda b: rebuilt(b, lambda d: d["files"].pop(2)), "has no run.json"),
    "one less": (lambda b: rebuilt(b, lambda d: d["files"].pop()), "bytes follow its end"),
    "no digest": (lambda b: rebuilt(b, digest=False), "its digest does not match"),
    "later version": (lambda b: rebuilt(b, lambda d: d.update(version=2)), "version"),
    "lying facts": (lambda b: rebuilt(b, lambda d: d["runs"][0].update(checkpoints=[7])), "what its records do not"),
    "another text": (lambda b: rebuilt(b, lambda d: d["runs"][0]["text"].update(name="x")), "what its records do not"),
    "one too many": (lambda b: rebuilt(b, more_files(10_001)), "at most 10000"),
    "a million files": (lambda b: header(CONTENTS, 10**8) + bytes(5000), "has 100,000,000 bytes"),
    "nested": (nested, "its digest does not match"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_is_refused_in_one_line(bundle, temporary, name):
    make, answer = HOSTILE[name]
    hostile = bundle.path.with_name("hostile.tar")
    hostile.write_bytes(make(bundle))
    assert answer in refusal(hostile, temporary)


def test_a_key_twice_in_the_contents_is_found(bundle):
    content = bundle.contents.to_json()
    with pytest.raises(ValueError, match="not formatted"):
        Contents.from_json(content.replace(b'{\n "format"', b'{\n "format": "x",\n "format"'))


def test_a_record_with_a_path_of_a_machine_is_no_bundle_of_gptlab(run, tmp_path, temporary, monkeypatch):
    monkeypatch.setattr("gptlab.bundles.collect.without_paths", lambda record: record)
    monkeypatch.setattr("gptlab.bundles.pack.without_paths", lambda record: record)
    assert "run.json is not as gptlab bundles it" in refusal(pack(tmp_path / "paths.tar", run).path, temporary)


def test_code_of_parts_that_is_missing_or_differs_here_is_named(bundle, project):
    """The code itself is never in a bundle; names that lead out of the project are of no file."""
    part = project / "experiments" / "part.py"
    part.write_text("1")
    same = hashlib.sha256(b"1").hexdigest()
    with unpacked(bundle.path) as opened:
        (found,) = unpacked_runs(opened)

        def look(**parts: str) -> Found:
            needs = found.needs.model_copy(
                update={"parts": {name.replace("_", "/"): sha for name, sha in parts.items()}}
            )
            return find_needed(UnpackedRun(found.run, needs), opened, None, None)

        text = look().missing
        assert look(**{"experiments_part.py": same}) == Found(None, text, ())
        assert look(**{"experiments_part.py": UNKNOWN}).notes == ()
        assert "experiments/part.py differs here" in look(**{"experiments_part.py": "0" * 64}).notes[0]
        for name in ("experiments_gone.py", ".._project_experiments_part.py", "_etc_passwd", "nul\0"):
            assert len(look(**{name: same}).missing) == len(text) + 1


def test_a_pipe_is_not_opened(tmp_path, temporary):
    os.mkfifo(tmp_path / "pipe.tar")
    assert "pipe.tar is not a regular file" in refusal(tmp_path / "pipe.tar", temporary)


def test_a_python_without_the_data_filter_is_named(bundle, temporary, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    assert "bundles need Python 3.11.4" in refusal(bundle.path, temporary)


def test_files_that_no_reader_would_unpack_are_not_packed(run, tmp_path, monkeypatch):
    monkeypatch.setattr("gptlab.bundles.pack.MAX_BYTES", 5000)
    with pytest.raises(BadInputError, match="a bundle has at most 5 KiB, not"):
        pack(tmp_path / "large.tar", run)
    with (run.directory / "samples.jsonl").open("r+b") as file:
        file.truncate(10 << 30)
    with pytest.raises(GptlabError, match=r"samples\.jsonl has 10\.0 GiB, and a record has at most 256 MiB"):
        pack(tmp_path / "sparse.tar", run)
    monkeypatch.setattr("gptlab.bundles.pack.MAX_FILES", 3)
    with pytest.raises(BadInputError, match="a bundle holds at most 3 files, not 5"):
        pack(tmp_path / "many.tar", run)


@pytest.mark.parametrize("moment", ["packing", "unpacking", "verifying"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_leave_no_file(run, bundle, temporary, monkeypatch, moment, number):
    def interrupt(*arguments: object) -> None:
        os.kill(os.getpid(), number)

    def work() -> None:
        if moment == "packing":
            pack(temporary / "results.tar", run)
        with unpacked(bundle.path):
            interrupt()

    if moment == "packing":
        monkeypatch.setattr("gptlab.bundles.pack.end", interrupt)
    if moment == "unpacking":
        monkeypatch.setattr(tarfile, "data_filter", interrupt)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as ended:
        work()
    assert getattr(ended.value, "code", 143) == 143
    assert list(temporary.iterdir()) == []


def limited(work: Callable[[], object], size: int) -> Callable[[], int]:
    """The work as the program does it, with a limit on the size of files, as if the disk were full."""

    def do() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return exit_code(lambda: work() and 0)

    return do


def test_a_disk_that_is_full_while_unpacking_leaves_no_file(bundle, temporary, tmp_path):
    ended = in_child(limited(lambda: open_bundle(bundle.path), 500), tmp_path)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert "cannot be written: File too large; free space there, or set TMPDIR" in ended.err
    assert list(temporary.iterdir()) == []


def test_a_disk_that_is_full_while_packing_leaves_the_old_file(run, tmp_path):
    target = tmp_path / "results.tar"
    target.write_text("old")
    sources = collect([run], "last", with_text=False)
    ended = in_child(limited(lambda: write(target, [run], sources, force=True), 3000), tmp_path)
    assert (ended.code, ended.err) == (1, f"error: File too large: {target}\n")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_too_little_space_is_said_before_anything_is_written(run, bundle, temporary, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free=1000))
    assert "KiB free; free some space, or set TMPDIR" in refusal(bundle.path, temporary)
    with pytest.raises(GptlabError, match="the bundle needs .* free; free some space"):
        pack(tmp_path / "other.tar", run)
    assert not (tmp_path / "other.tar").exists()


def test_a_file_that_changes_while_it_is_packed_is_an_error(run, tmp_path, monkeypatch):
    sources = collect([run], "last", with_text=False)
    (metrics,) = (source for source in sources if source.name.endswith("metrics.jsonl"))

    def appears(*arguments: object) -> SimpleNamespace:
        with metrics.origin.open("a") as file:
            file.write("{}\n")
        return SimpleNamespace(free=10**12)

    monkeypatch.setattr(shutil, "disk_usage", appears)
    with pytest.raises(GptlabError, match="metrics.jsonl has changed while it was packed"):
        write(tmp_path / "results.tar", [run], sources, force=False)
    assert not (tmp_path / "results.tar").exists()


def test_a_file_that_appears_meanwhile_is_not_replaced(run, tmp_path, monkeypatch):
    target = tmp_path / "results.tar"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: target.write_text("new") and SimpleNamespace(free=10**12))
    with pytest.raises(GptlabError, match="has appeared"):
        pack(target, run)
    assert target.read_text() == "new"


def test_the_length_of_a_tar_is_known_before_it_is_written(tmp_path):
    sizes: Iterator[int] = iter([0, 1, 511, 512, 513, 9000])
    for size in sizes:
        tar = header("x", size) + bytes(size) + padding(size)
        assert length([("x", size)]) == len(tar + end(len(tar)))
        (tmp_path / "x.tar").write_bytes(tar + end(len(tar)))
        with tarfile.open(tmp_path / "x.tar") as file:
            assert [member.size for member in file] == [size]
