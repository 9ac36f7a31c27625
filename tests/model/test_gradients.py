"""Gradients of every module agree with finite differences in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gptlab.model import loss
from gptlab.model.gpt import GPT, build
from gptlab.spec import ModelSpec

SPEC = ModelSpec(n_layer=2, n_head=2, n_embd=8, context_length=8)
TOKENS = torch.randint(SPEC.vocab_size, (2, 7), generator=torch.Generator().manual_seed(0))
INPUTS, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]
STEP = 1e-7  # so small that no kink of a ReLU lies between the two values


def random(shape: torch.Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def float64_model(**changes: bool) -> GPT:
    """In float64, with weights so large that attention, norms and biases matter."""
    model = build(SPEC.model_copy(update=changes), seed=0).double()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.add_(random(parameter.shape, seed), alpha=0.3)
    return model


def assert_gradients(function: Callable[[], Tensor], tensors: dict[str, Tensor]) -> None:
    """Compare the gradient of each tensor with a central difference along a random direction."""
    gradients = torch.autograd.grad(function(), list(tensors.values()))
    for seed, ((name, tensor), gradient) in enumerate(zip(tensors.items(), gradients, strict=True)):
        direction, original = random(tensor.shape, seed), tensor.detach().clone()
        values = []
        with torch.no_grad():
            for offset in (STEP, -STEP):
                tensor.copy_(original + offset * direction)
                values.append(function())
            tensor.copy_(original)
        difference = (values[0] - values[1]) / (2 * STEP)
        torch.testing.assert_close(
            (gradient * direction).sum(), difference, rtol=1e-5, atol=1e-7, msg=f"gradient of {name}"
        )


def module_names() -> list[str]:
    model = build(SPEC, seed=0)
    return [name for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)]


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", module_names())
def test_gradients_of_every_module_agree_with_finite_differences(name: str, bias: bool):
    """Each module gets the input that the model gives it."""
    model = float64_model(bias=bias)
    module = model.get_submodule(name)
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    output = model(INPUTS)
    hook.remove()
    x = seen[0].detach().clone()
    if module is not model:
        with torch.no_grad():
            output = module(x)
    tensors = dict(module.named_parameters())
    if x.is_floating_point():
        tensors["input"] = x.requires_grad_()
    weights = random(output.shape, seed=100)
    assert_gradients(lambda: (module(x) * weights).sum(), tensors)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [5, 256])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_the_loss_agree_with_finite_differences(
    bias: bool, tied: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loss, "CHUNK_ON_CPU", chunk)
    model = float64_model(bias=bias, tied=tied)
    assert_gradients(lambda: model(INPUTS, TARGETS), dict(model.named_parameters()))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.Tanh()], ids=repr)
def test_gradients_are_correct_with_another_activation(activation: nn.Module):
    model = float64_model()
    for block in model.blocks:
        block.feed_forward.activation = activation
    assert_gradients(lambda: model(INPUTS, TARGETS), dict(model.named_parameters()))
