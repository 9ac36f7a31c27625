"""Untrusted input for everything that gptlab reads: any JSON, changed documents, damaged bytes."""

import copy
import json
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

ODD_NUMBERS = [-1, 0, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400, 1e308, -1e308, 1e-320, -0.0]
ODD_TEXTS = ["", "..", "../x", "/etc/passwd", "NaN", "-inf", "1e5", "0x10", "\0", "\ud800", "\x1b[31m", "١", "x" * 300]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(ODD_NUMBERS)
    | st.sampled_from(ODD_TEXTS)
)
ANYTHING: SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def as_json(value: Any) -> bytes:
    """The value as JSON, with Python's spelling of NaN and infinities and with escaped lone surrogates."""
    return json.dumps(value).encode()


@st.composite
def oddly(draw: st.DrawFn, document: Any) -> Any:
    """The document with up to three values replaced, removed or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, 3))):
        holder = draw(st.sampled_from(_holders(document)))
        key = draw(st.sampled_from(list(holder)) if holder else st.text(max_size=5))
        if key in holder and draw(st.integers(0, 4)) == 0:
            del holder[key]
        else:
            holder[key] = draw(ANYTHING)
    return document


def _holders(document: Any) -> list[dict[str, Any]]:
    inner = [holder for value in document.values() if isinstance(value, dict) for holder in _holders(value)]
    return [document, *inner]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with a part overwritten, cut off or inserted."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(start + 8, len(content))))
    tail = content[end:] if draw(st.booleans()) else content[end : draw(st.integers(end, len(content)))]
    return content[:start] + draw(st.binary(max_size=8)) + tail
