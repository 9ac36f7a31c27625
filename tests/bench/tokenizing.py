"""Tokenization speed vs. tiktoken on one thread."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from _pairs import interleave
from _table import Row

from gptlab.data import tokens
from gptlab.data.pieces import pieces
from gptlab.data.text import locate
from gptlab.data.tokenizer import copy_encoding, gpt2

MB = 10**6
SIZE_MB, PAIRS = 32, 7


def rows() -> Iterator[Row]:
    """Speed by wall time and by CPU time: threads save wall time only."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GPTLAB_CACHE"] = folder
        path = text_of(Path(folder), SIZE_MB)
        pieces_of_text = list(pieces(locate(str(path)), 0, path.stat().st_size))
        encoding, calls = copy_encoding(gpt2()), 0

        def ours() -> None:
            nonlocal calls
            calls += 1
            tokens.prepare(locate(str(path)), calls / 1000)  # a new split, so that it is not in the cache

        def theirs() -> None:
            for piece in pieces_of_text:
                encoding.encode_to_numpy(piece)

        costs = interleave({"ours": ours, "theirs": theirs}, PAIRS)
    for clock, target in (("wall", ">= 1.8"), ("cpu", "")):
        mb_per_s = {side: [SIZE_MB / getattr(one, f"{clock}_s") for one in took] for side, took in costs.items()}
        yield Row(
            "tokenizing",
            f"{SIZE_MB} MB of text",
            "tiktoken on one thread",
            "MB/s",
            **mb_per_s,
            target=target,
            clock=clock,
        )


def text_of(folder: Path, size_mb: int) -> Path:
    """Write a text of that size: the pandas docstrings, repeated."""
    docs, path = locate("pandas-docs").path.read_bytes(), folder / f"{size_mb}.txt"
    times, rest = divmod(size_mb * MB, len(docs))
    with path.open("wb") as file:
        for _ in range(times):
            file.write(docs)
        file.write(docs[: docs.rfind(b"\n", 0, rest) + 1])
    return path
