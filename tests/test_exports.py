"""What `import gptlab` offers to notebooks."""

import copy
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import gptlab
from gptlab import project
from gptlab.commands import evaluate, sample
from gptlab.data.vocabularies import BYTES
from gptlab.errors import BadInputError
from gptlab.model import gpt
from gptlab.terminal.console import Console
from gptlab.training.loop import TrainingLoop


def test_every_exported_name_can_be_imported():
    assert set(gptlab.__all__) >= {
        "Experiment",
        "ModelSpec",
        "generate",
        "load",
        "metrics",
        "perplexity",
        "runs",
        "samples",
    }
    for name in gptlab.__all__:
        assert callable(getattr(gptlab, name))


def test_import_is_light_and_an_unknown_name_is_an_error():
    script = "import sys, gptlab; sys.exit(bool({'torch', 'pandas', 'pydantic', 'analysis'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'rnus'"):
        gptlab.rnus  # noqa: B018


def test_a_folder_named_gptlab_such_as_the_clone_does_not_hide_the_package(tmp_path):
    (tmp_path / "gptlab" / "gptlab").mkdir(parents=True)
    script = "import gptlab; print(gptlab.load.__module__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("gptlab\n", "")


def test_runs_and_metrics_are_tables(long_run, monkeypatch):
    monkeypatch.setenv("GPTLAB_RUNS", str(long_run.directory.parent))
    runs = gptlab.runs(name="micro")
    assert runs["run"].tolist() == [long_run.id]
    assert gptlab.metrics(runs)["step"].tolist() == list(range(0, 41, 5))


def test_run_trains_resumes_and_returns_what_was_recorded(micro, monkeypatch, capfd):
    step = TrainingLoop._train_step

    def interrupted(loop: TrainingLoop) -> None:
        step(loop)
        if loop.state.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingLoop, "_train_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="is saved at step 7"):
        gptlab.run(micro, seed=3, steps=10, wandb="off")
    run = gptlab.run(micro, seed=np.int64(3), steps=10, wandb="off", tags=["t"])
    assert "step     10 · train loss" in capfd.readouterr().out, "it shows its progress"
    assert (run.status, run.step, run.id[-3:]) == ("complete", 10, "-s3")
    assert run.metrics()["step"].tolist()[-1] == 10
    assert run.samples()["step"].tolist() == [10]
    assert run.metrics()["val/loss"].iloc[-1] == run.val_loss
    assert gptlab.perplexity(run.load()[0], "the model reads") > 1
    assert gptlab.run(micro, seed=3, settings={"train.steps": 10}, wandb="off") == run, "it is complete"
    with pytest.raises(BadInputError, match="there is no experiment 'no'"):
        gptlab.run("no")
    with pytest.raises(BadInputError, match="learning_rat"):
        gptlab.run(micro, settings={"train.learning_rat": 1.0})


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"experiment": 5}, "experiment"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0, not -1"),
        ({"seed": "1"}, "seed: input should be a valid integer, not '1'"),
        ({"wandb": "maybe"}, "wandb: input should be 'online', 'offline' or 'off', not 'maybe'"),
        ({"tags": [5]}, "tags.0: input should be a valid string, not 5"),
        ({"tags": "first"}, "tags is a string; give a list of them, such as \\['first'\\]"),
        ({"device": None}, "device: input should be a valid string, not None"),
    ],
)
def test_a_wrong_argument_of_run_is_one_line_and_nothing_is_written(micro, arguments, answer):
    """Training wrote a mode that there is not into the run, which could not be read any more."""
    with pytest.raises(BadInputError, match=answer) as raised:
        gptlab.run(**{"experiment": micro, **arguments})
    assert "\n" not in str(raised.value)
    assert not project.runs_directory().exists()


@pytest.fixture
def model(long_run, monkeypatch):
    """What `load` returns first."""
    monkeypatch.setenv("GPTLAB_RUNS", str(long_run.directory.parent))
    return gptlab.load("micro")[0]


@pytest.mark.parametrize("text", ["the model", "the model reads a token " * 20])
def test_perplexity_is_that_of_eval(model, long_run, text):
    console = Console(stderr=True)
    evaluated = evaluate.evaluate_run(long_run, step=None, text=None, device="cpu", console=console, string=text)
    assert gptlab.perplexity(model, text) == evaluated.evaluation.perplexity
    assert gptlab.perplexity(copy.deepcopy(model), text) == evaluated.evaluation.perplexity


def test_generate_is_sample(model, long_run):
    arguments = {"max_tokens": 5, "temperature": 1.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "seed": 3}
    sampled = sample.sample(long_run, None, "one", 1, **arguments)
    assert gptlab.generate(model, "one", **arguments) == sampled.texts[0]
    assert gptlab.generate(model) == sample.sample(
        long_run, None, "The", 1, max_tokens=None, temperature=0.8, top_k=50, seed=0
    ).texts[0]  # fmt: skip


def test_a_model_of_ones_own_needs_its_tokenizer(model):
    own = gpt.build(model.spec, seed=0)
    for function in (gptlab.generate, gptlab.perplexity):
        with pytest.raises(BadInputError, match="the model's tokenizer is unknown: pass tokenizer="):
            function(own, "one two")
        assert function(own, "one two", tokenizer=BYTES)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more, not 0"),
        ({"max_tokens": 99}, "ask for at most 13"),
        ({"temperature": float("nan")}, "temperature must be 0 or more, not nan"),
        ({"top_k": -1}, "top_k must be 0 or more, not -1"),
        ({"top_p": 0}, "top_p must be more than 0 and at most 1, not 0"),
        ({"min_p": 2}, "min_p must be from 0 to 1, not 2"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"seed": 1.5}, r"seed must be a whole number below 2\*\*63, not 1.5"),
        ({"seed": 2**64}, r"seed must be a whole number below 2\*\*63"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number"),
    ],
)
def test_a_wrong_argument_of_generate_is_a_clear_error(model, arguments, answer):
    with pytest.raises(BadInputError, match=answer):
        gptlab.generate(model, **arguments)


def test_a_text_without_a_token_to_predict_has_no_perplexity(model):
    for text, answer in (("", "the text is empty"), ("a", "has only one token"), ("caf\udce9", "is not UTF-8")):
        with pytest.raises(BadInputError, match=answer):
            gptlab.perplexity(model, text)


def test_a_missing_extra_is_a_one_line_error():
    script = "import sys; sys.modules['pyarrow'] = None; import gptlab; gptlab.runs"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ImportError: gptlab.runs needs pyarrow: pip install 'gptlab[analysis]'"
