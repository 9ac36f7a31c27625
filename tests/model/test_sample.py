"""Sampling: the distribution of tokens, the number of tokens, errors, and no side effects."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from gptlab.data import tokenizer
from gptlab.errors import BadInputError, GptlabError
from gptlab.model.gpt import GPT, build
from gptlab.model.sample import BATCH, samples
from gptlab.spec import ModelSpec

PROMPT = "The cat"  # two tokens


def sample(model: GPT, prompt: str, **options: Any) -> str:
    (text,) = samples(model, prompt, 1, **options)
    return text


def greedy(model: GPT, prompt: str, count: int) -> str:
    """The continuation by the most likely token each time, computed without a cache."""
    tokens = tokenizer.gpt2().encode_ordinary(prompt)
    before = len(tokens)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens]))[0, -1, :50257].argmax()))
    return tokenizer.gpt2().decode(tokens[before:])


def test_sample_is_a_function_of_its_arguments(perturbed: GPT):
    torch.manual_seed(0)
    first = sample(perturbed, PROMPT, trained_length=16, seed=3)
    torch.manual_seed(1)
    assert sample(perturbed, PROMPT, trained_length=16, seed=3) == first
    assert sample(perturbed, PROMPT, trained_length=16, seed=4) != first
    assert sample(perturbed, "A dog", trained_length=16, seed=3) != first


def test_sampling_does_not_advance_torchs_generator(perturbed: GPT):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    sample(perturbed, PROMPT, trained_length=16)
    assert torch.equal(torch.get_rng_state(), state)


def test_temperature_zero_is_greedy(perturbed: GPT):
    expected = greedy(perturbed, PROMPT, 14)
    assert len(set(expected)) > 5, "a model that repeats itself would hide a mistake"
    for seed in (0, 1):
        assert sample(perturbed, PROMPT, trained_length=16, temperature=0, seed=seed) == expected


@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
def test_top_k_of_one_is_greedy(perturbed: GPT, temperature: float):
    drawn = sample(perturbed, PROMPT, trained_length=16, top_k=1, temperature=temperature, seed=7)
    assert drawn == greedy(perturbed, PROMPT, 14)


def model_preferring(token: int, others: list[int]) -> GPT:
    """A model that gives `token` a logit of 4, `others` 3.9 and the rest 0, in every context."""
    model = build(ModelSpec(n_layer=1, n_head=1, n_embd=4, context_length=64), seed=0).eval()
    assert isinstance(model.output, nn.Linear)
    with torch.no_grad():
        model.final_norm.weight.zero_()
        model.final_norm.bias.fill_(1.0)
        model.output.weight.zero_()
        model.output.weight[others] = 3.9 / 4
        model.output.weight[token] = 4.0 / 4
    return model


def drawn_tokens(model: GPT, **options: float) -> set[str]:
    text = "".join(sample(model, PROMPT, trained_length=64, seed=seed, **options) for seed in range(3))  # type: ignore[arg-type]
    return set(text)


def test_top_k_draws_from_the_k_most_likely_tokens():
    a, b, c, d = (tokenizer.gpt2().encode_ordinary(letter)[0] for letter in "abcd")
    model = model_preferring(a, [b, c])
    assert drawn_tokens(model, top_k=3, temperature=1) == set("abc")
    assert drawn_tokens(model_preferring(a, [b, c, d]), top_k=4, temperature=1) == set("abcd")
    assert drawn_tokens(model, top_k=1, temperature=1) == {"a"}
    assert len(drawn_tokens(model, top_k=0, temperature=1)) > 20, "0 draws from all"
    assert len(drawn_tokens(model, top_k=50257, temperature=1)) > 20


def test_low_temperature_is_nearly_greedy():
    a, b = (tokenizer.gpt2().encode_ordinary(letter)[0] for letter in "ab")
    assert drawn_tokens(model_preferring(a, [b]), top_k=2, temperature=0.001) == {"a"}


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 0}, {"top_k": 5}])
def test_tokens_beyond_the_tokenizers_vocabulary_are_never_drawn(options: dict[str, float]):
    model = build(ModelSpec(n_layer=1, n_head=1, n_embd=4, context_length=16, vocab_size=50304), seed=0).eval()
    assert isinstance(model.output, nn.Linear)
    with torch.no_grad():
        model.final_norm.weight.zero_()
        model.final_norm.bias.fill_(1.0)
        model.output.weight[50257:] = 100.0
    assert sample(model, PROMPT, trained_length=16, **options)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"temperature": 1, "top_k": 0}, {"temperature": 2, "top_k": 3}])
def test_token_frequencies_match_their_probabilities(options: dict[str, float]):
    a, b, c = (tokenizer.gpt2().encode_ordinary(letter)[0] for letter in "abc")
    model = model_preferring(a, [b, c])
    assert isinstance(model.output, nn.Linear)
    with torch.no_grad():
        model.output.weight[[a, b, c]] += 2  # logits of 12, 11.9 and 11.9, beside 50,254 of 0
    drawn = Counter("".join(samples(model, PROMPT, 64, trained_length=64, **options)))  # type: ignore[arg-type]
    drawn = Counter({letter: number for letter, number in drawn.items() if letter in "abc"})
    weights = {
        letter: math.exp(logit / options["temperature"]) for letter, logit in {"a": 12, "b": 11.9, "c": 11.9}.items()
    }
    total = 64 * 62
    others = 0 if options["top_k"] else 50254
    for letter, weight in weights.items():
        expected = total * weight / (sum(weights.values()) + others)
        assert drawn[letter] == pytest.approx(expected, abs=5 * math.sqrt(expected)), letter


# --- Several at once ---


def test_first_continuation_equals_the_one_with_a_count_of_one(perturbed: GPT):
    several = samples(perturbed, PROMPT, 3, trained_length=16, seed=3)
    assert several[0] == sample(perturbed, PROMPT, trained_length=16, seed=3)
    assert samples(perturbed, PROMPT, 1, trained_length=16, seed=3) == several[:1]


def test_a_larger_count_returns_the_same_first_continuations(perturbed: GPT):
    more = samples(perturbed, PROMPT, 2 * BATCH + 3, trained_length=12)
    assert len(set(more)) == len(more), "all are different"
    for count in (2, BATCH, BATCH + 1):
        assert samples(perturbed, PROMPT, count, trained_length=12) == more[:count]


def test_longer_continuations_start_with_the_shorter_ones(perturbed: GPT):
    short = samples(perturbed, PROMPT, 3, trained_length=16, max_tokens=5)
    for some, all_ in zip(short, samples(perturbed, PROMPT, 3, trained_length=16), strict=True):
        assert all_.startswith(some)


def test_greedy_continuations_are_all_the_same(perturbed: GPT):
    assert samples(perturbed, PROMPT, 3, trained_length=16, temperature=0) == [greedy(perturbed, PROMPT, 14)] * 3


def test_several_continuations_share_all_forward_passes(perturbed: GPT):
    seen: list[tuple[int, ...]] = []
    hook = perturbed.register_forward_pre_hook(lambda module, arguments: seen.append(tuple(arguments[0].shape)))
    samples(perturbed, PROMPT, 4, trained_length=16, max_tokens=3)
    hook.remove()
    assert seen == [(1, 2), (4, 1), (4, 1)]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("top_k", [0, 5])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_output_is_an_error(perturbed: GPT, temperature: float, top_k: int, bad: float):
    with torch.no_grad():
        perturbed.final_norm.bias[0] = bad
    with pytest.raises(GptlabError, match="not finite"):
        sample(perturbed, PROMPT, trained_length=16, temperature=temperature, top_k=top_k)


# --- Number of tokens ---


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 14), (14, 14), (1, 1), (5, 5)])
def test_max_tokens_are_returned_with_one_position_per_forward_pass(
    perturbed: GPT, max_tokens: int | None, expected: int
):
    seen: list[int] = []
    hook = perturbed.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape[1]))
    text = sample(perturbed, PROMPT, trained_length=16, max_tokens=max_tokens, temperature=0)
    hook.remove()
    assert seen == [2, *[1] * (expected - 1)]
    assert text == greedy(perturbed, PROMPT, expected)


def test_continuation_does_not_include_the_prompt(perturbed: GPT):
    assert not sample(perturbed, PROMPT, trained_length=16).startswith(PROMPT)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ("", {"trained_length": 16}, ["prompt is empty", "at least one"]),
        ("a b c d", {"trained_length": 4}, ["prompt has 4 tokens", "windows of 4", "at most 3"]),
        ("a b c d e", {"trained_length": 4}, ["prompt has 5 tokens", "at most 3"]),
        (
            "a b c d",
            {"trained_length": 16, "max_tokens": 13},
            ["4 prompt tokens", "13 new", "16 positions", "at most 12"],
        ),
    ],
)
def test_invalid_prompts_and_lengths_are_one_line_errors(
    small: GPT, prompt: str, options: dict[str, int], words: list[str]
):
    with pytest.raises(BadInputError) as caught:
        sample(small, prompt, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


# --- Side effects ---


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored(perturbed: GPT, training: bool):
    perturbed.train(training)
    modes: list[bool] = []
    hook = perturbed.register_forward_pre_hook(lambda module, arguments: modes.append(module.training))
    sample(perturbed, PROMPT, trained_length=16)
    hook.remove()
    assert not any(modes), "drawn without dropout"
    assert all(module.training is training for module in perturbed.modules())


@pytest.mark.parametrize("tied", [False, True])
def test_one_text_is_computed_with_weights_by_columns_and_leaves_them_as_they_were(tied: bool):
    model = build(ModelSpec(n_layer=1, n_head=2, n_embd=32, context_length=16, tied=tied), seed=0)
    weights = {name: weight for name, weight in model.named_parameters() if weight.dim() == 2}
    places = {name: weight.data_ptr() for name, weight in weights.items()}
    by_columns: set[str] = set()

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        by_columns.update(name for name, weight in weights.items() if weight.stride(0) == 1)

    model.register_forward_pre_hook(look)
    (one,) = samples(model, PROMPT, 1, trained_length=16)
    output = "token_embedding" if tied else "output"
    layers = ("blocks.0.attention.query_key_value", "blocks.0.feed_forward.expansion", output)
    assert by_columns == {f"{layer}.weight" for layer in layers}
    by_columns.clear()
    assert samples(model, PROMPT, 2, trained_length=16)[0] == one
    assert not by_columns
    weights[f"{output}.weight"].data[:] = math.inf
    with pytest.raises(GptlabError):
        samples(model, PROMPT, 1, trained_length=16)
    assert {name: weight.data_ptr() for name, weight in weights.items()} == places


def test_sampling_records_no_gradients_and_changes_no_weight(perturbed: GPT):
    before = {name: parameter.clone() for name, parameter in perturbed.named_parameters()}
    recorded: list[bool] = []
    hook = perturbed.register_forward_hook(lambda module, arguments, logits: recorded.append(logits.requires_grad))
    sample(perturbed, PROMPT, trained_length=16)
    hook.remove()
    assert not any(recorded)
    assert all(torch.equal(parameter, before[name]) for name, parameter in perturbed.named_parameters())
