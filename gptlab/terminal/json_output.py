"""Print JSON documents."""

import json
import math
import re
import sys
from typing import Any

from gptlab.terminal.text import printable


def print_json(document: Any) -> None:
    r"""Print one JSON document on stdout. Non-finite numbers become null.

    Characters that could control the terminal, and those that stdout cannot encode, are escaped as `\uXXXX`.
    """
    text = json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(re.sub(r"[^\n -~]", lambda match: _escaped(match[0]), text) + "\n")


def _escaped(character: str) -> str:
    encodable = character.encode(sys.stdout.encoding or "utf-8", "ignore")
    return character if encodable and printable(character) == character else json.dumps(character)[1:-1]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
