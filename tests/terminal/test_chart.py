"""Lines of braille dots in a chart, and what becomes of them where the encoding has no such characters."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlab.terminal.chart import Curve, chart
from gptlab.terminal.look_alikes import ERRORS, PAIRS, look_alike


def test_a_line_goes_from_the_first_point_to_the_last_through_all_columns() -> None:
    lines = chart([Curve("", [0, 100], [10.0, 5.0])], width=25, height=5)
    canvas = [line.partition("┤")[2] for line in lines[:5]]
    assert (canvas[0][0], canvas[4][-1]) == ("⠉", "⣀")
    for column in range(20):
        assert any(row[column : column + 1].strip() for row in canvas), column


def test_a_line_goes_through_the_mean_of_many_points() -> None:
    xs = list(range(10_000))
    noisy = [5.0 + (-1) ** x for x in xs]
    lines = chart([Curve("", xs, noisy)], width=40, height=5)
    assert [bool(line.partition("┤")[2].strip()) for line in lines[:5]] == [False, False, True, False, False]
    assert set(lines[2].partition("┤")[2]) <= set("⠒⠢⠔⠤"), "in the middle"


def test_marks_are_drawn_over_lines() -> None:
    lines = chart([Curve("", [0, 1], [1.0, 1.5]), Curve("●", [1], [1.5])], width=20, height=3)
    assert lines[0].endswith("●")


@given(
    st.lists(st.tuples(st.floats(), st.floats()), max_size=30),
    st.integers(1, 60),
    st.integers(2, 20),
)
def test_any_points_give_a_line_that_fits_or_none(points: list[tuple[float, float]], width: int, height: int) -> None:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    finite = {(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)}
    lines = chart([Curve("", xs, ys)], width, height)
    assert len(lines) == (height + 2 if len(finite) > 1 else 0)


@pytest.mark.parametrize(
    "text", ["5.5 ┤●⠉⠑⢄", "    └───", "━━── 20% · ETA …", "3.5 ± 0.1", "▁▂▃▄▅▆▇█", "größer – 東京"]
)
def test_a_character_that_cannot_be_encoded_becomes_one_similar_character(text: str) -> None:
    ascii_text = text.encode("ascii", ERRORS).decode()
    assert len(ascii_text) == len(text)
    assert ("?" in ascii_text) == ("ö" in text)
    assert text.encode("utf-8", ERRORS).decode() == text


def test_similar_characters_are_ascii_and_a_curve_keeps_its_shape() -> None:
    assert all(similar.isascii() and len(similar) == 1 for similar in PAIRS.values())
    assert "".join(map(look_alike, "⠀⠉⣀⣿")) == " '.:"
