import numpy as np
import pytest

from gptlab.data import occurrences


@pytest.mark.parametrize("piece", [7, 64, 1 << 20])
def test_passages_are_found_wherever_they_are_and_nowhere_else(monkeypatch, piece):
    monkeypatch.setattr(occurrences, "PIECE_TOKENS", piece)
    random = np.random.default_rng(0)
    tokens = random.integers(0, 5, size=500).astype(np.uint16)
    length = 6
    passages = random.integers(0, 5, size=(60, length))
    passages[:20] = [tokens[start : start + length] for start in [0, 494, *random.integers(0, 494, size=18)]]
    stretches = {tuple(tokens[start : start + length]) for start in range(495)}
    found = occurrences.occur(passages, tokens)
    assert found.tolist() == [tuple(passage) in stretches for passage in passages.tolist()]
    assert found[:20].all()
    assert not found.all()
    assert occurrences.occur(passages, tokens[:3]).tolist() == [False] * 60
    assert occurrences.occur(passages[:0], tokens).tolist() == []
    counts = occurrences.token_counts(tokens, 7)
    assert counts.tolist() == [int((tokens == token).sum()) for token in range(7)]


def test_passages_with_equal_hashes_are_told_apart(monkeypatch):
    monkeypatch.setattr(occurrences, "_hashes", lambda tokens, length: np.zeros(len(tokens) - length + 1, np.uint64))
    tokens = np.arange(10, dtype=np.uint16)
    assert occurrences.occur(np.array([[3, 4], [4, 3]]), tokens).tolist() == [True, False]
