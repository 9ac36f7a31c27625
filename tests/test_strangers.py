"""An untrusted run directory is listed, reported, sampled and resumed, and nothing in it is executed.

Each attack changes a copy of a real run. Then every command reads it in a child process: under Python's audit hook,
with limited memory, and killed if it hangs. Nothing outside of the run is opened or changed. What cannot be used is a
one-line error and does not affect the other runs.
"""

import contextlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks import Attack, attacks
from support import run_attempt
from watched import TEMPORARY, Watch, in_child

from analysis import load as tables
from analysis import report
from gptlab import cli
from gptlab.commands import dashboard
from gptlab.digests import with_digest
from gptlab.errors import GptlabError
from gptlab.spec import Experiment
from gptlab.tracking.metrics import NewRows
from gptlab.tracking.run import RECORD, Run
from gptlab.training import initial

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_runs(micro, cache, tmp_path_factory) -> Path:
    """A runs directory with the untrusted run, of seed 0, and one of the user's own."""
    runs = tmp_path_factory.mktemp("begun") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(runs))
        patch.setenv("GPTLAB_CACHE", str(cache))
        for seed in (0, 1):
            run = run_attempt(micro, seed).run
            segment = run.directory / "wandb" / "offline-run-20260101_000000-x"
            segment.mkdir(parents=True)
            (segment / "run-x.wandb").touch()
        report.main([])  # the forked children then have every import and every compiled template
        outcome(typed("show", run.id))  # it imports torchinfo and much of torch
        (runs / "report.html").unlink()
        (runs / "report.md").unlink()
    return runs


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder of the user's files."""
    folder = tmp_path / "outside"
    (folder / "folder" / "step-00000001").mkdir(parents=True)
    (folder / "bashrc").write_text("export PATH\n")
    (folder / "folder" / "step-00000001" / "manifest.json").write_text("{}")
    (folder / "folder" / "notes.txt").write_text("precious\n")
    return folder


@pytest.fixture
def runs(two_runs, tmp_path) -> Path:
    shutil.copytree(two_runs, tmp_path / "runs")
    return tmp_path / "runs"


def contents(folder: Path, besides: list[Path]) -> dict[str, bytes | None]:
    """All paths below a folder, files with their bytes, without those in `besides`."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.iterdir()):
        if path in besides:
            continue
        found[str(path)] = path.read_bytes() if path.is_file() and path.stat().st_size < 1e9 else None
        if path.is_dir():
            found |= contents(path, besides)
    return found


def outcome(command: Callable[[], object]) -> tuple[int, str, str]:
    """A command's exit code, stdout and stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command()
        except GptlabError as error:
            code = error.exit_code
            err.write(f"error: {error}\n")
        except OSError as error:  # as `main` does
            code = 1
            err.write(f"error: {error}\n")
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    return code, out.getvalue(), err.getvalue()


def typed(*words: str) -> Callable[[], object]:
    """A command line."""

    def run() -> None:
        logging.getLogger("gptlab").handlers.clear()  # of the command before, which shares this process
        sys.argv = ["gptlab", *words]
        cli.main()

    return run


def mirror(runs: list[Run], notice: object) -> int:
    """Read what the W&B mirror of a run reads, without starting it."""
    for run in runs:
        run.history().starts, run.history().outcome, run.samples(), list(NewRows(run.directory))
    return 0


def meet_all_commands(strangers: dict[str, int], micro: Experiment) -> dict[str, dict[str, tuple[int, str, str]]]:
    """The outcome of each command on each of the untrusted runs, given with their seeds; "" stands for all runs."""
    logging.getLogger().handlers.clear()  # send warnings where they go without pytest
    dashboard.show = mirror
    commands = {"": commands_on_all_runs()}
    commands |= {name: commands_on_one_run(name, seed, micro) for name, seed in strangers.items()}
    return {name: {label: outcome(command) for label, command in some.items()} for name, some in commands.items()}


def commands_on_all_runs() -> dict[str, Callable[[], object]]:
    return {
        "runs": typed("runs"),
        "runs --json": typed("runs", "--json"),
        "report": lambda: report.main([]),
        "weights": tables.checkpoints,
        "headers": tables.headers,
        "windows": tables.windows,
    }


