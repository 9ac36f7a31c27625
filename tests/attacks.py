"""Attacks that an untrusted run directory may contain. Each one changes a copy of a real run.

`run` is the run's directory; `outside` holds the user's files: `bashrc`, a file, and `folder`, a directory.
"""

import json
import math
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from gptlab.checkpoints.manifest import CHECKPOINTS, MANIFEST, MODEL, OPTIMIZER, compute_digest
from gptlab.identity import hash_of
from gptlab.tracking.history import ATTEMPTS
from gptlab.tracking.run import RECORD, SAMPLES

METRICS, LOG, LOCK, HEARTBEAT = "metrics.jsonl", "log.txt", "lock", "heartbeat"
NEWEST = f"{CHECKPOINTS}/step-00000040"
FILES = (RECORD, ATTEMPTS, METRICS, SAMPLES, LOG, LOCK, HEARTBEAT, f"{NEWEST}/{MANIFEST}", f"{NEWEST}/{MODEL}")
STAGED = (".run.json.tmp", ".samples.jsonl.tmp")
FOLDERS = (CHECKPOINTS, NEWEST, f"{CHECKPOINTS}/.saving", "evaluations", "wandb", "wandb/replaced", "profile")


@dataclass(frozen=True)
class Attack:
    name: str
    make: Callable[[Path, Path], object]
    listed: bool
    """Whether the run is still listed."""
    resumes: bool
    """Whether the run can be resumed."""

    def __str__(self) -> str:
        return self.name


def attacks() -> Iterator[Attack]:
    yield from links()
    yield from special_files()
    yield from sizes()
    yield from json_files()
    yield from rows()
    yield from records()
    yield from checkpoints()


def _away_and_linked(run: Path) -> None:
    real = run.rename(run.parent.parent / "moved")
    run.symlink_to(real)


