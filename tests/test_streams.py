"""Every command with standard streams that are closed, full, without a reader, or in another encoding.

The commands run in forked children of this process, which has imported everything and trained a run.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Ended, in_child
from support import run_attempt

from analysis import report
from gptlab import cli
from gptlab.model.summary import layers
from gptlab.terminal.json_output import print_json
from gptlab.terminal.output import prepare_standard_streams
from gptlab.terminal.text import printable

pytestmark = pytest.mark.slow

ESCAPES = "\x1b[31m\x9b2J\u202e\u2066\u200b\u3164"
"""Colors, a cleared screen, text from right to left and invisible characters."""


@pytest.fixture(scope="module")
def prepared(micro, cache, tmp_path_factory) -> Path:
    """A runs directory with a run, and a run in the trash."""
    runs = tmp_path_factory.mktemp("prepared") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(runs))
        patch.setenv("GPTLAB_CACHE", str(cache))
        run_attempt(micro.with_changes({"train.prompt": "größer"}), steps=10)
        run_attempt(micro, seed=1, steps=1).run.move_to_trash()
        report.main([])  # so that the children have every import, and the next line as well
        layers(micro.model, 1)
    return runs


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> str:
    shutil.copytree(prepared, tmp_path / "runs")
    return next(path.name for path in (tmp_path / "runs").iterdir() if path.name.startswith("micro"))


COMMANDS = {
    "list": "list",
    "runs": "runs",
    "show": "show {run}",
    "plan": "plan baseline --gpus 8",
    "check": "check relu",
    "diff": "diff {run}",
    "sample": "sample {run} --tokens 2",
    "eval": "eval {run}",
    "batch": "batch {run}@3",
    "tokens": "tokens {run} --tokens 9",
    "export": "export {run} {folder}/export",
    "bundle": "bundle {run} -o {folder}/results.tar",
    "verify": "verify {run}",
    "sync": "sync",
    "rm": "rm {run}",
    "gc": "gc --yes",
    "text": "text {folder}/runs/{run}/log.txt --out {folder}/joined.txt --force",
    "report": "report",
    "watch": "watch {run}",
    "runs --json": "runs --json",
    "watch --json": "watch {run} --json",
    "resume --json": "resume {run} --steps 11 --wandb off --json",
}
"""Each command, and those whose result is more than what they print, which fails if it cannot be printed."""


def test_every_command_is_tried():
    own = {"run", "resume", "sweep", "decide", "dashboard"}  # they print otherwise; see test_signals.py
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert {words.split()[0] for words in COMMANDS.values()} | own == names


@pytest.fixture(params=COMMANDS)
def command(request, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    words = COMMANDS[request.param].format(run=run, folder=tmp_path).split()
    monkeypatch.setattr(sys, "argv", ["gptlab", *words])
    if words == ["report"]:
        monkeypatch.setenv("GPTLAB_RUNS", "no-runs")  # a report of runs takes a second
        monkeypatch.chdir(tmp_path)
    return cli.main


def test_a_full_disk_for_the_output_is_one_line(command, tmp_path):
    full = os.open("/dev/full", os.O_WRONLY)
    end = in_child(command, tmp_path, stdout=full)
    assert end.code == 1
    lines = [line for line in end.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    assert "Traceback" not in end.err


def test_a_reader_that_has_gone_needs_no_message(command, tmp_path):
    """As in `gptlab runs | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    end = in_child(command, tmp_path, stdout=writer)
    assert end.code == 1
    assert "error" not in end.err
    assert "Traceback" not in end.err


def test_standard_streams_that_are_closed_at_the_start_are_no_error(command, tmp_path):
    def work() -> object:
        for descriptor in range(3):
            os.close(descriptor)
        sys.stdin = sys.stdout = sys.stderr = None
        return command()

    assert in_child(work, tmp_path) == Ended(0, "", "")


def test_characters_that_cannot_be_encoded_are_replaced(command, tmp_path):
    """As with `LC_ALL=C` or `PYTHONIOENCODING=ascii`."""
    end = in_child(command, tmp_path, encoding="ascii")
    assert end.code == 0
    assert end.out.isascii()
    if "--json" in sys.argv:
        json.loads(end.out)


def test_a_file_is_never_opened_as_a_standard_stream(tmp_path):
    """Else a warning of a library ends up in it."""

    def work() -> int:
        for descriptor in range(3):
            os.close(descriptor)
        prepare_standard_streams()
        with (tmp_path / "metrics.jsonl").open("w"):
            os.write(2, b"warning: a C library\n")
            sys.stderr.write("warning\n")
        return len((tmp_path / "metrics.jsonl").read_text())

    assert in_child(work, tmp_path).code == 0


@pytest.mark.parametrize("words", ["runs", "runs --json", "eval {run}", "report"])
def test_control_codes_in_the_name_of_a_file_do_not_reach_the_terminal(run, tmp_path, monkeypatch, words):
    (tmp_path / "runs" / run / f"evil{ESCAPES}\n").symlink_to("/")
    monkeypatch.setattr(sys, "argv", ["gptlab", *words.format(run=run).split()])
    end = in_child(cli.main if words != "report" else lambda: report.main([]), tmp_path)
    assert "evil�[31m�2J����" in end.err
    for text in (end.out, end.err):
        assert text.replace("\n", "") == printable(text.replace("\n", ""))
    assert end.err.count("\n") == 1


def test_control_codes_in_a_path_do_not_reach_the_terminal(run, tmp_path, monkeypatch):
    runs = tmp_path / f"mine{ESCAPES}"
    (tmp_path / "runs").rename(runs)
    monkeypatch.setenv("GPTLAB_RUNS", str(runs))
    for words in ("runs --json", f"rm {run}", "rm nothing", "gc --yes"):
        monkeypatch.setattr(sys, "argv", ["gptlab", *words.split()])
        end = in_child(cli.main, tmp_path)
        text = end.out + end.err
        assert text.replace("\n", "") == printable(text.replace("\n", "")), words


def test_json_escapes_what_could_control_the_terminal(capsys):
    document = {"größer": f"東京 {ESCAPES} \udcff \x7f"}
    print_json(document)
    out = capsys.readouterr().out
    assert json.loads(out) == document
    assert out.count("\n") == 3
    assert out.replace("\n", "").isprintable()
    assert "größer" in out
    assert "東京" in out
