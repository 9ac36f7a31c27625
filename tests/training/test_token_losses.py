"""Sums of the losses of single tokens, by position and by frequency, of models whose answer is known."""

import numpy as np
import pytest
import torch

from gptlab.data.occurrences import token_counts
from gptlab.data.tokens import Split
from gptlab.data.vocabularies import BYTES
from gptlab.data.windows import validation_starts
from gptlab.explanation import rows
from gptlab.explanation.bins import frequency_bins
from gptlab.explanation.stored import MAX_BLOCKS, Explanation, Facts
from gptlab.training.evaluate import evaluate
from gptlab.training.settings import Available, resolve_settings
from gptlab.training.token_losses import SummingModel

LENGTH, PERIOD, LETTERS = 64, 16, 64
NONE = {f"{part}_start": np.zeros(0, np.int64) for part in ("trained", "held_out")} | {
    f"{part}_match": np.zeros((0, 0), np.int64) for part in ("trained", "held_out")
}


class Copying(torch.nn.Module):
    """Knows what was `PERIOD` tokens ago in the window, else nothing: log LETTERS nats."""

    def forward(self, tokens, targets, *, reduction):
        assert reduction == "none"
        shown = torch.cat([torch.full((len(tokens), PERIOD - 1), -1), tokens], dim=1)[:, : tokens.shape[1]]
        uniform = torch.full(targets.shape, float(np.log(LETTERS)), dtype=torch.float64)
        return uniform * (shown != targets)


def explained(model, tokens, windows=None):
    """The explanation of a text of bytes, whose tokens are counted in itself, and its evaluation."""
    text = Split(tokens.astype(np.uint16), len(tokens), "ab" * 32, BYTES)
    starts = validation_starts(text, LENGTH, windows)
    counts = token_counts(text.tokens, 256)
    summing = SummingModel(model, len(starts), LENGTH, BYTES, counts)
    settings = resolve_settings("cpu", "float32", Available.here())
    evaluation = evaluate(summing, text, starts, sequence_length=LENGTH, settings=settings)
    facts = Facts(
        windows=len(starts),
        sequence_length=LENGTH,
        counted="ab" * 32,
        counted_in_training_part=True,
        most=int(counts.max()),
    )
    return Explanation(facts, **summing.sums, **NONE), evaluation


def test_a_text_that_repeats_has_its_loss_in_the_first_period():
    blocks = np.random.default_rng(0).integers(0, LETTERS, size=(50, PERIOD))
    tokens = np.concatenate([*(np.tile(block, LENGTH // PERIOD) for block in blocks), [0]])
    found, evaluation = explained(Copying(), tokens)
    by_context = {row["context"]: row["loss"] for row in rows.by_position(found)}
    guess = np.log(LETTERS)
    expected = {"1": guess, "2": guess, "3–4": guess, "5–8": guess, "9–16": 7 / 8 * guess, "17–32": 0}
    assert {label: by_context[label] for label in expected} == pytest.approx(expected)
    assert 0 < by_context["33–64"] <= guess / 32, "the last target begins the next block"
    gain = rows.context_gain(found)
    assert gain.value == pytest.approx(guess - by_context["33–64"])
    assert gain.half < 0.1
    assert evaluation.loss == pytest.approx(PERIOD / LENGTH * guess, rel=0.01)


def test_sums_are_the_losses_of_the_evaluation_and_bins_of_frequency_are_counted():
    """Token k has a loss of k nats and occurs a known number of times."""

    class OfToken(torch.nn.Module):
        def forward(self, tokens, targets, *, reduction):
            return targets.float() / 7

    occurrences = {1: 2, 2: 8, 3: 30, 4: 600, 5: 3000}
    tokens = np.random.default_rng(0).permutation(np.repeat(list(occurrences), list(occurrences.values())))
    tokens = np.concatenate([[5], tokens])[: (len(tokens) // LENGTH) * LENGTH + 1]
    found, evaluation = explained(OfToken(), tokens)
    for kind in ("position", "frequency"):
        losses, sizes = getattr(found, f"{kind}_loss"), getattr(found, f"{kind}_bytes")
        assert losses.sum() / evaluation.tokens == pytest.approx(evaluation.loss, abs=1e-9)
        assert sizes.sum() == evaluation.bytes
    assert found.position_tokens.sum() == found.frequency_tokens.sum() == evaluation.tokens
    counts = np.bincount(tokens, minlength=6)
    bins = [bin_.label for bin_ in frequency_bins(int(counts.max()))]
    by_count = {row["count"]: row for row in rows.by_frequency(found)}
    assert list(by_count) == bins
    for token, label in ((1, "1–2"), (2, "3–8"), (3, "9–32"), (4, "513–2,048"), (5, "2,049–8,192")):
        row = by_count[label]
        assert (row["tokens"], row["loss"]) == (counts[token] - (token == 5), pytest.approx(token / 7))
    assert by_count["0"]["tokens"] == 0
    assert np.isnan(by_count["0"]["loss"])
    assert sum(row["share_of_loss"] for row in by_count.values()) == pytest.approx(1)


def test_many_windows_are_summed_in_blocks_of_neighbors():
    tokens = np.random.default_rng(0).integers(0, LETTERS, size=(2 * MAX_BLOCKS + 5) * LENGTH + 1)
    found, evaluation = explained(Copying(), tokens)
    assert len(found.windows) == MAX_BLOCKS
    assert set(found.windows.tolist()) == {2, 3}
    per_window = evaluation.window_losses * LENGTH
    ends = found.windows.cumsum()
    blocks = [per_window[end - size : end].sum() for end, size in zip(ends, found.windows, strict=True)]
    assert found.position_loss.sum(axis=1) == pytest.approx(np.array(blocks))