def commands_on_one_run(name: str, seed: int, micro: Experiment) -> dict[str, Callable[[], object]]:
    return {
        "watch": typed("watch", name),
        "watch --json": typed("watch", name, "--json"),
        "show": typed("show", name),
        "show --json": typed("show", name, "--json"),
        "diff": typed("diff", name, name),
        "diff here": typed("diff", name),
        "sample": typed("sample", name, "--tokens", "2"),
        "eval": typed("eval", name, "--json", "--explain", "--passages", "4"),
        "tokens": typed("tokens", name, "--tokens", "9", f"--out={tempfile.gettempdir()}/{name}.html"),
        "batch": typed("batch", f"{name}@3"),
        "export": typed("export", name, f"{tempfile.gettempdir()}/{name}"),
        "verify": typed("verify", name, "--from", "30", "--to", "31"),
        "bundle": typed("bundle", name, "-o", f"{tempfile.gettempdir()}/{name}.tar"),
        "dashboard": typed("dashboard", name),
        "from": lambda: initial.find_initial_weights(f"{name}@40"),
        "resume": typed("resume", name, "--steps", "41", "--wandb", "off"),
        "run": lambda: run_attempt(micro, seed, steps=42),
        "rm": typed("rm", name),
    }


OURS = (".trash", "report.md", "report.html")
"""Names in the runs directory that commands create."""


def companies() -> list[list[Attack]]:
    """The attacks that meet the commands together, in one child process; similar ones are in different companies."""
    found = []
    for listed, count in ((True, 6), (False, 5)):
        some = [attack for attack in attacks() if attack.listed == listed]
        found += [some[first::count] for first in range(count)]
    return found


def copy_as(run: Path, seed: int) -> Path:
    """Copy the run as if it had another seed."""
    content = json.loads((run / RECORD).read_bytes())
    del content["digest"]
    name = content["run"].removesuffix("-s0") + f"-s{seed}"
    content |= {"run": name, "seed": seed, "wandb_id": content["wandb_id"].replace(content["run"], name)}
    shutil.copytree(run, run.parent / name)
    (run.parent / name / RECORD).write_text(json.dumps(with_digest(content)))
    return run.parent / name


@pytest.mark.parametrize("attacks", companies(), ids=lambda some: f"{some[0]} and {len(some) - 1} others")
def test_an_untrusted_run_is_refused_or_used_and_nothing_else_is_touched(
    attacks: list[Attack], runs, outside, micro, tmp_path, monkeypatch
):
    first, own = sorted(runs.iterdir())
    hostile = {first: attacks[0]} | {copy_as(first, seed): attack for seed, attack in enumerate(attacks[1:], 2)}
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    for run, attack in hostile.items():
        attack.make(run, outside)
    recorded = [run for run in hostile if (run / RECORD).exists()]
    before = contents(tmp_path, besides=[*hostile, runs / ".trash"])
    (tmp_path / "result").mkdir()
    cache = Path(os.environ["GPTLAB_CACHE"])
    watch = Watch(
        writable=[*hostile, cache, tmp_path / "scratch", *(runs / name for name in OURS)],
        hostile=[*hostile],
        private=outside,
    )
    seeds = {run.name: int(run.name.rpartition("-s")[2]) for run in hostile}
    said = in_child(lambda: meet_all_commands(seeds, micro), watch, tmp_path / "result" / "said.json")
    for some in said.values():
        for label, (code, _, err) in some.items():
            assert "Traceback" not in err, label
            assert code in {0, 1, 2, 3}, label
            errors = [line for line in err.splitlines() if line.startswith("error: ")]
            has_verdict = label == "verify" and code == 1 and not errors
            assert has_verdict or len(errors) == (code != 0), label
    _, table, warnings = said[""]["runs"]
    listed = [row["run"] for row in json.loads(said[""]["runs --json"][1])]
    assert own.name in listed
    assert own.name in table
    assert len(listed) == 1 + sum(attack.listed for attack in attacks), warnings
    for run, attack in hostile.items():
        assert attack.listed or run not in recorded or str(run) in warnings, attack
        assert (said[run.name]["resume"][0] == 0) == attack.resumes, attack
    after = contents(tmp_path, besides=[*hostile, runs / ".trash"])
    assert {path: content for path, content in after.items() if path in before} == before


