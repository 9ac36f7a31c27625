"""Values as text."""

import pytest

from gptlab.terminal.text import plural


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [(0, "thread", "0 threads"), (1, "thread", "1 thread"), (2, "byte", "2 bytes"), (12345, "step", "12,345 steps")],
)
def test_a_count_agrees_with_its_noun(count, noun, text):
    assert plural(count, noun) == text


def test_a_plural_may_be_irregular():
    assert [plural(n, "entry", "entries") for n in (0, 1, 2)] == ["0 entries", "1 entry", "2 entries"]
