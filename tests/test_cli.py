"""The commands as a user types them: their output and their errors."""

import errno
import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from gptlab import catalog, cli, load, untrusted
from gptlab.commands.list_runs import summarize
from gptlab.data import text, tokens
from gptlab.data.vocabularies import GPT2
from gptlab.identity import hash_of
from gptlab.spec import parse_settings
from gptlab.terminal.json_output import print_json
from gptlab.tracking.lock import RunLock
from gptlab.tracking.run import find_run
from gptlab.training.fingerprint_cache import fingerprint

ROOT = Path(__file__).parents[1]
MICRO = [
    "--set=model.n_layer=1",
    "--set=model.n_head=2",
    "--set=model.n_embd=8",
    "--set=train.sequence_length=16",
    "--set=train.batch_size=2",
    "--set=data.val_windows=4",
]


@pytest.fixture
def gptlab(monkeypatch, capfd):
    """`gptlab("list", "--json")` → (exit code, stdout, stderr), in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gptlab", *map(str, arguments)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def trained(gptlab, text_file):
    """A run of twelve steps; returns its id."""
    code, out, _ = gptlab("run", "tiny", *MICRO, "--text", text_file, "--steps", 12, "--wandb", "off", "--json")
    assert code == 0
    return json.loads(out)["run"]


@pytest.mark.parametrize("group", [[], ["tokenizer"]])
def test_a_group_of_commands_alone_prints_its_help(gptlab, group):
    assert gptlab(*group) == gptlab(*group, "--help")
    code, out, err = gptlab(*group)
    assert (code, err) == (0, "")
    assert "Commands:" in out


def test_version_is_that_of_the_package(gptlab):
    assert gptlab("--version") == (0, f"gptlab {importlib.metadata.version('gptlab')}\n", "")


def test_list_shows_names_parameters_and_questions(gptlab):
    code, out, err = gptlab("list")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split()[:6] == ["baseline", "163,037,184", "What", "does", "the", "reference"]
    assert out.splitlines()[-1].split()[:4] == ["learning-rate", "21", "runs", "Which"]
    experiments = {e["name"]: e for e in json.loads(gptlab("list", "--json")[1])}
    assert experiments["baseline"]["parameters"] == 163_037_184
    assert experiments["tiny"]["why"].endswith("?")


@pytest.mark.slow
def test_show_prints_the_documented_json(gptlab):
    document = json.loads(gptlab("show", "baseline", "--json")[1])
    assert document["name"] == "baseline"
    assert document["parameters"] == 163_037_184
    assert document["spec"]["train"]["learning_rate"] == 3e-4
    assert document["identity"]["hash"] == hash_of(document["identity"]["content"])
    assert len(document["identity"]["content"]["fingerprint"]) == 64
    assert document["why"]


@pytest.mark.slow
def test_show_prints_the_architecture(gptlab):
    out = " ".join(gptlab("show", "baseline")[1].split())
    assert re.search(r"identity \w{8} · precision \w+ · arithmetic \w{8} ", out)
    for row in (
        "Embedding: 1-1 [-1, 100, 768] 786,432",
        "Embedding: 1-2 [-1, 100, 768] 38,597,376",
        "TransformerDecoderBlock: 2-1 [-1, 100, 768] 7,087,872",
        "TransformerDecoderBlock: 2-12 [-1, 100, 768] 7,087,872",
        "LayerNorm: 1-5 [-1, 100, 768] 1,536",
        "Linear: 1-6 [-1, 100, 50257] 38,597,376",
        "163,037,184 (all trainable)",
        "621.94 MiB",
        "forward FLOPs per token 250,750,464",
    ):
        assert row in out


def test_text_that_looks_like_markup_is_displayed_literally(gptlab, text_file):
    settings = [*MICRO, "--set", "train.prompt=x[/INST] \x1b[31m"]
    code, _, _ = gptlab("run", "tiny", *settings, "--text", text_file, "--steps", 1, "--wandb", "off")
    assert code == 0
    code, out, _ = gptlab("show", "tiny-")
    assert code == 0
    assert "x[/INST] �[31m" in out


def test_json_output_has_null_for_non_finite_numbers(capfd):
    print_json({"a": [float("nan"), {"b": float("inf")}], "c": 1.5})
    assert json.loads(capfd.readouterr().out, parse_constant=pytest.fail) == {"a": [None, {"b": None}], "c": 1.5}


def test_show_describes_a_run_from_its_own_record(gptlab, trained):
    document = json.loads(gptlab("show", trained, "--json")[1])
    assert document["run"] == trained
    assert document["spec"]["model"]["n_layer"] == 1
    assert document["identity"]["hash"] == trained.split("-")[1]


def test_run_ends_with_one_json_document(gptlab, text_file):
    code, out, err = gptlab("run", "tiny", *MICRO, "--text", text_file, "--steps", 3, "--wandb", "off", "--json")
    document = json.loads(out)
    assert code == 0
    assert list(document) == [
        "run", "directory", "status", "step", "train_loss", "val_loss", "val_bpb", "tokens_per_s",
    ]  # fmt: skip
    assert (document["status"], document["step"]) == ("complete", 3)
    assert Path(document["directory"]).name == document["run"]
    assert 10 < document["val_loss"] < 11.5
    assert document["tokens_per_s"] > 0
    assert "is complete: 3 steps" in err


def test_run_prints_the_setup_first_and_the_results_last(gptlab, text_file):
    code, out, err = gptlab("run", "tiny", *MICRO, "--text", text_file, "--steps", 3, "--wandb", "off")
    assert (code, err) == (0, "")
    opening, closing = out.split("is complete")
    for fact in (
        "tiny-",
        "1 layer ·",
        "parameters",
        "training and",
        "validation tokens",
        "cpu · 1 thread · float32",
        "W&B",
    ):
        assert fact in opening
    for fact in ("train loss", "val loss", "bits/byte", "checkpoint", "sample", "extend", "dashboard", "make report"):
        assert fact in closing
    assert "compare     make notebook" in closing


def test_runs_lists_all_runs(gptlab, trained):
    assert json.loads(gptlab("runs", "--json")[1]) == [summarize(find_run(trained)).facts]
    (row,) = json.loads(gptlab("runs", "--json")[1])
    assert list(row) == [
        "run", "name", "seed", "status", "step", "steps", "val_loss", "directory", "val_bpb", "created", "elapsed_s",
        "tags", "varied", "disk_bytes", "verified", "removable_bytes",
    ]  # fmt: skip
    assert (row["status"], row["step"], row["steps"]) == ("complete", 12, 12)
    assert trained in gptlab("runs")[1]


def test_an_empty_list_of_runs_says_how_to_start_one(gptlab):
    assert gptlab("runs") == (0, "no runs yet; start one with: make exp NAME=tiny\n", "")
    assert gptlab("runs", "--json")[1].strip() == "[]"


def test_resume_extends_a_run(gptlab, trained):
    code, out, _ = gptlab("resume", trained, "--steps", 15, "--wandb", "off", "--json")
    assert code == 0
    assert (json.loads(out)["status"], json.loads(out)["step"]) == ("complete", 15)


def test_sample_continues_the_prompt_and_is_reproducible(gptlab, trained):
    first = gptlab("sample", trained, "--prompt", "one", "--seed", 3, "--tokens", 5)
    assert first[0] == 0
    assert first[1].startswith("one")
    assert gptlab("sample", trained, "--prompt", "one", "--seed", 3, "--tokens", 5) == first
    document = json.loads(gptlab("sample", trained, "--prompt", "one", "--json")[1])
    assert document["prompt"] == "one"
    assert len(document["texts"]) == 1


def test_sampled_continuations_do_not_depend_on_their_count(gptlab, trained):
    options = ["sample", trained, "--prompt", "one", "--tokens", 5]
    few, many = (json.loads(gptlab(*options, "--json", "--count", count)[1])["texts"] for count in (2, 4))
    assert len(set(many)) == 4
    assert many[:2] == few
    code, out, err = gptlab(*options, "--count", 2)
    assert (code, err) == (0, "")
    assert out == f"— 1 of 2 —\none{few[0]}\n\n— 2 of 2 —\none{few[1]}\n"


def test_prompts_come_from_files(gptlab, trained, tmp_path):
    for name, prompt in (("one.txt", "one\n"), ("two.txt", "the model\n\n")):
        (tmp_path / name).write_text(prompt)
    options = ["--seed", 3, "--tokens", 5, "--top-p", 0.9, "--min-p", 0.01]
    files = ["--prompt-file", tmp_path / "one.txt", "--prompt-file", tmp_path / "two.txt"]
    one, two = (gptlab("sample", trained, "--prompt", prompt, *options)[1] for prompt in ("one", "the model\n"))
    assert gptlab("sample", trained, *files[:2], *options) == (0, one, "")
    assert gptlab("sample", trained, *files, *options) == (0, f"— 1 of 2 —\n{one}\n— 2 of 2 —\n{two}", "")
    documents = json.loads(gptlab("sample", trained, *files, *options, "--json")[1])
    assert [document["prompt"] for document in documents] == ["one", "the model\n"]
    assert one == f"one{documents[0]['texts'][0]}\n"
    assert json.loads(gptlab("sample", trained, *files[:2], *options, "--json")[1]) == documents[0]


def test_a_terminal_shows_one_text_while_it_is_drawn(gptlab, trained, monkeypatch):
    options = ["sample", trained, "--prompt", "one", "--tokens", 5]
    piped, both = gptlab(*options), gptlab(*options, "--count", 2)
    flushed = []
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.flush", lambda: flushed.append(True))
    assert gptlab(*options) == piped
    assert len(flushed) >= 5
    assert gptlab(*options, "--count", 2) == both
    assert json.loads(gptlab(*options, "--json")[1])["prompt"] == "one"


def test_eval_uses_the_full_validation_split_and_stores_the_window_losses(gptlab, trained):
    code, out, _ = gptlab("eval", trained, "--json")
    document = json.loads(out)
    assert code == 0
    assert {"loss", "loss_se", "bpb", "perplexity", "tokens", "bytes"} <= document.keys()
    assert document["tokens"] == 30 * 16
    (kept,) = (find_run(trained).directory / "evaluations").iterdir()
    from safetensors import safe_open
    from safetensors.numpy import load_file

    with safe_open(kept, "numpy") as file:
        assert list(file.metadata()) == ["gptlab"]
        assert json.loads(file.metadata()["gptlab"]).keys() == {"xxh3_128"}
    losses = load_file(kept)["loss"]
    assert losses.mean() == document["loss"]
    assert document["perplexity"] == pytest.approx(2.718281828459045 ** document["loss"])


def test_eval_on_another_text_has_another_yardstick(gptlab, trained, text_file):
    own = json.loads(gptlab("eval", trained, "--json")[1])
    other = json.loads(gptlab("eval", trained, "--text", text_file, "--json")[1])
    assert other["tokens"] > 8 * own["tokens"]
    assert other["yardstick"] != own["yardstick"]
    assert "bits/byte" in gptlab("eval", trained, "--text", text_file)[1]


def test_eval_scores_a_short_text_as_one_window_and_stores_no_string(gptlab, trained, tmp_path):
    (tmp_path / "short.txt").write_text("the model reads a token")
    run = find_run(trained)
    string = json.loads(gptlab("eval", trained, "--string", "the model reads a token", "--json")[1])
    assert not (run.directory / "evaluations").exists()
    file = json.loads(gptlab("eval", trained, "--text", tmp_path / "short.txt", "--json")[1])
    assert string == file  # also the yardstick
    assert (string["tokens"], string["bytes"], string["loss_se"]) == (4, len(" model reads a token"), None)
    assert (run.directory / "evaluations" / f"step-00000012-{file['yardstick']}.safetensors").exists()
    model, tokenizer = load(trained)
    tokens = torch.tensor([tokenizer.encode("the model reads a token")])
    assert string["loss"] == pytest.approx(model(tokens[:, :-1], tokens[:, 1:]).item(), abs=1e-6)


def test_eval_says_how_many_tokens_it_scored(gptlab, trained):
    code, out, _ = gptlab("eval", trained, "--string", "the model")
    assert code == 0
    assert "1 window · 1 token · 6 bytes" in out
    assert "±" not in out
    assert "not stored; put it into a file" in out
    out = gptlab("eval", trained, "--string", "the model " * 20)[1]  # 40 tokens and a space, windows of 16
    assert "2 windows · 32 tokens" in out
    assert re.search(r"the last \d tokens of the text are not evaluated", out)


def test_rm_moves_a_run_to_the_trash(gptlab, trained):
    code, out, _ = gptlab("rm", trained)
    assert code == 0
    assert "/.trash/" in out
    assert gptlab("runs", "--json")[1].strip() == "[]"


def test_no_arguments_print_help(gptlab):
    _, out, err = gptlab()
    assert "Usage" in out + err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"x", "needs 128"),
        (b"a few words only", "needs 128"),
        (b"good \xff bad " * 500, "is not UTF-8: byte 0xff at offset 5"),
    ],
)
def test_an_unusable_text_is_a_one_line_error(gptlab, tmp_path, content, message):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    code, out, err = gptlab("run", "tiny", "--wandb=off", "--text", path)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_an_unwritable_runs_directory_is_a_one_line_error(gptlab, text_file, monkeypatch):
    monkeypatch.setenv("GPTLAB_RUNS", "/proc/nowhere")
    code, out, err = gptlab("run", "tiny", *MICRO, "--text", text_file, "--wandb", "off")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "/proc/nowhere" in err
    assert err.count("\n") == 1


def test_a_diverged_run_exits_with_3_and_is_not_retried(gptlab, text_file):
    arguments = ["run", "tiny", *MICRO, "--text", text_file, "--wandb", "off", "--set", "train.learning_rate=1e30"]
    code, _, err = gptlab(*arguments)
    assert code == 3
    assert err.startswith("error: tiny-")
    assert "diverged: after step" in err
    assert err.count("\n") == 1
    (run,) = json.loads(gptlab("runs", "--json")[1])
    assert run["status"] == "diverged"
    assert find_run(run["run"]).history().attempts[-1]["diverged"]["window_starts"]
    code, _, err = gptlab(*arguments)
    assert code == 3
    assert "would diverge again" in err


def test_a_second_command_on_a_running_run_fails_at_once_and_names_the_holder(gptlab, trained):
    with RunLock(find_run(trained).directory):
        code, out, err = gptlab("resume", trained, "--steps", 20, "--wandb", "off")
        assert json.loads(gptlab("runs", "--json")[1])[0]["status"] == "running"
        assert gptlab("rm", trained)[0] == 1
    assert (code, out) == (1, "")
    assert f"by process {os.getpid()} on {socket.gethostname()} since 20" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list"], ["list", "--json"]])
def test_help_and_list_start_without_the_heavy_packages(arguments):
    script = (
        "import sys; sys.argv = ['gptlab', *sys.argv[1:]]\n"
        "from gptlab import cli\n"
        "try: cli.main()\n"
        "except SystemExit as exit_: assert not exit_.code\n"
        "loaded = {'torch', 'wandb', 'pandas', 'tiktoken', 'rich'} & sys.modules.keys()\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
def test_training_starts_and_resumes_without_unneeded_packages(text_file):
    """torch.compile takes a second to import, tiktoken's vocabulary half a second."""
    script = (
        "import gc, sys; sys.argv = ['gptlab', *sys.argv[1:]]\n"
        "from gptlab import cli\n"
        "from gptlab.training.step import TrainingStep\n"
        "original, steps = TrainingStep.__call__, []\n"
        "def step(self, *arguments, **options):\n"
        "    result = original(self, *arguments, **options)\n"
        "    loaded = {'torch._dynamo', 'tiktoken', 'wandb', 'pandas', 'torchinfo'} & sys.modules.keys()\n"
        "    assert steps or not loaded, loaded\n"
        "    assert gc.isenabled()\n"
        "    steps.append(arguments[1])\n"
        "    return result\n"
        "TrainingStep.__call__ = step\n"
        "try: cli.main()\n"
        "except SystemExit as exit_: assert not exit_.code\n"
        "assert len(steps) == 2\n"
    )
    run = [sys.executable, "-c", script, "run", "tiny", *MICRO, "--text", str(text_file), "--wandb", "off", "--steps"]
    tokens.prepare(text.locate(str(text_file)), 0.1)  # so that the runs below need no tokenizer
    settings = parse_settings([setting.removeprefix("--set=") for setting in MICRO if setting.startswith("--set=")])
    experiment = catalog.find("tiny").with_changes({**settings, "data.text": str(text_file)})
    fingerprint(experiment, GPT2)  # once per edit of the code; its small training needs the tokenizer
    for steps in ("2", "4"):
        done = subprocess.run([*run, steps], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_specs_tracking_and_data_start_without_torch():
    script = (
        "import sys, gptlab, gptlab.spec, gptlab.catalog, gptlab.tracking.run, gptlab.mirror.sync\n"
        "import gptlab.tracking.provenance, gptlab.data.tokens, gptlab.data.windows, gptlab.data.text\n"
        "loaded = {'torch', 'wandb', 'pandas'} & sys.modules.keys()\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_every_command_and_option_has_help_that_fits_a_screen(gptlab):
    group = typer.main.get_command(cli.app)
    assert set(group.commands) == {
        "list",
        "show",
        "plan",
        "check",
        "run",
        "decide",
        "sweep",
        "resume",
        "report",
        "runs",
        "watch",
        "sample",
        "eval",
        "tokens",
        "batch",
        "export",
        "bundle",
        "diff",
        "verify",
        "sync",
        "text",
        "tokenizer",
        "dashboard",
        "rm",
        "gc",
    }
    for name, command in group.commands.items():
        assert command.help
        assert all(parameter.help for parameter in command.params), name
        code, out, _ = gptlab(name, "--help")
        assert code == 0
        assert len(out.splitlines()) < 50


def test_debug_shows_the_traceback_behind_a_one_line_error(gptlab, monkeypatch):
    monkeypatch.setenv("GPTLAB_DEBUG", "1")
    code, _, err = gptlab("show", "nothing")
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("error: there is no experiment or run 'nothing'")
    monkeypatch.setenv("GPTLAB_DEBUG", "0")
    assert gptlab("show", "nothing")[2].count("\n") == 1


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, True), (errno.EROFS, True), (errno.EACCES, True), (errno.ENOENT, False)]
)
def test_only_errors_that_the_environment_causes_become_one_line(gptlab, monkeypatch, number, expected):
    def fail():
        raise OSError(number, os.strerror(number), "somewhere")

    monkeypatch.setattr("gptlab.commands.list_experiments.list_experiments", fail)
    if expected:
        assert gptlab("list") == (1, "", f"error: {os.strerror(number)}: somewhere\n")
    else:  # a bug
        with pytest.raises(OSError, match="somewhere"):
            gptlab("list")


def test_each_file_of_a_run_is_parsed_once_to_list_it(trained, monkeypatch):
    opened, open_regular = [], untrusted.open_regular
    monkeypatch.setattr(untrusted, "open_regular", lambda path: opened.append(path.name) or open_regular(path))
    summarize(find_run(trained))
    assert sorted(name for name in opened if name.endswith(".jsonl")) == ["attempts.jsonl", "metrics.jsonl"]
