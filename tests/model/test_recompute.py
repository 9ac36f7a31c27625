"""Recomputing saves memory and changes no bit of a gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gptlab.model import gpt
from gptlab.model.recompute import compose_with_recompute
from gptlab.spec import ModelSpec

Function = Callable[[Tensor], Tensor]

INNER: dict[str, Function] = {
    "gelu": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
    "silu": nn.SiLU(),
    "softmax": nn.Softmax(-1),
    "identity": nn.Identity(),
    "random": nn.RReLU(),
    "dropout": nn.Sequential(nn.SiLU(), nn.Dropout(0.5)),
    "transposed": lambda x: x.mT.exp().mT,
}
OUTER: dict[str, Function] = {
    "linear": lambda y: y @ torch.linspace(-1, 1, 24).view(8, 3),
    "normalize": nn.functional.normalize,
    "square": lambda y: y * y,
    "transposed": lambda y: y.mT @ y,
    "slice": lambda y: y[..., 1:].sin(),
}


def gradients(compose: Callable[..., Tensor], outer: Function, inner: Function) -> list[Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(8, 8, requires_grad=True)
    y = compose(outer, inner, torch.randn(3, 5, 8) @ weight)
    (gradient,) = torch.autograd.grad(y, weight, torch.randn(y.shape))
    return [y.detach(), gradient, torch.randn(3)]


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
@pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER)
def test_gradients_are_bitwise_those_of_the_plain_composition(outer: Function, inner: Function):
    """So are the random numbers that are drawn afterwards."""
    recomputed = gradients(compose_with_recompute, outer, inner)
    plain = gradients(lambda outer, inner, x: outer(inner(x)), outer, inner)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(recomputed, plain, strict=True))


def test_feed_forward_recomputes_its_activation_instead_of_storing_it():
    feed_forward = gpt.build(ModelSpec(n_layer=1, n_head=1, n_embd=16), seed=0).blocks[0].feed_forward
    feed_forward.activation = nn.GELU(
        approximate="tanh"
    )  # its backward pass does not need its output; that of ReLU does
    outputs = []
    feed_forward.activation.register_forward_hook(
        lambda module, arguments, output: outputs.append(output.untyped_storage()._weak_ref())
    )
    y = feed_forward(torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True))
    (output,) = outputs
    assert torch.UntypedStorage._expired(output)
    y.sum().backward()
    assert len(outputs) == 2


def test_gradients_of_the_model_are_bitwise_those_without_recomputing(monkeypatch: pytest.MonkeyPatch):
    spec = ModelSpec(n_layer=2, n_head=2, n_embd=16, context_length=16)
    tokens = torch.arange(24).view(2, 12)

    def gradients() -> list[Tensor]:
        model = gpt.build(spec, seed=0)
        model(tokens, tokens).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    recomputed = gradients()
    monkeypatch.setattr(gpt, "compose_with_recompute", lambda outer, inner, x: outer(inner(x)))
    plain = gradients()
    assert len(plain) == 29
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(recomputed, plain, strict=True))


def test_activation_that_modifies_its_input_in_place_is_an_error_instead_of_a_wrong_gradient():
    y = compose_with_recompute(torch.square, nn.SiLU(inplace=True), torch.ones(2, requires_grad=True) * 1)
    with pytest.raises(RuntimeError, match=r"in.?place"):
        y.sum().backward()
