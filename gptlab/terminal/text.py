"""Format values as text for terminals and reports."""

import math
import re
import shlex
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from gptlab import project

INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\U000e0100-\U000e01ef]")
"""Letters and marks without a shape, which `str.isprintable` accepts: they can make two names look alike."""


def printable(text: str) -> str:
    """Replace characters that could control the terminal or are invisible by `�`; newlines and tabs stay."""
    visible = INVISIBLE.sub("�", text)
    return "".join(c if c in "\n\t" or c.isprintable() else "�" for c in visible)


def one_line(text: str) -> str:
    """Return printable text on one line: each stretch of whitespace becomes a space."""
    return printable(" ".join(text.split()))


def abbreviate_hash(value: Any) -> str:
    """Return the value as text; a sha1 or sha256 is shortened to its first 8 digits."""
    text = str(value)
    return f"{text[:8]}…" if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) else text


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return a count with its noun: `1 thread`, `2 threads`, `10,000 threads`; `many` is an irregular plural."""
    return f"{count:,} {noun if count == 1 else many or f'{noun}s'}"


def format_duration(seconds: float) -> str:
    """Format seconds as `6 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_age(delta: timedelta) -> str:
    """Format a time difference as `3 min`, `5 h` or `12 d`."""
    minutes = max(int(delta.total_seconds()), 0) // 60
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h" if minutes < 2 * 1440 else f"{minutes // 1440} d"


def format_bytes(count: int) -> str:
    """Format a number of bytes as `120 KiB`, `704 MiB` or `1.2 GiB`."""
    kib = count / 2**10
    if kib < 1000:
        return f"{math.ceil(kib)} KiB"
    return f"{kib / 2**10:.0f} MiB" if kib < 1000 * 2**10 else f"{kib / 2**20:,.1f} GiB"


def shell_command(*words: str) -> str:
    """Return a gptlab command that can be pasted into a shell, with the program's path if it is not on `PATH`."""
    path = Path(sys.argv[0]).absolute()
    program = shlex.quote(project.display_path(path)) if path.name == "gptlab" else "python -m gptlab"
    program = "gptlab" if shutil.which("gptlab") else program
    return " ".join([program, *map(shlex.quote, words)])
