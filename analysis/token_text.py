"""Tokens as text that shows what they are: whitespace, control characters, and bytes that are no character."""

import codecs
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from gptlab.terminal.text import INVISIBLE

TEXT, SPACE, NEWLINE, TAB, CONTROL, BYTES = "", "s", "n", "h", "c", "b"
"""Kinds of pieces, which are CSS classes in `tokens.css`."""


class Piece(NamedTuple):
    """A part of a token's text."""

    kind: str
    text: str
    """What to display: the text itself, or the name of a control character or the digits of bytes."""


def pieces(content: bytes) -> list[Piece]:
    """Return the parts of a text, with bytes that are not UTF-8 as pairs of hexadecimal digits."""
    text = content.decode(errors="surrogateescape")
    found: list[Piece] = []
    for kind, run in groupby(text, _kind):
        found += _display(kind, "".join(run))
    return found


def spoken(content: bytes) -> str | None:
    """Return a token's name for screen readers; None if its text is one."""
    parts = pieces(content)
    if all(kind in {TEXT, SPACE} for kind, _ in parts) and any(kind == TEXT for kind, _ in parts):
        return None
    names = {NEWLINE: "line break", TAB: "tab"}
    return " ".join(names.get(kind) or _spoken_piece(kind, text) for kind, text in parts)


def whole_characters(contents: Sequence[bytes]) -> Iterator[list[int]]:
    """Group consecutive tokens so that each group consists of whole characters, and yield the tokens' numbers.

    A group has several tokens if a character is divided among them. The first and the last group of a passage can
    begin or end within a character.
    """
    decoder, group = codecs.getincrementaldecoder("utf-8")(errors="replace"), list[int]()
    for number, content in enumerate(contents):
        decoder.decode(content)
        group.append(number)
        if not decoder.getstate()[0]:
            yield group
            group = []
    if group:
        yield group


def _kind(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        return BYTES
    if character in " \n\t":
        return {" ": SPACE, "\n": NEWLINE, "\t": TAB}[character]
    return TEXT if character.isprintable() and not INVISIBLE.match(character) else CONTROL


def _display(kind: str, text: str) -> list[Piece]:
    if kind == BYTES:
        return [Piece(kind, text.encode(errors="surrogateescape").hex(" ").upper())]
    if kind == CONTROL:
        return [Piece(kind, f"U+{ord(character):04X}") for character in text]
    if kind in {NEWLINE, TAB}:  # each has a mark of its own
        return [Piece(kind, character) for character in text]
    return [Piece(kind, text)]


def _spoken_piece(kind: str, text: str) -> str:
    if kind == SPACE:
        return "space" if text == " " else f"{len(text)} spaces"
    return {BYTES: "bytes ", CONTROL: "control character "}.get(kind, "") + text
