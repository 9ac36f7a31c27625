"""Digests of JSON documents and rows, which reveal a change to a value after it was written.

They detect accidental damage, such as a flipped bit. They do not authenticate: anyone can compute one.
"""

import json
from collections.abc import Mapping
from typing import Any

import xxhash

DIGEST, ALTERED = "digest", "altered"


def canonical_json(document: Any) -> str:
    """Serialize equal values to equal text: sorted keys, no spaces, no NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def document_digest(document: Any) -> str:
    """Return the xxh3_128 of a JSON value, in hexadecimal. It does not depend on formatting and order of keys."""
    return xxhash.xxh3_128(canonical_json(document).encode()).hexdigest()


def with_digest(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with a last key, `digest`, over the others."""
    return {**document, DIGEST: document_digest(document)}


def check_digest(document: Any) -> dict[str, Any]:
    """Return a parsed document without its digest.

    Raises:
        ValueError: It is not an object, or its digest is missing or does not match the other keys.
    """
    if not isinstance(document, dict):
        raise ValueError("damaged: not an object")
    content = {key: value for key, value in document.items() if key != DIGEST}
    if document.get(DIGEST) != document_digest(content):
        raise ValueError("damaged: its digest does not match")
    return content


def mark_if_altered(document: Any) -> Any:
    """Replace the digest of a parsed document by `"altered": True` if it does not match, and drop it if it does.

    A document without a digest, as earlier versions of gptlab wrote, is returned unchanged.
    """
    if not isinstance(document, dict) or DIGEST not in document:
        return document
    content = {key: value for key, value in document.items() if key != DIGEST}
    return content if document_digest(content) == document[DIGEST] else {**content, ALTERED: True}
