"""Top-p, min-p and streaming: the definitions of the papers, and the same text with and without."""

import hashlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptlab.data.vocabularies import BYTES
from gptlab.errors import BadInputError
from gptlab.model.gpt import GPT, build
from gptlab.model.sample import _TextPieces, _truncate, samples
from gptlab.spec import ModelSpec

GOLDEN = "66947c55c2f53660"
"""Of the texts below, before there were `top_p` and `min_p`."""
OPTIONS: list[dict[str, Any]] = [{}, {"top_k": 0, "temperature": 1.0}, {"top_k": 3, "temperature": 1.5}]


@pytest.fixture(scope="module")
def model() -> GPT:
    """A model of bytes with a wide distribution, whose tokens often end inside a character."""
    model = build(ModelSpec(n_layer=1, n_head=2, n_embd=16, context_length=48, vocab_size=256), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


def texts(model: GPT, count: int = 3, **options: Any) -> list[str]:
    return samples(model, "The", count, trained_length=48, tokenizer=BYTES, seed=1, **options)


def test_texts_are_those_of_earlier_versions(model: GPT):
    found = [text for options in OPTIONS for text in texts(model, **options)]
    assert hashlib.sha256(repr(found).encode()).hexdigest()[:16] == GOLDEN
    assert found[:3] == texts(model, top_p=1, min_p=0)


def nucleus(probabilities: list[float], top_p: float) -> set[int]:
    """The smallest set of most likely tokens with at least this probability (Holtzman et al. 2020, equation 2)."""
    kept, total = set[int](), 0.0
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        if total >= top_p:
            break
        kept.add(token)
        total += probabilities[token]
    return kept


def likely(probabilities: list[float], min_p: float) -> set[int]:
    """The tokens with at least `min_p` of the largest probability (Nguyen et al. 2024, equations 1 and 2)."""
    return {token for token, value in enumerate(probabilities) if value >= min_p * max(probabilities)}


weights = st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any)
fractions = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1))


@given(rows=st.lists(weights, min_size=1, max_size=3), top_p=fractions.filter(bool), min_p=fractions)
def test_the_tokens_that_are_kept_are_those_of_the_definitions(rows: list[list[int]], top_p: float, min_p: float):
    for row in rows:
        probabilities = torch.tensor([row], dtype=torch.float64) / sum(row)
        values = probabilities[0].tolist()
        kept = _truncate(probabilities, top_p, min_p)[0]
        expected = (nucleus(values, top_p) if top_p < 1 else set(range(len(row)))) & likely(values, min_p)
        assert set(kept.nonzero()[:, 0].tolist()) == {token for token in expected if row[token]}
        assert all(kept[token] == values[token] for token in expected), "ratios between tokens stay"


def test_tokens_that_reach_the_probability_exactly_are_enough():
    row = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64)
    assert _truncate(row, 0.5, 0.0).tolist() == [[0.0, 0.5, 0.0]]
    assert _truncate(row, 0.75, 0.0).tolist() == [[0.25, 0.5, 0.0]], "of two equal ones, the first"
    assert _truncate(row, 1.0, 0.5).tolist() == row.tolist(), "min_p itself is enough"


def test_rows_of_a_batch_are_truncated_independently():
    rows = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]], dtype=torch.float64)
    together = _truncate(rows, 0.6, 0.3)
    assert torch.equal(together, torch.cat([_truncate(row[None], 0.6, 0.3) for row in rows]))
    assert together.bool().tolist() == [[True, True, False], [False, False, True], [True, True, False]]


@pytest.mark.parametrize("options", [{"top_p": 1e-9}, {"min_p": 1.0}])
def test_the_strictest_truncation_is_greedy(model: GPT, options: dict[str, float]):
    assert texts(model, top_k=0, temperature=1.0, **options) == texts(model, temperature=0)


def test_truncation_changes_the_text_and_depends_on_the_seed_only(model: GPT):
    for options in ({"top_p": 0.5}, {"min_p": 0.2}, {"top_p": 0.7, "min_p": 0.1}):
        found = texts(model, top_k=0, temperature=1.0, **options)
        assert found == texts(model, top_k=0, temperature=1.0, **options)
        assert found != texts(model, top_k=0, temperature=1.0)
        assert len(set(found)) == 3


@pytest.mark.parametrize("options", [*OPTIONS, {"top_p": 0.9}])
def test_streamed_pieces_are_the_text_in_whole_characters(model: GPT, options: dict[str, Any]):
    pieces: list[str] = []
    (text,) = texts(model, 1, on_text=pieces.append, **options)
    assert "".join(pieces) == text
    assert [text] == texts(model, 1, **options)
    assert all(pieces)
    assert len(pieces) > 10


@given(text=st.text(min_size=1, max_size=20), end=st.integers(0, 3))
def test_no_piece_has_a_part_of_a_character(text: str, end: int):
    pieces: list[str] = []
    stream = _TextPieces(BYTES, pieces.append)
    encoded = text.encode(errors="replace")
    tokens = encoded[: len(encoded) - end]
    for token in tokens:
        stream.add(token)
    stream.end()
    assert "".join(pieces) == BYTES.decode(tokens)
    if not end:
        assert pieces == list(encoded.decode())


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"top_p": 0.0}, "top_p must be more than 0 and at most 1, not 0.0; 1 keeps all tokens"),
        ({"top_p": 1.5}, "top_p must be"),
        ({"top_p": float("nan")}, "top_p must be .* not nan"),
        ({"min_p": -0.1}, "min_p must be from 0 to 1, not -0.1; 0 keeps all tokens"),
        ({"min_p": float("nan")}, "min_p must be .* not nan"),
    ],
)
def test_a_probability_out_of_range_is_one_clear_line(model: GPT, options: dict[str, float], answer: str):
    with pytest.raises(BadInputError, match=answer):
        texts(model, **options)
