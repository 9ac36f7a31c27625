"""The forward pass agrees with the equations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gptlab.model.gpt import GPT, KeyValueCache, build, empty
from gptlab.spec import ModelSpec

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def perturb(model: GPT) -> GPT:
    """Add noise to the weights, so large that attention, norms and biases matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


def reference_logits(weights: dict[str, Tensor], spec: ModelSpec, tokens: Tensor) -> Tensor:
    """GPT-2's logits in elementary operations; shapes as in the model."""
    (B, T), heads = tokens.shape, spec.n_head

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(()))

    def norm(x: Tensor, name: str) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights.get(f"{name}.bias", torch.zeros(()))

    def attention(x: Tensor, name: str) -> Tensor:
        parts = linear(x, f"{name}.query_key_value").split(spec.n_embd, dim=-1)
        query, key, value = (part.reshape(B, T, heads, -1).transpose(1, 2) for part in parts)
        scores = query @ key.mT / math.sqrt(spec.n_embd / heads)  # (B, heads, T, T)
        future = torch.ones(T, T).triu(1).bool()
        mixed = scores.masked_fill(future, -math.inf).exp()
        mixed = mixed / mixed.sum(-1, keepdim=True)
        return linear((mixed @ value).transpose(1, 2).reshape(B, T, -1), f"{name}.projection")

    def feed_forward(x: Tensor, name: str) -> Tensor:
        x = linear(x, f"{name}.expansion")
        gelu = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return linear(gelu, f"{name}.projection")

    x = weights["token_embedding.weight"][tokens] + weights["position_embedding.weight"][:T]
    for layer in range(spec.n_layer):
        block = f"blocks.{layer}"
        x = x + attention(norm(x, f"{block}.attention_norm"), f"{block}.attention")
        x = x + feed_forward(norm(x, f"{block}.feed_forward_norm"), f"{block}.feed_forward")
    return norm(x, "final_norm") @ weights.get("output.weight", weights["token_embedding.weight"]).T


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_logits_agree_with_the_equations(small_spec: ModelSpec, tokens: Tensor, bias: bool, tied: bool):
    spec = small_spec.model_copy(update={"bias": bias, "tied": tied})
    model = perturb(build(spec, seed=0).eval())
    expected = reference_logits(model.state_dict(), spec, tokens)
    torch.testing.assert_close(model(tokens), expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.5, "weights so small would hide a mistake"


@pytest.mark.parametrize("length", [1, 2, 9])
@torch.no_grad()
def test_attention_equals_an_explicit_softmax_over_the_past(small_spec: ModelSpec, length: int):
    generator = torch.Generator().manual_seed(2)
    attention = perturb(build(small_spec, seed=0)).blocks[0].attention.eval()
    x = torch.randn((3, length, 32), generator=generator)
    query, key, value = attention.query_key_value(3 * x).view(3, length, 3, 4, 8).unbind(2)
    expected = torch.zeros(3, length, 4, 8)
    for position in range(length):
        scores = torch.einsum("bhd,bthd->bht", query[:, position], key[:, : position + 1]) / math.sqrt(8)
        expected[:, position] = torch.einsum("bht,bthd->bhd", scores.softmax(-1), value[:, : position + 1])
    expected = attention.projection(expected.reshape(3, length, 32))
    torch.testing.assert_close(attention(3 * x), expected, **CLOSE)


@torch.no_grad()
def test_later_tokens_leave_earlier_logits_unchanged(perturbed: GPT, tokens: Tensor):
    logits = perturbed(tokens)
    for position in (1, 5, 16):
        changed = tokens.clone()
        changed[:, position:] = (changed[:, position:] + 1) % 50257
        assert torch.equal(perturbed(changed)[:, :position], logits[:, :position])
        assert not torch.allclose(perturbed(changed)[:, position], logits[:, position])


@torch.no_grad()
def test_windows_of_a_batch_are_independent(perturbed: GPT, tokens: Tensor):
    torch.testing.assert_close(perturbed(tokens)[1:], perturbed(tokens[1:]), **CLOSE)


@torch.no_grad()
def test_order_of_the_past_matters(perturbed: GPT, tokens: Tensor):
    swapped = tokens[:, [1, 0, *range(2, 17)]]
    assert not torch.allclose(perturbed(swapped)[:, -1], perturbed(tokens)[:, -1])


# --- The loss ---


@torch.no_grad()
def test_loss_before_training_is_that_of_a_uniform_guess(tokens: Tensor):
    model = build(ModelSpec(n_layer=3, n_head=4, n_embd=64, context_length=16), seed=0).eval()
    assert model(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(math.log(50257), abs=0.1)


@torch.no_grad()
def test_loss_is_the_mean_negative_log_probability_in_nats(perturbed: GPT, tokens: Tensor):
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    logits = perturbed(inputs)
    each = perturbed(inputs, targets, reduction="none")
    assert logits.shape == (2, 16, 50257)
    assert each.shape == (2, 16)
    expected = -logits.double().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(each.double(), expected, **CLOSE)
    mean = perturbed(inputs, targets)
    assert mean.shape == ()
    torch.testing.assert_close(mean, each.mean(), **CLOSE)


@torch.no_grad()
def test_loss_of_a_bfloat16_model_is_float32(tokens: Tensor, small_spec: ModelSpec):
    model = build(small_spec, seed=0).to(torch.bfloat16).eval()
    assert model(tokens).dtype == torch.bfloat16
    assert model(tokens[:, :-1], tokens[:, 1:]).dtype == torch.float32


def test_sequence_is_at_most_as_long_as_the_context(small: GPT):
    assert small(torch.zeros((1, 24), dtype=torch.long)).shape == (1, 24, 50257)
    with pytest.raises(IndexError):
        small(torch.zeros((1, 25), dtype=torch.long))


# --- Gradients and dropout ---


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gradient_flows_to_every_parameter(small_spec: ModelSpec, tokens: Tensor, tied: bool, bias: bool):
    model = build(small_spec.model_copy(update={"tied": tied, "bias": bias}), seed=0)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_dropout_drops_only_while_training(small_spec: ModelSpec, tokens: Tensor):
    model = build(small_spec.model_copy(update={"dropout": 0.5}), seed=0)
    without = build(small_spec, seed=0).eval()
    model.eval()
    assert torch.equal(model(tokens), without(tokens))
    model.train()
    torch.manual_seed(0)
    first = model(tokens)
    assert not torch.allclose(first, model(tokens))
    torch.manual_seed(0)
    assert torch.equal(model(tokens), first)


@torch.no_grad()
def test_dropout_drops_embeddings_attention_weights_and_both_sublayers(tokens: Tensor):
    """With nearly everything dropped, only the residual stream is left."""
    spec = ModelSpec(n_layer=1, n_head=2, n_embd=8, context_length=24, dropout=0.999_999)
    model = build(spec, seed=0)
    torch.manual_seed(0)
    (block,), x = model.blocks, torch.randn(1, 8, 8)
    assert torch.equal(block.train()(x), x)
    block.attention.eval()  # its dropout would drop everything
    assert torch.equal(block(x), x)
    assert not torch.equal(block.eval()(x), x)
    assert not block.attention.train()(x).any(), "its biases are zero"
    assert block.attention.eval()(x).any()
    seen: list[Tensor] = []
    block.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    model.train()(tokens)
    assert not seen[0].any()


@torch.no_grad()
def test_model_without_dropout_needs_no_evaluation_mode(small_spec: ModelSpec, tokens: Tensor):
    model = build(small_spec, seed=0)
    assert torch.equal(model.train()(tokens), model.eval()(tokens))


# --- The cache ---


@given(st.data())
@settings(max_examples=settings.default.max_examples // 4)
@torch.no_grad()
def test_logits_with_a_cache_equal_those_of_the_whole_sequence(data: st.DataObject):
    batch, heads = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 4]))
    shape = {"tied": data.draw(st.booleans()), "bias": data.draw(st.booleans())}
    spec = ModelSpec(n_layer=2, n_head=heads, n_embd=16, context_length=24, **shape)
    model = perturb(build(spec, seed=data.draw(st.integers(0, 2**32))).eval())
    tokens = torch.randint(50257, (batch, 20), generator=torch.Generator().manual_seed(1))
    prompt, shared = data.draw(st.integers(1, 19)), data.draw(st.booleans())
    if shared:  # one prompt, continued in every row
        tokens[:, :prompt] = tokens[:1, :prompt]
    cache = KeyValueCache(spec, batch, data.draw(st.integers(20, 40)))
    whole = model(tokens)
    first = model(tokens[:1, :prompt] if shared else tokens[:, :prompt], cache=cache)
    assert first.shape == (1 if shared else batch, 1, 50257)
    torch.testing.assert_close(first.expand(batch, -1, -1), whole[:, prompt - 1 : prompt], rtol=1e-4, atol=1e-4)
    for position in range(prompt, 20):
        assert cache.length == position
        logits = model(tokens[:, position : position + 1], cache=cache)
        torch.testing.assert_close(logits, whole[:, position : position + 1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cache_is_allocated_once_and_rejects_positions_beyond_its_capacity(perturbed: GPT, tokens: Tensor):
    cache = KeyValueCache(perturbed.spec, 2, 5)
    perturbed(tokens[:, :4], cache=cache)
    places = [cache.extend(layer, *torch.zeros(2, 2, 4, 1, 8))[0].data_ptr() for layer in range(2)]
    perturbed(tokens[:, 4:5], cache=cache)
    cache.length = 0
    assert [cache.extend(layer, *torch.zeros(2, 2, 4, 1, 8))[0].data_ptr() for layer in range(2)] == places
    cache.length = 5
    with pytest.raises(RuntimeError):
        perturbed(tokens[:, 5:6], cache=cache)
    assert cache.length == 5, "a failed forward pass adds nothing"


# --- Names and tensors ---

# Checkpoints use these names.
NAMES = [
    "position_embedding.weight",
    "token_embedding.weight",
    "blocks.0.attention_norm.weight",
    "blocks.0.attention_norm.bias",
    "blocks.0.attention.query_key_value.weight",
    "blocks.0.attention.query_key_value.bias",
    "blocks.0.attention.projection.weight",
    "blocks.0.attention.projection.bias",
    "blocks.0.feed_forward_norm.weight",
    "blocks.0.feed_forward_norm.bias",
    "blocks.0.feed_forward.expansion.weight",
    "blocks.0.feed_forward.expansion.bias",
    "blocks.0.feed_forward.projection.weight",
    "blocks.0.feed_forward.projection.bias",
    "final_norm.weight",
    "final_norm.bias",
    "output.weight",
]


def names(**shape: bool) -> list[str]:
    with torch.device("meta"):
        model = GPT(ModelSpec(n_layer=1, n_head=2, n_embd=8, context_length=16, **shape))
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()], "there are no buffers"
    return list(model.state_dict())


def test_golden_names():
    assert names() == NAMES


def test_model_without_biases_has_none():
    assert names(bias=False) == [name for name in NAMES if not name.endswith(".bias")]


def test_tied_model_has_no_output_matrix():
    assert names(tied=True) == NAMES[:-1]


@pytest.mark.parametrize("tied", [False, True])
def test_no_two_tensors_of_the_state_share_memory(small_spec: ModelSpec, tied: bool):
    state = empty(small_spec.model_copy(update={"tied": tied})).state_dict()
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)


def test_model_is_on_the_cpu_in_float32_and_trainable(small_spec: ModelSpec):
    for model in (build(small_spec, seed=0), empty(small_spec)):
        assert model.training
        for parameter in model.parameters():
            assert (parameter.device.type, parameter.dtype, parameter.requires_grad) == ("cpu", torch.float32, True)


@torch.no_grad()
def test_tied_model_reads_its_output_from_the_token_embedding(small_spec: ModelSpec, tokens: Tensor):
    model = build(small_spec.model_copy(update={"tied": True}), seed=0).eval()
    hidden: list[Tensor] = []
    model.final_norm.register_forward_hook(lambda module, arguments, output: hidden.append(output))
    logits = model(tokens)
    torch.testing.assert_close(logits, F.linear(hidden[0], model.token_embedding.weight))


def test_tied_embedding_gets_a_gradient_as_output_layer(small_spec: ModelSpec, tokens: Tensor):
    model = build(small_spec.model_copy(update={"tied": True}), seed=0)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    assert model.token_embedding.weight.grad is not None
    unread = torch.ones(50257).bool()
    unread[tokens.flatten()] = False
    assert model.token_embedding.weight.grad[unread].any(dim=1).all(), "the softmax is over all tokens"
