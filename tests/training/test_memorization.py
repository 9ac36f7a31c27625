"""Memorization is found where it is, and its passages are those that the run has trained on."""

import numpy as np
import pytest
import torch
from support import run_attempt

from gptlab import load
from gptlab.commands.evaluate import find_windows
from gptlab.commands.explain import explain
from gptlab.data.windows import Windows, windows_at
from gptlab.explanation import rows
from gptlab.explanation.stored import EXCLUDED
from gptlab.model import gpt
from gptlab.model.sample import samples
from gptlab.spec import ModelSpec
from gptlab.terminal.console import Console
from gptlab.training import memorization
from gptlab.training.settings import Available, resolve_settings

SETTINGS = resolve_settings("cpu", "float32", Available.here())


def absent(passages):
    return np.zeros(len(passages), np.bool_)


def test_match_lengths_are_those_of_greedy_samples():
    """Of a model whose weights are so large that its continuations are not all alike."""
    model = gpt.build(ModelSpec(n_layer=1, n_head=2, n_embd=16, context_length=40, vocab_size=256), seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    random = np.random.default_rng(0)
    tokens = random.integers(97, 123, size=400)
    starts = np.arange(0, 400 - 40, 40)
    prompts, continuation = memorization.lengths(39)
    assert (prompts, continuation) == ([8, 16], 20)
    for start, wrong in zip(starts, [0, 1, 5, 19, 20, 20, 3, 20, 2], strict=True):  # all but one as the model continues
        batch = torch.from_numpy(tokens[None, start : start + 8].copy())
        for place in range(20):
            likeliest = model(batch)[:, -1:].argmax(dim=2)
            batch = torch.cat([batch, (likeliest + (place == wrong)) % 256], dim=1)
        tokens[start : start + batch.shape[1]] = batch[0].numpy()
    found = memorization.match_lengths(
        model,
        tokens,
        starts,
        other=absent,
        sequence_length=39,
        vocab_size=256,
        settings=SETTINGS,
    )
    assert found[:, 0].tolist() == [0, 1, 5, 19, 20, 20, 3, 20, 2]
    for start, matches in zip(starts, found, strict=True):
        for prompt, match in zip(prompts, matches, strict=True):
            window = tokens[start : start + prompt + continuation]
            sampled = _greedy(model, window[:prompt].tolist(), continuation)
            agree = np.array(sampled) == window[prompt:]
            assert match == agree.cumprod().sum()


def _greedy(model, prompt: list[int], count: int) -> list[int]:
    """The tokens of `samples`, through a tokenizer that writes each token as a character."""

    class Characters:
        vocab_size = 256

        def encode(self, text):
            return [ord(character) for character in text]

        def decode(self, tokens):
            return "".join(map(chr, tokens))

    text = "".join(map(chr, prompt))
    (sampled,) = samples(model, text, 1, trained_length=40, tokenizer=Characters(), max_tokens=count, temperature=0)
    return [ord(character) for character in sampled]


@pytest.mark.parametrize("steps", [range(3), range(25), range(60), range(10, 13), range(10, 40)])
def test_training_passages_are_windows_of_the_steps_that_do_not_overlap(steps):
    windows = Windows(np.arange(1000, dtype=np.uint16) % 256, 16, 2, seed=3)
    trained = {int(start) for step in steps for start in windows.starts(step)}
    starts, available = memorization.trained_starts(windows, steps, 1000)
    assert len(starts) == available == len(set(starts.tolist()))
    assert set(starts.tolist()) <= trained
    assert (np.diff(starts) >= 16).all()
    assert available == min(2 * len(steps), windows.per_epoch) or steps.start
    some, _ = memorization.trained_starts(windows, steps, 4)
    assert len(some) == 4
    assert set(some.tolist()) <= set(starts.tolist())
    assert memorization.trained_starts(windows, range(5, 5), 4)[1] == 0


def test_passages_of_the_other_part_are_excluded():
    model = gpt.build(ModelSpec(n_layer=1, n_head=1, n_embd=8, context_length=32, vocab_size=256), seed=0).eval()
    tokens, starts = np.arange(400) % 256, np.array([0, 50, 100])
    asked = []

    def other(passages):
        asked.append(passages)
        return np.array([False, True, False])

    found = memorization.match_lengths(
        model, tokens, starts, other=other, sequence_length=32, vocab_size=256, settings=SETTINGS
    )
    prompts, continuation = memorization.lengths(32)
    assert (prompts, continuation) == ([8, 16], 16)
    assert (found[1] == EXCLUDED).all()
    assert (found[[0, 2]] != EXCLUDED).all()
    for prompt, passages in zip(prompts, asked, strict=True):
        expected = windows_at(tokens, starts, 31)[:, prompt - memorization.CONTEXT : prompt + continuation]
        assert (passages == expected).all()


@pytest.mark.slow
def test_a_text_of_a_few_kilobytes_is_memorized_after_many_epochs_and_the_control_is_not(micro, tmp_path):
    printable = [chr(code) for code in range(33, 127)]
    trained, held_out = ("".join(np.random.default_rng(seed).permutation(printable)) for seed in (0, 1))
    (tmp_path / "cycles.txt").write_text(trained * 18 + held_out * 12)
    changes = {
        "data.text": str(tmp_path / "cycles.txt"),
        "data.tokenizer": "bytes",
        "data.val_fraction": 0.4,
        "model.vocab_size": 256,
        "model.n_embd": 32,
        "train.sequence_length": 32,
        "train.batch_size": 8,
        "train.eval_every": 1000,
        "train.checkpoint_every": 1000,
    }
    run = run_attempt(micro.with_changes(changes), steps=100).run
    console = Console(stderr=True)
    found = explain(find_windows(run, step=None, text=None, device="cpu", console=console), 200, console).explanation
    shares = {(row["prompt"], row["part"]): row for row in rows.memorization(found)}
    assert shares[16, "trained"]["share"] > 0.8
    assert shares[16, "trained"]["passages"] == found.facts.trained_windows == 51
    assert shares[16, "held out"]["share"] == 0
    assert shares[16, "held out"]["match"] < 1
    assert all(row["difference_low"] > 0.5 for row in rows.memorized(found) if row["prompt"] == 16)
    model, tokenizer = load(run.id)
    (text,) = samples(model, trained[:16], 1, trained_length=32, tokenizer=tokenizer, max_tokens=16, temperature=0)
    assert text == trained[16:32]
