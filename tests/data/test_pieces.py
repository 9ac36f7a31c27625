"""The pieces of a text have the same tokens as the whole text, for any cuts."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data import tokenizer
from gptlab.data.pieces import BLOCK_BYTES, PIECE_CHARACTERS, SAFE_CUT, pieces, safe_cut, split_boundary
from gptlab.data.text import Text
from gptlab.errors import BadInputError

TextOf = Callable[[bytes], Text]

WHITESPACE = [
    *" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000",
    "  ",
    "\n\n",
    "\r\n",
    " \n",
]
NO_WHITESPACE = ["\u180e", "\u200b", "\u200d", "\ufeff", "\0", "\x7f"]  # although some look like it
WORDS = ["a", "Z", "the", "Hello", "0", "12345", ".", "...", "!?", "(", "_", "-", "'", "<|endoftext|>"]
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "don't", "I'LL"]
OTHERS = [
    "é",
    "ß",
    "Ж",
    "東京",
    "ひ",
    "한",
    "🙂",
    "👩\u200d🚀",
    "e\u0301",
    "\u0301",
    "٣",
    "Ⅷ",
    "²",
    "—",
    "“",
    "ﬀ",
    "\U0001d7d8",
]
FRAGMENTS = [*WHITESPACE, *NO_WHITESPACE, *WORDS, *CONTRACTIONS, *OTHERS]

some_text = st.lists(
    st.one_of(st.sampled_from(WHITESPACE), st.sampled_from(FRAGMENTS), st.characters(codec="utf-8")), max_size=40
).map("".join)


def encode(text: str) -> list[int]:
    return tokenizer.gpt2().encode_ordinary(text)


@settings(max_examples=600)
@given(before=some_text, text=some_text, block_bytes=st.integers(4, 64))
def test_pieces_give_the_tokens_of_the_whole_text(text_of: TextOf, before: str, text: str, block_bytes: int):
    start, content = len(before.encode()), (before + text).encode()
    edges = [0, *(found.start() for found in SAFE_CUT.finditer(text)), len(text)]
    longest = max(after - edge for edge, after in itertools.pairwise(edges)) or 1
    cut = list(pieces(text_of(content), start, len(content), longest, block_bytes))
    assert "".join(cut) == text
    assert [token for piece in cut for token in encode(piece)] == encode(text)


@settings(max_examples=600)
@given(text=some_text, data=st.data())
def test_safe_cut_changes_no_token(text: str, data: st.DataObject):
    end = data.draw(st.integers(0, len(text)))
    begin = data.draw(st.integers(0, end))
    cut = safe_cut(text, begin, end)
    assert cut is None or begin < cut <= end
    assert encode(text[:cut]) + encode(text[cut:] if cut else "") == encode(text)


@settings(max_examples=300)
@given(text=some_text, longest=st.integers(1, 20), block_bytes=st.integers(4, 64))
def test_cuts_do_not_depend_on_the_block_size(text_of: TextOf, text: str, longest: int, block_bytes: int):
    content = text.encode()
    cut = list(pieces(text_of(content), 0, len(content), longest, block_bytes))
    assert cut == list(pieces(text_of(content), 0, len(content), longest))
    assert "".join(cut) == text
    assert all(len(piece) <= longest for piece in cut)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("a b", 1),
        ("a b c", 3),
        ("a  b", 1),  # not between two spaces
        ("a\nb", 1),
        ("a\r\n", 1),
        ("a\tb", 1),
        ("a \u3000b", 1),
        ("a\u3000b", None),  # not ASCII whitespace
        ("\x1c b", None),  # whitespace in Python only
        ("東京、大阪。", 5),  # punctuation after a letter
        ("don't", 3),
        ("...a", None),  # could be part of a contraction
        (" a", None),  # nothing before the space
        ("ab", None),
        ("", None),
    ],
)
def test_safe_cut_is_the_last_one(text: str, cut: int | None):
    assert safe_cut(text, 0, len(text)) == cut


@pytest.mark.parametrize(
    "content",
    [b"x" + b" " * 1_200_000 + b"x", b"a" * 1_200_000, "漢".encode() * 600_000, b"\n" * 600_000],
    ids=["spaces", "letters", "kanji", "newlines"],
)
def test_text_without_a_safe_cut_is_cut_at_the_maximum_length(text_of: TextOf, content: bytes):
    cut = list(pieces(text_of(content), 0, len(content)))
    assert "".join(cut).encode() == content
    assert all(len(piece) <= PIECE_CHARACTERS for piece in cut)
    assert all(len(piece) == PIECE_CHARACTERS for piece in cut[1:-1])
    assert b"".join(tokenizer.gpt2().decode_bytes(encode(piece)) for piece in cut) == content


def test_an_empty_range_has_no_pieces(text_of: TextOf):
    assert list(pieces(text_of(b"a b"), 1, 1)) == []


@pytest.mark.parametrize("block_bytes", range(4, 12))
def test_characters_across_blocks_are_decoded(text_of: TextOf, block_bytes: int):
    text = "é東🙂 " * 10
    content = text.encode()
    assert "".join(pieces(text_of(content), 0, len(content), block_bytes=block_bytes)) == text


def test_text_truncated_while_it_is_read_is_refused(text_of: TextOf):
    text = text_of(b"some words that were here a moment ago")
    with pytest.raises(BadInputError, match="was truncated"):
        list(pieces(text, 0, text.size + 1, block_bytes=8))


def test_an_error_says_what_to_do(text_of: TextOf):
    with pytest.raises(
        BadInputError, match="is not UTF-8: byte 0xe9 at offset 43; find its encoding first; .*iconv -f"
    ):
        list(pieces(text_of(b"un caf".ljust(43, b"f") + b"\xe9 " * 9), 0, 61))


BAD = [
    (b"\xff", 0),
    (b"\x80", 0),  # a continuation byte without a start byte
    (b"\xc3(", 0),  # a start byte without a continuation byte
    (b"\xe6\x9d", 0),  # an incomplete character
    (b"\xf0\x9f\x99 ", 0),
    (b"\xc0\xaf", 0),  # an overlong encoding
    (b"\xed\xa0\x80", 0),  # a surrogate
    (b"\xf4\x90\x80\x80", 0),  # beyond Unicode
    (b"\xe9\xff", 0),
    ("é".encode() + b"\xff", 2),
]


@pytest.mark.parametrize(("bad", "within"), BAD, ids=[repr(bad) for bad, _ in BAD])
@pytest.mark.parametrize("after", [b"", b" and so on", "東京".encode()], ids=["end", "ascii", "cjk"])
def test_bad_bytes_are_reported_with_their_offset(text_of: TextOf, bad: bytes, within: int, after: bytes):
    for length in range(20):
        before = ("é" + "some words, and more.")[:length].encode()
        content = before + bad + after
        offset = len(before) + within
        for block_bytes in (4, 5, 7, 1 << 20):
            with pytest.raises(BadInputError) as caught:
                list(pieces(text_of(content), 0, len(content), block_bytes=block_bytes))
            assert f"byte 0x{content[offset]:02x} at offset {offset:,};" in str(caught.value)


@settings(max_examples=300)
@given(content=st.binary(max_size=40), start=some_text, block_bytes=st.integers(4, 64))
def test_any_bytes_decode_as_the_whole_file_does(text_of: TextOf, content: bytes, start: str, block_bytes: int):
    content = start.encode() + content
    try:
        expected = content.decode()
    except UnicodeDecodeError as error:
        with pytest.raises(BadInputError, match=f"at offset {error.start:,};"):
            list(pieces(text_of(content), 0, len(content), block_bytes=block_bytes))
    else:
        assert "".join(pieces(text_of(content), 0, len(content), block_bytes=block_bytes)) == expected


def test_error_about_bad_bytes_is_one_line_with_a_hint(text_of: TextOf):
    text = text_of("Müller".encode("latin-1"))
    with pytest.raises(BadInputError) as caught:
        list(pieces(text, 0, text.size))
    message = str(caught.value)
    assert message.startswith(f"'{text.source}' is not UTF-8: byte 0xfc at offset 1;")
    assert "iconv" in message
    assert "\n" not in message


@settings(max_examples=300)
@given(text=some_text.filter(bool), share=st.floats(0, 1))
def test_boundary_is_the_first_ascii_whitespace_after_a_printable_character(text_of: TextOf, text: str, share: float):
    content = text.encode()
    target = max(1, round(share * len(content)))
    boundary = split_boundary(text_of(content).path, target)
    printable = range(ord("!"), ord("~") + 1)
    fitting = (i for i in range(target, len(content)) if content[i] in b" \t\r\n" and content[i - 1] in printable)
    characters = (i for i in range(target, len(content) + 1) if i == len(content) or content[i] & 0xC0 != 0x80)
    assert boundary == next(fitting, next(characters))
    assert target <= boundary <= len(content)
    content[:boundary].decode()
    content[boundary:].decode()


def test_golden_boundaries(text_of: TextOf):
    path = text_of(b"one two three").path
    assert [split_boundary(path, target) for target in range(13)] == [0, 3, 3, 3, 7, 7, 7, 7, 8, 9, 10, 11, 12]


def test_boundary_without_whitespace_nearby_is_between_characters(text_of: TextOf):
    content = "é".encode() * BLOCK_BYTES + b" and more"
    assert [split_boundary(text_of(content).path, target) for target in (1000, 1001, 1002)] == [1000, 1002, 1002]


@pytest.mark.parametrize("text", ["東京", "Hello brave new world"])
def test_boundary_at_the_start_is_zero(text_of: TextOf, text: str):
    assert split_boundary(text_of(text.encode()).path, 0) == 0
