"""The page of single tokens: marks, groups of bytes, places, and its size."""

import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
from token_documents import document

from analysis import token_page
from analysis.token_page import page_path
from analysis.token_text import pieces, spoken, whole_characters
from gptlab.errors import BadInputError
from gptlab.interface.tokens import MAX_TOKENS


@pytest.mark.parametrize(
    ("content", "parts", "name"),
    [
        (b" the", [("s", " "), ("", "the")], None),
        (b"    ", [("s", "    ")], "4 spaces"),
        (b" ", [("s", " ")], "space"),
        (b"\n\n\t", [("n", "\n"), ("n", "\n"), ("h", "\t")], "line break line break tab"),
        (b"a\r\n", [("", "a"), ("c", "U+000D"), ("n", "\n")], "a control character U+000D line break"),
        (
            "\u202e\u200b".encode(),
            [("c", "U+202E"), ("c", "U+200B")],
            "control character U+202E control character U+200B",
        ),
        (b" \xf0\x9f", [("s", " "), ("b", "F0 9F")], "space bytes F0 9F"),
        ("naïve 😀".encode(), [("", "naïve"), ("s", " "), ("", "😀")], None),
    ],
)
def test_whitespace_control_characters_and_bytes_are_marked(content, parts, name):
    assert [tuple(piece) for piece in pieces(content)] == parts
    assert spoken(content) == name


def test_tokens_that_share_a_character_are_one_group():
    contents = [b"\x98\x80", b"a", b" \xf0\x9f", b"\x98", b"\x80", "é".encode(), b"\xe4\xbd"]
    assert list(whole_characters(contents)) == [[0], [1], [2, 3, 4], [5], [6]]
    html = token_page.to_html(document([contents]))
    assert html.count('class="group"') == 1
    assert 'aria-label=" 😀, 3 tokens"' in html


def test_the_largest_page_of_two_runs_is_below_three_megabytes():
    choose = random.Random(0)
    words = [f" {choose.randrange(10**6)}".encode() for _ in range(50257)]
    contents = [choose.choice(words) for _ in range(MAX_TOKENS)]
    html = token_page.to_html(document([contents, contents], vocabulary=words))
    assert 1e6 < len(html.encode()) < 3e6


def test_a_page_is_beside_the_report_or_where_it_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "runs"))
    assert page_path(None, ["a-s0", "../my gpt2"]) == tmp_path / "runs" / "tokens" / "a-s0-..-my-gpt2.html"
    monkeypatch.chdir(tmp_path)
    assert page_path("new/page.html", ["a"]) == tmp_path / "new" / "page.html"
    (tmp_path / "folder.html").mkdir()
    for out in (
        "",
        "text.txt",
        "folder.html",
        "x" * 5000 + ".html",
        "nul\0.html",
        "~nobody-of-that-name/x.html",
        __file__,
    ):
        with pytest.raises(BadInputError, match=r"cannot be a page; give the path of a file that ends in \.html"):
            page_path(out, ["a"])
    Path("file").touch()
    with pytest.raises(BadInputError, match="cannot be a page"):
        page_path("file/page.html", ["a"])


@pytest.mark.parametrize("vocab_size", [256, 300, 1000, 4096, 50_257, 200_000])
def test_marks_of_the_scale_of_losses_do_not_overlap(vocab_size):
    """A label takes up to an eighth of the scale on a phone."""
    percents = [tick.percent for tick in token_page._loss_ticks(math.log(vocab_size))]
    assert (percents[0], percents[-1]) == (0, 100)
    assert min(later - before for before, later in pairwise(percents)) > 100 / 8
