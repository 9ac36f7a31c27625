"""Scores of single tokens are those of the model, each with at least half a window of context."""

import numpy as np
import pytest
import torch

from gptlab.data.tokens import Split
from gptlab.data.vocabularies import BYTES
from gptlab.errors import GptlabError
from gptlab.model.gpt import GPT, build
from gptlab.spec import ModelSpec
from gptlab.training import token_scores
from gptlab.training.settings import Available, resolve_settings
from gptlab.training.token_scores import TokenScores, score_tokens, window_starts

SETTINGS = resolve_settings("cpu", "float32", Available(cuda=False, mps=False, bfloat16=False))


@pytest.fixture(scope="module")
def model() -> GPT:
    return build(ModelSpec(n_layer=1, n_head=2, n_embd=8, context_length=16, vocab_size=256), seed=0).eval()


@pytest.fixture(scope="module")
def text() -> Split:
    tokens = np.random.default_rng(0).integers(0, 256, 70).astype(np.uint16)
    return Split(tokens, 70, "")


def score(model: GPT, text: Split, first: int, count: int, length: int = 8) -> TokenScores:
    return score_tokens(model, text, first, count, sequence_length=length, settings=SETTINGS)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 9, 69])
def test_each_token_has_half_a_window_of_context_or_everything_before_it(length):
    positions = np.arange(1, 70)
    starts = window_starts(positions, 70, length)
    context = positions - starts
    assert (starts >= 0).all()
    assert (starts + length < 70).all(), "the last window ends with the text"
    assert (context <= length).all()
    assert (context >= np.minimum(positions, max(length - max(length // 2, 1) + 1, 1))).all()
    assert (starts[:length] == 0).all(), "a text of one window is scored as evaluation does"


def test_scores_are_those_of_the_model_with_the_context_that_they_name(model, text, monkeypatch):
    monkeypatch.setattr(token_scores, "LOGITS", 8 * 256 * 2)  # two windows at once
    found = score(model, text, 0, 70)
    assert np.isnan(found.losses[0])
    assert found.context[0] == 0
    for position in range(1, 70):
        context = text.tokens[position - found.context[position] : position].astype(np.int64)
        with torch.no_grad():
            expected = torch.softmax(model(torch.from_numpy(context)[None])[0, -1].double(), 0)
        token = int(text.tokens[position])
        assert found.losses[position] == pytest.approx(-float(expected[token].log()), abs=1e-5)
        assert found.ranks[position] == 1 + int((expected > expected[token]).sum())
        assert found.alternatives[position].tolist() == expected.topk(5).indices.tolist()
        assert found.probabilities[position] == pytest.approx(expected.topk(5).values.numpy(), abs=1e-6)


def test_a_token_has_the_same_scores_on_every_page(model, text):
    whole, part = score(model, text, 0, 70), score(model, text, 37, 20)
    assert part.context.tolist() == whole.context[37:57].tolist()
    assert part.losses == pytest.approx(whole.losses[37:57], abs=1e-6)
    assert part.alternatives.tolist() == whole.alternatives[37:57].tolist()


def test_embeddings_beyond_the_tokenizers_vocabulary_have_no_rank(text):
    """Such as the 50,304 of a GPT-2 that was padded: they name no text, and `gptlab sample` never draws them."""
    padded = build(ModelSpec(n_layer=1, n_head=2, n_embd=8, context_length=16, vocab_size=300), seed=0).eval()
    assert padded.output is not None
    torch.nn.init.constant_(padded.final_norm.bias, 1)
    torch.nn.init.constant_(padded.output.weight[256:], 5)
    found = score(padded, Split(text.tokens, 70, "", BYTES), 0, 70)
    assert found.alternatives.max() < 256
    assert found.ranks.max() <= 256
    assert np.nanmin(found.losses) > 10, "the loss is that of eval: nearly all probability is elsewhere"


def test_output_that_is_not_finite_is_an_error(text):
    broken = build(ModelSpec(n_layer=1, n_head=2, n_embd=8, context_length=16, vocab_size=256), seed=0).eval()
    torch.nn.init.constant_(broken.final_norm.weight, torch.nan)
    with pytest.raises(GptlabError, match="not finite"):
        score(broken, text, 0, 10)
