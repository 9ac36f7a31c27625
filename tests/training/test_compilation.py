"""Blocks are compiled one by one, once for all, and only for training."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from gptlab.data import text
from gptlab.data.vocabularies import tokenizer_of
from gptlab.errors import GptlabError
from gptlab.model import gpt
from gptlab.training import plan
from gptlab.training.compilation import compile_blocks, explain_compiler_errors, uncompiled
from gptlab.training.evaluate import evaluate
from gptlab.training.settings import Available, resolve_settings
from gptlab.training.training_data import load_training_data

pytestmark = pytest.mark.slow
SETTINGS = replace(resolve_settings("cpu", "float32", Available.here()), compile=True)


@pytest.fixture
def compile_with(monkeypatch):
    """`compile_with(backend)` lets `torch.compile` use a backend of the test's own."""
    real = torch.compile

    def choose(backend):
        torch._dynamo.reset()
        monkeypatch.setattr(torch, "compile", partial(real, backend=backend))

    yield choose
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "changes", [{}, {"model.dropout": 0.1, "model.position": "experiments.parts.positions:Rotary"}]
)
def test_one_compilation_serves_all_blocks_and_steps_and_evaluation_needs_none(micro, compile_with, changes):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compile_with(counter)
    experiment = micro.with_changes({"model.n_layer": 3, **changes})
    model = gpt.build(experiment.model, seed=0)
    names = list(model.state_dict())
    compile_blocks(model)
    data = load_training_data(experiment, text.locate(experiment.data.text), 0, tokenizer_of(experiment))

    def step(number):
        batch = torch.from_numpy(data.windows.batch(number))
        model.train()
        model(batch[:, :-1], batch[:, 1:]).backward()

    for number in range(2):
        step(number)
    with uncompiled(SETTINGS):
        compiled = evaluate(model, data.val, data.val_starts, sequence_length=16, settings=SETTINGS)
    step(2)
    assert counter.frame_count == 1
    assert list(model.state_dict()) == names
    plain = gpt.with_weights(experiment.model, model.state_dict())
    again = evaluate(plain, data.val, data.val_starts, sequence_length=16, settings=SETTINGS)
    assert (compiled.window_losses == again.window_losses).all()


def test_a_run_with_compiled_blocks_trains_validates_samples_and_resumes(train, micro, compile_with, monkeypatch):
    compiled = []

    def backend(graph, inputs):
        compiled.append(len(inputs))
        return graph.forward

    compile_with(backend)
    real = plan.resolve_settings
    monkeypatch.setattr(plan, "resolve_settings", lambda *arguments: replace(real(*arguments), compile=True))
    train(micro, steps=10)
    run = train(micro, steps=20).run
    assert run.history().status == "complete"
    assert [row["step"] for row in run.samples()] == [10, 20]
    assert len(compiled) == 1  # the second attempt finds the code of the first, and nothing else was compiled
    assert run.history().starts[0]["compile"] is True


def test_an_error_of_the_compiler_is_one_line_with_a_remedy(micro, compile_with):
    def fail(graph, inputs):
        raise ValueError("no kernel")

    compile_with(fail)
    model = gpt.build(micro.model, seed=0)
    compile_blocks(model)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(GptlabError, match="the model cannot be compiled: .*no kernel.*; try --no-compile$"):
        with explain_compiler_errors():
            model(tokens, tokens)


def test_other_errors_are_not_explained():
    with pytest.raises(ZeroDivisionError), explain_compiler_errors():
        raise ZeroDivisionError
