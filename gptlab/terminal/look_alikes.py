"""Replace characters that a terminal's encoding lacks by similar ones, so that charts and tables stay readable."""

import codecs

ERRORS = "gptlab.look_alikes"
"""For `str.encode(…, errors=ERRORS)`: other characters become `?`. A character is replaced by one character."""

PAIRS = {
    "┤│": "|",
    "└": "+",
    "─–—−": "-",
    "━▆▇": "=",
    "·•": "-",
    "…": ".",
    "±": "~",
    "●×": "x",
    "▁": "_",
    "▂▃": ".",
    "▄▅": "-",
    "█": "#",
    "“”„": '"',
    "‘’": "'",
}
SIMILAR = {character: similar for characters, similar in PAIRS.items() for character in characters}
BRAILLE = range(0x2800, 0x2900)
UPPER_DOTS, LOWER_DOTS = 0x1B, 0xE4


def look_alike(character: str) -> str:
    """Return an ASCII character that looks similar; `?` if there is none."""
    if ord(character) in BRAILLE:
        upper, lower = (bool((ord(character) - BRAILLE.start) & dots) for dots in (UPPER_DOTS, LOWER_DOTS))
        return {(False, False): " ", (True, False): "'", (False, True): ".", (True, True): ":"}[upper, lower]
    return SIMILAR.get(character, "?")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(look_alike, error.object[error.start : error.end])), error.end


codecs.register_error(ERRORS, _replace)