def _away(path: Path) -> Path:
    """Remove what is at the path, create its folder and return it."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name("away"))
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def links() -> Iterator[Attack]:
    def link(name: str, target: str) -> Callable[[Path, Path], object]:
        return lambda run, outside: _away(run / name).symlink_to(outside / target)

    for name in (*FILES, *STAGED):
        yield Attack(f"a link {name}", link(name, "bashrc"), listed=False, resumes=False)
    for name in FOLDERS:
        yield Attack(f"a link {name}/", link(name, "folder"), listed=False, resumes=False)
    yield Attack("a link as the run", lambda run, _: _away_and_linked(run), listed=False, resumes=False)
    yield Attack("a link to nowhere", link("evaluations", "nothing"), listed=False, resumes=False)
    yield Attack("a link into wandb", link("wandb/offline-run-1-x", "folder"), listed=False, resumes=False)

    def links_without_a_record(run: Path, outside: Path) -> None:
        for name in (METRICS, ".run.json.tmp", HEARTBEAT, LOG, CHECKPOINTS):
            link(name, "bashrc")(run, outside)
        (run / RECORD).unlink()

    yield Attack("links where a run is to be made", links_without_a_record, listed=False, resumes=False)

    def hard_link(name: str) -> Callable[[Path, Path], object]:
        return lambda run, outside: os.link(outside / "bashrc", _away(run / name))

    for name in (METRICS, ATTEMPTS):
        yield Attack(f"a hard link {name}", hard_link(name), listed=False, resumes=False)
    for name in (SAMPLES, LOG, LOCK, HEARTBEAT, *STAGED):
        yield Attack(f"a hard link {name}", hard_link(name), listed=True, resumes=False)


def special_files() -> Iterator[Attack]:
    def pipe(name: str) -> Callable[[Path, Path], object]:
        return lambda run, outside: os.mkfifo(_away(run / name))

    for name in (*FILES, *STAGED):
        yield Attack(f"a pipe {name}", pipe(name), listed=False, resumes=False)

    def bound_socket(run: Path, outside: Path) -> None:
        here = Path.cwd()
        os.chdir(run)  # the path of a socket is limited to about a hundred bytes
        socket.socket(socket.AF_UNIX).bind("socket")
        os.chdir(here)

    yield Attack("a socket", bound_socket, listed=False, resumes=False)

    def folder(name: str) -> Callable[[Path, Path], object]:
        return lambda run, outside: (_away(run / name) / "inner").mkdir(parents=True)

    for name in (RECORD, ATTEMPTS, METRICS, HEARTBEAT):
        yield Attack(f"a folder {name}", folder(name), listed=False, resumes=False)
    for name in (SAMPLES, LOG, LOCK, f"{NEWEST}/{MODEL}"):
        yield Attack(f"a folder {name}", folder(name), listed=True, resumes=name not in {SAMPLES, LOCK})

    def file(name: str) -> Callable[[Path, Path], object]:
        return lambda run, outside: _away(run / name).write_text("a file")

    for name in (CHECKPOINTS, f"{CHECKPOINTS}/.saving", f"{CHECKPOINTS}/.trash", "evaluations", "wandb"):
        yield Attack(f"a file {name}", file(name), listed=True, resumes=name != CHECKPOINTS)

    def deep(run: Path, outside: Path) -> None:
        here = Path.cwd()
        os.chdir(run)
        for _ in range(30):  # longer than the longest path of a system call
            Path("d" * 200).mkdir()
            os.chdir("d" * 200)
        os.chdir(here)

    yield Attack("folders too deep to be named", deep, listed=False, resumes=False)


def sizes() -> Iterator[Attack]:
    def sparse(name: str) -> Callable[[Path, Path], object]:
        return lambda run, outside: os.truncate(run / name, 10 << 30)

    for name in (RECORD, METRICS, ATTEMPTS):
        yield Attack(f"ten GiB of {name}", sparse(name), listed=False, resumes=False)
    for name in (SAMPLES, HEARTBEAT, LOG, f"{NEWEST}/{MANIFEST}", f"{NEWEST}/{MODEL}", f"{NEWEST}/{OPTIMIZER}"):
        yield Attack(f"ten GiB of {name}", sparse(name), listed=True, resumes=name != SAMPLES)

    def believed(run: Path, outside: Path) -> None:
        os.truncate(run / NEWEST / MODEL, 10 << 30)
        _change(run / NEWEST / MANIFEST, lambda manifest: manifest["files"][MODEL].update(bytes=10 << 30))

    yield Attack("ten GiB of weights that the manifest vouches for", believed, listed=True, resumes=True)

    def long_line(run: Path, outside: Path) -> None:
        with (run / METRICS).open("ab") as file:
            file.write(b'{"step": 41, "x": "' + b"x" * (4 << 20) + b'"}\n')

    yield Attack("a line of four MiB", long_line, listed=False, resumes=True)


def json_files() -> Iterator[Attack]:
    odd = {
        "deep lists": b"[" * 100_000 + b"]" * 100_000,
        "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "an endless number": b'{"step": ' + b"9" * 100_000 + b"}",
        "bytes that are no text": b'{"step": "\xff\xfe"}',
        "half a character": b'{"step": 1, "text": "\\ud800", "prompt": ""}',
        "a byte-order mark": b'\xef\xbb\xbf{"step": 1}',
        "NUL": b'{"step": 1}\0',
        "nothing": b"",
        "UTF-16": '{"step": 1}'.encode("utf-16"),
    }

    def line(name: str, content: bytes) -> Callable[[Path, Path], object]:
        def put(run: Path, outside: Path) -> None:
            first = (run / name).read_bytes().splitlines(keepends=True)[0]
            (run / name).write_bytes(first + content + b"\n")

        return put

    for what, content in odd.items():
        yield Attack(f"{what} in {RECORD}", lambda run, _, c=content: (run / RECORD).write_bytes(c), False, False)
    for what in ("deep lists", "an endless number", "nothing"):
        yield Attack(f"{what} in {METRICS}", line(METRICS, odd[what]), listed=False, resumes=True)
    for what in ("half a character", "NUL", "UTF-16"):
        yield Attack(f"{what} in {SAMPLES}", line(SAMPLES, odd[what]), listed=True, resumes=False)


def rows() -> Iterator[Attack]:
    refused = {
        ATTEMPTS: [
            {},
            {"event": "end", "step": 40},
            {"event": "end", "step": 40, "status": "fine"},
            {"event": "end", "step": -1, "status": "complete"},
            {"event": "end", "step": 1e308, "status": "complete"},
            {"event": "end", "step": "many", "status": "complete"},
            {"event": "end", "step": 10**400, "status": "complete"},
            {"event": ["end"], "step": 40, "status": "complete"},
            {"event": "start", "attempt": 2},
            {"event": "start", "steps": [40]},
            {"event": "start", "steps": 40, "tags": "abc"},
            {"event": "start", "steps": 40, "threads": {}},
        ],
        METRICS: [
            {},
            {"train/loss": 1.0},
            {"step": {}},
            {"step": -1},
            {"step": 2**64},
            {"step": 41, "val/loss": [1]},
            {"step": 41, "val/loss": "low"},
            {"step": 41, "val/yardstick": 7},
        ],
    }
    for name, several in refused.items():
        for row in several:  # rows of metrics after the checkpoint are cut off
            yield Attack(f"{name} with {json.dumps(row):.60}", _adding(name, row), False, resumes=name == METRICS)
    for row in ({"step": 40, "prompt": 1, "text": "a"}, {"step": "x", "prompt": "a", "text": "a"}, {"step": 40}):
        yield Attack(f"{SAMPLES} with {json.dumps(row)}", _adding(SAMPLES, row), listed=True, resumes=False)
    taken = [
        {"step": 41, "run": "another", "name": "another", "seed": 7, "directory": "/"},
        {"step": 41, "x": {"y": {"z": [1]}}, "": 1, "index": 1},
        {"step": 41, "val/loss": 1e308, "train/loss": -1e308, "perf/tokens_per_s": "inf", "time": -1e308},
        {"step": 41, "elapsed_s": 1e999, "val/loss": "nan"},
        {"step": 2**63 - 1, "tokens": 2**63 - 1},
    ]
    for row in taken:
        yield Attack(f"{METRICS} with {json.dumps(row):.60}", _adding(METRICS, row), listed=True, resumes=True)
    never_started = {"event": "end", "step": 40, "status": "complete"}
    yield Attack("an end without a start", lambda run, _: _write_lines(run / ATTEMPTS, never_started), True, True)
    yield Attack("a complete run without numbers", lambda run, _: (run / METRICS).unlink(), True, True)


def records() -> Iterator[Attack]:
    def changed(**values: Any) -> Callable[[Path, Path], object]:
        return lambda run, outside: _change(run / RECORD, lambda record: record.update(values))

    for values in (
        {"run": "../../outside/folder"},
        {"run": "another-00000000-s0"},
        {"seed": -1},
        {"seed": 2**200},
        {"seed": 1},
        {"created": "yesterday"},
        {"created": "0001-01-01T00:00:00.000+14:00"},
        {"precision": "float8"},
        {"identity": {"numerics": "x"}},
        {"identity": None},
        {"wandb_id": "somebody-elses-run"},
        {"wandb_id": "../x"},
        {"text": {"path": "/dev/zero"}},
        {"text": {"source": "x", "path": "relative", "bytes": 1, "sha256": "0" * 64}},
        {"text": {"source": "x", "path": "/\0", "bytes": 1, "sha256": "0" * 64}},
        {"spec": {}},
        {"extra": "../x"},
        {"initial_weights": {"run": "x", "step": 0, "path": "/dev/zero", "sha256": "0" * 64}},
    ):
        yield Attack(f"{RECORD} with {json.dumps(values):.60}", changed(**values), listed=False, resumes=False)

    def text(path: str) -> Callable[[Path, Path], object]:
        return lambda run, outside: rewrite_record(run, text={"path": str(_lures(run) / path)})

    for path in ("/dev/zero", "folder", "secret", "pipe", "ten-TiB", "nothing", "n" * 300, "/~x/y"):
        yield Attack(f"a text in {path:.9}", text(path), listed=True, resumes=False)

    def claims(model: dict[str, Any]) -> Callable[[Path, Path], object]:
        return lambda run, outside: rewrite_record(run, model=model)

    large = {"n_layer": 100, "n_embd": 2**20, "n_head": 2}
    yield Attack("a spec far larger than its checkpoints", claims(large), listed=True, resumes=False)

    def prompt(run: Path, outside: Path) -> None:
        _change(run / RECORD, lambda record: record["spec"]["train"].update(prompt=" " * 1_000_000))

    yield Attack("a prompt that no tokenizer bears", prompt, listed=False, resumes=False)
    for model in ({"n_layer": 10**9}, {"n_embd": 2**62}, {"vocab_size": 10**400}):
        yield Attack(f"a spec of {json.dumps(model):.40}", claims(model), listed=False, resumes=False)

    def warm(path: str) -> Callable[[Path, Path], object]:
        def put(run: Path, outside: Path) -> None:
            (run / CHECKPOINTS).rename(run / "away")
            parent = {"run": "x", "step": 0, "path": str(_lures(run) / path), "sha256": "0" * 64}
            rewrite_record(run, initial_weights=parent)

        return put

    def branch(path: str, **claims: Any) -> Callable[[Path, Path], object]:
        def put(run: Path, outside: Path) -> None:
            (run / CHECKPOINTS).rename(run / "away")
            seed, tokenizer = (json.loads((run / RECORD).read_bytes())[key] for key in ("seed", "tokenizer_sha256"))
            facts = {"tokens": 0, "flops": 0, "elapsed_s": 0, "sequence_length": 1, "windows": 0, "text_sha256": "x"}
            parent = {"run": "x", "step": 1, "path": str(_lures(run) / path), "sha256": "0" * 64}
            parent |= {"optimizer_sha256": "0" * 64, "seed": seed, "tokenizer_sha256": tokenizer}
            rewrite_record(run, branch={**parent, **facts, **claims})

        return put

    yield Attack("a branch from a pipe", branch("pipe"), listed=True, resumes=False)
    huge = {"step": 10**8, "windows": 2**47, "sequence_length": 2**20, "tokens": 2**62, "flops": 1e300}
    yield Attack("a branch with huge claims", branch("/dev/zero", **huge), listed=True, resumes=False)

    for path in ("/dev/zero", "folder", "secret", "pipe", "ten-TiB", "nothing"):
        yield Attack(f"initial weights in {path}", warm(path), listed=True, resumes=False)

    def another(run: Path, outside: Path) -> None:
        rewrite_record(run, model={"n_layer": 3})

    yield Attack("another run under this one's name", another, listed=True, resumes=False)

    def unprintable(run: Path, outside: Path) -> None:
        for name in ("\x1b[31mred", "two\nlines", os.fsdecode(b"\xff\xfe")):
            (run.parent / name).mkdir()
            (run.parent / name / RECORD).write_bytes((run / RECORD).read_bytes())

    yield Attack("names that cannot be printed", unprintable, listed=True, resumes=True)


def checkpoints() -> Iterator[Attack]:
    def manifest(**values: Any) -> Callable[[Path, Path], object]:
        return lambda run, outside: _change(run / NEWEST / MANIFEST, lambda document: document.update(values))

    digest = {"bytes": 1, "xxh3_128": "0"}
    for values in (
        {"files": {"../../../outside/bashrc": digest}},
        {"files": {MODEL: digest, "/etc/passwd": digest}},
        {"files": {OPTIMIZER: digest}},
        {"files": {MODEL: {"bytes": -1, "xxh3_128": "0"}, OPTIMIZER: digest}},
        {"step": 30},
        {"step": -40},
        {"step": 10**400},
        {"progress": {"metrics_bytes": -1}},
        {"progress": {"best_step": "best"}},
        {"threads": 1e999},
    ):
        yield Attack(f"{MANIFEST} with {json.dumps(values):.60}", manifest(**values), listed=True, resumes=True)
    for progress in (
        {"elapsed_s": 1e308, "loss_sum": -1e308, "steps_since_row": 2**62, "metrics_bytes": 2**62, "best_step": 2**62},
    ):
        yield Attack(f"progress {json.dumps(progress):.60}", manifest(progress=progress), listed=True, resumes=True)

    def weights(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], object]:
        def put(run: Path, outside: Path) -> None:
            path = run / NEWEST / MODEL
            path.write_bytes(change(path.read_bytes()))
            document = compute_digest(path).model_dump()
            _change(run / NEWEST / MANIFEST, lambda manifest: manifest["files"].update({MODEL: document}))

        return put

    def header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
        def put(content: bytes) -> bytes:
            (length,) = struct.unpack("<Q", content[:8])
            document = json.loads(content[8 : 8 + length])
            change(document)
            encoded = json.dumps(document).encode()
            return struct.pack("<Q", len(encoded)) + encoded + content[8 + length :]

        return put

    embedding, norm = "token_embedding.weight", "final_norm.weight"
    changes = {
        "bfloat16": header(lambda h: h[embedding].update(dtype="BF16", shape=[50257, 16])),
        "float8": header(lambda h: h[embedding].update(dtype="F8_E4M3", shape=[50257, 32])),
        "integers": header(lambda h: h[norm].update(dtype="I32")),
        "booleans": header(lambda h: h[norm].update(dtype="BOOL", shape=[32])),
        "no dimension": header(lambda h: h.update(more={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})),
        "huge shapes": header(lambda h: h[norm].update(shape=[2**62, 2**62])),
        "a name of a MiB": header(lambda h: h.update({"n" * (1 << 19): h.pop(norm)})),
        "no name": header(lambda h: h.update({"": h.pop(norm)})),
        "a layer that is none": header(lambda h: h.update({"blocks.x.y": h.pop(norm)})),
        "a huge header": lambda content: struct.pack("<Q", 2**63) + content[8:],
        "another header": lambda content: content[:8] + b"[" * len(content[8:]),
    }
    for what, change in changes.items():
        yield Attack(f"weights with {what}", weights(change), listed=True, resumes=True)

    def numbers(name: str, value: float, *tensors: str) -> Callable[[Path, Path], object]:
        def put(run: Path, outside: Path) -> None:
            for folder in (run / CHECKPOINTS).iterdir():
                content = load_file(folder / name) if (folder / name).exists() else {}
                changed = {key: np.full_like(tensor, value) for key, tensor in content.items() if key.endswith(tensors)}
                if changed:
                    save_file(content | changed, folder / name)
                    digest = compute_digest(folder / name).model_dump()
                    _change(folder / MANIFEST, lambda manifest, d=digest: manifest["files"].update({name: d}))

        return put

    for value in (math.nan, math.inf, 3e38):
        yield Attack(f"weights that are all {value}", numbers(MODEL, value, "weight"), listed=True, resumes=False)
    yield Attack("steps before the first", numbers(OPTIMIZER, -1, "/step"), listed=True, resumes=False)
    yield Attack("steps that are no number", numbers(OPTIMIZER, math.nan, "/step"), listed=True, resumes=False)
    yield Attack("squares below zero", numbers(OPTIMIZER, -1, "exp_avg_sq"), listed=True, resumes=False)

    def unnumbered(run: Path, outside: Path) -> None:
        for name in ("step-x", "step-", "step-00000050", "step-99999999999999999999"):
            (run / CHECKPOINTS / name).mkdir()
            (run / CHECKPOINTS / name / MANIFEST).write_text("{}")

    yield Attack("checkpoints of no step", unnumbered, listed=True, resumes=True)


def _lures(run: Path) -> Path:
    """A folder beside the runs with what a record may point to: a folder, a file, a pipe and a huge file."""
    folder = run.parent.parent / "lures"
    if folder.exists():
        return folder
    (folder / "folder").mkdir(parents=True)
    (folder / "secret").write_text("secret")
    os.mkfifo(folder / "pipe")
    (folder / "ten-TiB").touch()
    os.truncate(folder / "ten-TiB", 10 << 40)
    return folder


def rewrite_record(run: Path, **changes: Any) -> None:
    """Change the record and make its identity and ids consistent with it."""
    record = json.loads((run / RECORD).read_bytes())
    for key, value in changes.items():
        holder = record["spec"] if key == "model" else record
        holder[key] = {**holder[key], **value} if holder[key] else value
    record["identity"] |= {"model": {**record["identity"]["model"], **changes.get("model", {})}}
    if "model" in changes:
        record["size"] = None  # as in records of earlier versions
    if "initial_weights" in changes:
        record["identity"]["initial_weights_sha256"] = changes["initial_weights"]["sha256"]
    if "branch" in changes:
        keys = {"run": "run", "step": "step", "sha256": "model_sha256", "optimizer_sha256": "optimizer_sha256"}
        record["identity"]["branch"] = {name: changes["branch"][key] for key, name in keys.items()}
    record["run"] = f"{record['spec']['name']}-{hash_of(record['identity'])}-s{record['seed']}"
    record["wandb_id"] = f"{record['run']}-00000000"
    del record["digest"]
    (run / RECORD).write_text(json.dumps(record))


def _change(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a document and remove its digest, as if an earlier version of gptlab had written it."""
    document = json.loads(path.read_bytes())
    del document["digest"]
    content = document.get("content", document)
    change(content)
    path.write_text(json.dumps(content))


def _adding(name: str, row: dict[str, Any]) -> Callable[[Path, Path], object]:
    def add(run: Path, outside: Path) -> None:
        with (run / name).open("a") as file:
            file.write(json.dumps(row) + "\n")

    return add


def _write_lines(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