PAYLOADS = (
    "sitecustomize.py", "usercustomize.py", "conftest.py", "torch.py", "typer.py", "json.py", "gptlab/__init__.py",
    "gptlab/__main__.py", "analysis/__init__.py", "analysis/report.py", "wandb/__init__.py", "wandb/__main__.py",
    "experiments/__init__.py", "experiments/evil.py", "checkpoints/__init__.py",
)  # fmt: skip


@pytest.fixture
def loaded(runs, tmp_path) -> tuple[Path, Path]:
    """A run full of code, and the file that appears if any of it is executed."""
    hostile, mark = min(runs.iterdir()), tmp_path / "executed"
    for name in PAYLOADS:
        (hostile / name).parent.mkdir(exist_ok=True)
        (hostile / name).write_text(f"open({str(mark)!r}, 'w').close()\n")
    (hostile / "pyproject.toml").write_text("[tool.gptlab]\n")
    (hostile / "wandb" / "settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    pickled = f"cposix\nsystem\n(Vtouch {mark}\ntR.".encode()
    for name in ("model.pt", "optimizer.pkl", "checkpoints/step-00000040/model.pt", "metrics.pkl"):
        (hostile / name).write_bytes(pickled)
    subprocess.run(["git", "init", "--quiet", hostile], check=True)
    with (hostile / ".git" / "config").open("a") as file:
        file.write(f'[core]\n\tfsmonitor = "touch {mark}"\n[diff "x"]\n\tcommand = touch {mark}\n')
    (hostile / ".gitattributes").write_text("* diff=x\n")
    return hostile, mark


COMMANDS = (
    ["runs"], ["list"], ["show", "."], ["sample", ".", "--tokens", "2"], ["eval", "."],
    ["resume", ".", "--steps", "41", "--wandb", "off"],
)  # fmt: skip

TYPED = """
import json, os, sys
from gptlab import cli
from analysis import report
for words in json.loads(sys.argv[1]):
    sys.argv = ["gptlab", *words]
    try:
        cli.main()
    except SystemExit as exit_:
        assert not exit_.code, words
report.main([])
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_commands_inside_an_untrusted_run_execute_none_of_its_code(loaded, tmp_path):
    hostile, mark = loaded
    script, trace = tmp_path / "bin" / "gptlab", tmp_path / "trace"
    script.parent.mkdir()
    script.write_text(TYPED)
    scratch = tmp_path / "scratch"  # libraries probe whether the temporary directory can be written
    scratch.mkdir()
    command = [
        "strace",
        "--seccomp-bpf",
        "-f",
        "-qq",
        "-e",
        "trace=execve,openat,unlinkat,unlink,rename,connect",
        "-o",
        trace,
    ]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    subprocess.run([*command, sys.executable, script, json.dumps(COMMANDS)], cwd=hostile, env=environment, check=True)
    assert not mark.exists()
    calls = trace.read_text(errors="replace")
    started = {Path(path) for path in re.findall(r' execve\("([^"]+)".* = 0$', calls, re.MULTILINE)}
    assert {path.name for path in started} <= {Path(sys.executable).name, "git", "uname"}
    assert not [path for path in started if tmp_path in path.parents]
    written = re.findall(r' openat\([^,]+, "([^"]+)", O_(?:WRONLY|RDWR).* = \d+$', calls, re.MULTILINE)
    places = (hostile, scratch, Path(os.environ["GPTLAB_CACHE"]), *(hostile.parent / name for name in OURS))
    assert len(written) > 10
    for path in map(Path, written):
        path = path.with_name(TEMPORARY.sub(r"\1", path.name))
        assert path == Path("/dev/null") or any(place in (path, *path.parents) for place in places), path


def test_the_dashboard_of_an_untrusted_run_executes_none_of_its_code(loaded, tmp_path):
    hostile, mark = loaded
    script = tmp_path / "gptlab"
    script.write_text("from gptlab import cli\ncli.main()\n")
    command = [sys.executable, script, "dashboard", "."]
    done = subprocess.run(command, cwd=hostile, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "TTY" in done.stderr, "W&B's own program did not begin"
    assert not mark.exists()
