"""How fast a text is tokenised beside tiktoken on one thread."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from _pairs import in_turns
from _table import Row

from gptlab.data import tokens
from gptlab.data.text import locate
from gptlab.data.tokenizer import duplicate, gpt2

MB = 10**6
SIZE_MB, PAIRS = 32, 7


def rows() -> Iterator[Row]:
    """One row by each clock: with two threads the wall clock gains, and CPU seconds say what that costs."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GPTLAB_CACHE"] = folder
        path = text_of(Path(folder), SIZE_MB)
        pieces = list(tokens.pieces(locate(str(path)), 0, path.stat().st_size))
        alone, made = duplicate(gpt2()), 0

        def ours() -> None:
            nonlocal made
            made += 1
            tokens.prepare(locate(str(path)), made / 1000)  # another split, so nothing is in the cache

        def theirs() -> None:
            for piece in pieces:
                alone.encode_to_numpy(piece)

        spent = in_turns({"ours": ours, "theirs": theirs}, PAIRS)
    for clock, target in (("wall", ">= 1.8"), ("cpu", "")):
        mb_per_s = {side: [SIZE_MB / getattr(one, f"{clock}_s") for one in took] for side, took in spent.items()}
        yield Row(
            "tokenising",
            f"{SIZE_MB} MB of text",
            "tiktoken on one thread",
            "MB/s",
            **mb_per_s,
            target=target,
            clock=clock,
        )


def text_of(folder: Path, size_mb: int) -> Path:
    """pandas' docstrings, again and again, then as many lines of them as fit."""
    docs, path = locate("pandas-docs").path.read_bytes(), folder / f"{size_mb}.txt"
    times, rest = divmod(size_mb * MB, len(docs))
    with path.open("wb") as file:
        for _ in range(times):
            file.write(docs)
        file.write(docs[: docs.rfind(b"\n", 0, rest) + 1])
    return path
