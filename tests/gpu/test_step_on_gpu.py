"""A step on a GPU: captured and compiled, against the plain one."""

from dataclasses import replace

import pytest
import torch

from gptlab.checkpoints.manifest import LoopState
from gptlab.model import gpt
from gptlab.training import optimizer
from gptlab.training.capture import CapturedStep, CudaGraphs
from gptlab.training.compilation import compile_blocks
from gptlab.training.evaluate import evaluate
from gptlab.training.settings import Available, resolve_settings
from gptlab.training.state import TrainingState, checkpoint_files
from gptlab.training.step import TrainingStep
from gptlab.training.training_data import load_training_data


def new(experiment, *, compiled=False, captured=False):
    """A new state, and a function that trains on the batch of a step."""
    settings = replace(resolve_settings("cuda", experiment.train.precision, Available.here()), compile=compiled)
    model = gpt.build(experiment.model, seed=0).to("cuda").train()
    update = optimizer.build(model, experiment.train, fused=True, capturable=True)
    state = TrainingState(model, update, loop=LoopState())
    if compiled:
        compile_blocks(model)
    step = TrainingStep(model, update, experiment, seed=0, settings=settings)
    run = CapturedStep(step, batch(experiment, 0), CudaGraphs()) if captured else step
    return state, lambda number: run(batch(experiment, number), number)


def batch(experiment, step):
    generator = torch.Generator().manual_seed(step)
    shape = experiment.train.batch_size, experiment.train.sequence_length + 1
    return torch.randint(0, 50_000, shape, generator=generator).cuda()


def tensors(state):
    files = checkpoint_files(state, resumable=True, copy=True)
    return {f"{file}:{name}": tensor for file, content in files.items() for name, tensor in content.items()}


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.dropout": 0.1},
        {"train.schedule": "cosine", "train.horizon": 20, "train.warmup_steps": 3},
        {"model.feed_forward": "experiments.parts.swiglu:SwiGLU"},
        {"train.precision": "float32", "model.tied": True},
    ],
)
def test_captured_and_uncaptured_steps_have_the_same_bits(small, changes, compiled):
    experiment = small.with_changes(changes)
    plain, step = new(experiment, compiled=compiled)
    graph, replay = new(experiment, compiled=compiled, captured=True)
    results = [(torch.stack(step(n)), torch.stack(replay(n))) for n in range(6)]
    assert all(torch.equal(*pair) for pair in results)
    one, other = tensors(plain), tensors(graph)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_compiled_and_eager_steps_agree_within_rounding(small):
    (_, eager), (_, compiled) = new(small), new(small, compiled=True)
    for one, other in zip(eager(0), compiled(0), strict=True):
        assert other.item() == pytest.approx(one.item(), rel=2**-7)


@pytest.mark.parametrize("captured", [False, True])
def test_a_non_finite_loss_leaves_weights_and_moments_unchanged(small, captured):
    state, step = new(small, captured=captured)
    step(0)
    with torch.no_grad():
        state.model.token_embedding.weight[batch(small, 1)[0, 3]] = torch.inf
    before = tensors(state)
    loss, _ = step(1)
    assert not loss.isfinite()
    after = tensors(state)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_evaluation_is_the_same_with_and_without_capture(small):
    from gptlab.data import text

    settings = resolve_settings("cuda", "auto", Available.here())
    data = load_training_data(small, text.locate(small.data.text), seed=0)
    losses = []
    for captured in (False, True):
        state, _ = new(small, captured=captured)
        found = evaluate(state.model, data.val, data.val_starts, sequence_length=16, settings=settings)
        losses.append(found.window_losses)
    assert (losses[0] == losses[1]).all()


def test_a_learning_rate_is_read_at_each_replay(small):
    experiment = small.with_changes({"train.schedule": "linear", "train.horizon": 4})
    state, replay = new(experiment, captured=True)
    for n in range(4):
        replay(n)
    before = tensors(state)
    replay(4)  # at the horizon the rate is zero
    after = tensors(state)
    weights = [name for name in before if name.startswith("model")]
    assert all(torch.equal(before[name], after[name]) for name in weights)
